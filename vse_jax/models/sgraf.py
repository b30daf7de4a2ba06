"""SGRAF: pictures and sentences compared word by word, filtered (SAF) or reasoned over (SGR).

Source: Diao et al., Similarity Reasoning and Filtration for Image-Text Matching, AAAI 2021, and
the code released with it.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vse_jax.encoding import Encoding
from vse_jax.models.dropout import Dropout
from vse_jax.models.masked import MaskedBatchNorm, masked_softmax
from vse_jax.models.normalize import l2_normalize
from vse_jax.models.pairwise import TILE, Comparison, Params, Statistics, Tile, score, table

# Sharpens a word's attention over the regions.
SMOOTH = 9.0
# Slope of the leaky rectifier below 0.
LEAK = 0.1


class SGRAFHead(nn.Module):
    """Parts of length 1 and, as the whole, their sum weighted by self-attention.

    Weights are softmax(FC(l * g)) with l = dropout(tanh(BN(FC part))) of each part and g =
    dropout(tanh(BN(FC mean))) of their mean; the sum has length 1.

    Attributes:
      dimension: of the common space; None keeps that of the parts, as words have it already.
      batch_norm: whether l and g are batch-normalised, as those of pictures are. The statistics
        are of each channel, so that the order of regions is of no consequence; the released
        code takes one pair of statistics for each region's place.
      dropout: of l and g in training.
      momentum: of the running batch statistics.
      dtype: of the operands of matrix products.
      axis_name: mapped axis over which batch statistics are shared.
    """

    dimension: int | None = 1024
    batch_norm: bool = True
    dropout: float = 0.4
    momentum: float = 0.9
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, parts: Float[Array, "b n f"], mask: Bool[Array, "b n"], *, train: bool
    ) -> Encoding:
        """`local` and `pooled` of length 1 each; zero where there is nothing."""
        dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        if self.dimension is not None:
            parts = dense(self.dimension, name="project")(parts).astype(jnp.float32)
        local = l2_normalize(parts) * mask[..., None]
        count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        mean = jnp.sum(local, axis=1) / count
        width = local.shape[-1]

        def embedded(x: Array, name: str, where: Array) -> Array:
            x = dense(width, name=name)(x).astype(jnp.float32)
            if self.batch_norm:
                norm = MaskedBatchNorm(self.momentum, axis_name=self.axis_name, name=f"{name}_norm")
                x = norm(x, where, train=train)
            return Dropout(self.dropout)(jnp.tanh(x), train=train)

        own = embedded(local, "part", mask)
        every = jnp.ones((mask.shape[0], 1), bool)
        common = own * embedded(mean[:, None], "mean", every)
        logits = dense(1, name="weight")(common).astype(jnp.float32)[..., 0]
        weights = masked_softmax(logits, mask, axis=1)
        pooled = l2_normalize(jnp.sum(weights[..., None] * local, axis=1))
        return Encoding(local=local, mask=mask, pooled=pooled)


class SAF(nn.Module):
    """Similarity attention filtration: every alignment counts as much as it is found to matter.

    A score is sigmoid(linear(unit(sum of nodes weighted by sigmoid(BN(linear node)))), the weights
    scaled to sum to 1, over one node for each word and one for the wholes, see `_alignments`. In
    training the batch norm is of each caption by itself, over the pictures of the batch and its
    nodes, as in the released code. Its statistics have a gradient by the linear layer before it,
    but none by the nodes, which would need that of every pair.

    Attributes:
      width: of a node.
      tile: pairs looked at at a time.
      momentum: of the running statistics.
      dtype: of the operands of the large matrix products.
    """

    width: int = 256
    tile: Tile = TILE
    momentum: float = 0.9
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Encoding, texts: Encoding, *, train: bool) -> Float[Array, "a c"]:
        """Scores in (0, 1) of every picture with every caption."""
        dimension = images.local.shape[-1]
        params = {
            "local": _linear(self, "local", dimension, self.width),
            "whole": _linear(self, "whole", dimension, self.width),
            "weight": _linear(self, "weight", self.width, 1),
            "norm": {
                "scale": self.param("norm_scale", nn.initializers.ones, ()),
                "bias": self.param("norm_bias", nn.initializers.zeros, ()),
            },
            "score": _linear(self, "score", self.width, 1),
        }
        mean = self.variable("batch_stats", "mean", jnp.zeros, ())
        var = self.variable("batch_stats", "var", jnp.ones, ())
        comparison = Comparison(
            partial(_alignments, dtype=self.dtype), _measure_filtration, _filtered
        )
        if train:
            scores, measured = table(comparison, params, images, texts, self.tile)
            if not self.is_initializing():
                for running, found in zip((mean, var), measured[:2], strict=True):
                    kept = self.momentum * running.value
                    running.value = kept + (1.0 - self.momentum) * jnp.mean(found)
            return scores
        count = texts.mask.shape[0]
        each, flat = jnp.ones(count), jnp.zeros((count, self.width))
        known = _Filtration(mean.value * each, var.value * each, flat, flat, 0 * each)
        return score(comparison, params, images, texts, known, self.tile)[0]


class SGR(nn.Module):
    """Similarity graph reasoning: alignments exchange what they say, then the wholes' one decides.

    `steps` times X <- relu(linear(softmax(Q(X) K(X)^T) X)) over the nodes of `_alignments`; the
    score is sigmoid(linear(node of the wholes)).

    Attributes:
      width: of a node.
      steps: of reasoning.
      tile: pairs looked at at a time.
      dtype: of the operands of the large matrix products.
    """

    width: int = 256
    steps: int = 3
    tile: Tile = TILE
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Encoding, texts: Encoding, *, train: bool) -> Float[Array, "a c"]:
        """Scores in (0, 1) of every picture with every caption."""
        dimension = images.local.shape[-1]
        params = {
            "local": _linear(self, "local", dimension, self.width),
            "whole": _linear(self, "whole", dimension, self.width),
            "steps": [
                {
                    "relate": self._relation(f"step{step}"),
                    "out": _linear(self, f"step{step}_out", self.width, self.width),
                }
                for step in range(self.steps)
            ],
            "score": _linear(self, "score", self.width, 1),
        }
        comparison = Comparison(
            partial(_alignments, dtype=self.dtype), None, partial(_reasoned, dtype=self.dtype)
        )
        if train:
            return table(comparison, params, images, texts, self.tile)[0]
        return score(comparison, params, images, texts, (), self.tile)[0]

    def _relation(self, name: str) -> dict[str, Array]:
        """The linear layer R of which Q(X) K(X)^T is R(X) X^T: one product a node in place of two.

        The bias of K is left out: it would add the same to all that a softmax is over.
        """
        query = _linear(self, f"{name}_query", self.width, self.width)
        shape = (self.width, self.width)
        key = self.param(f"{name}_key_kernel", nn.initializers.xavier_uniform(), shape)
        return {part: weight @ key.T for part, weight in query.items()}


def _linear(module: nn.Module, name: str, inputs: int, outputs: int) -> dict[str, Array]:
    """The parameters of a linear layer."""
    kernel = module.param(f"{name}_kernel", nn.initializers.xavier_uniform(), (inputs, outputs))
    return {
        "kernel": kernel,
        "bias": module.param(f"{name}_bias", nn.initializers.zeros, (outputs,)),
    }


def _apply(
    linear: dict[str, Array], x: Float[Array | np.ndarray, "*n f"], dtype: Any
) -> Float[Array, "*n d"]:
    """x W + b, summed in float32."""
    found = jnp.matmul(
        x.astype(dtype), linear["kernel"].astype(dtype), preferred_element_type=jnp.float32
    )
    return found + linear["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def _alignments(
    params: Params, images: Encoding, texts: Encoding, dtype: Any
) -> Float[Array, "a c n s"]:
    """A node of length 1 for the wholes, then one for each word of each caption with each picture.

    A word attends to the regions: its products with them, leaky-rectified, scaled so that those
    of a region over the words of the caption have length 1, x 9, softmax over the regions; with a
    the word and b the sum of the regions so weighted, of length 1, its node is unit(W (a - b)^2).
    """
    (a, _, d), (c, length) = images.local.shape, texts.mask.shape
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    regions, words = images.local.astype(dtype), texts.local.astype(dtype)
    logits = product("ard,ed->are", regions, words.reshape(c * length, d))
    logits = jnp.where(logits > 0, logits, LEAK * logits).reshape(a, -1, c, length)
    logits = SMOOTH * l2_normalize(logits * texts.mask[None, None])
    weights = masked_softmax(logits, jnp.asarray(images.mask)[:, :, None, None], axis=1)
    context = product("are,ard->aed", weights.reshape(a, -1, c * length).astype(dtype), regions)
    context = l2_normalize(context).reshape(a, c, length, d)
    squares = (context - texts.local[None]) ** 2
    local = l2_normalize(_apply(params["local"], squares, dtype))
    wholes = (images.pooled[:, None] - texts.pooled[None]) ** 2
    whole = l2_normalize(_apply(params["whole"], wholes, dtype))
    return jnp.concatenate([whole[:, :, None], local], axis=2)


def _real(texts: Encoding) -> Bool[Array, "1 c n"]:
    """Which nodes are real: the wholes', and those of words."""
    return jnp.pad(texts.mask, ((0, 0), (1, 0)), constant_values=True)[None]


class _Filtration(NamedTuple):
    """Statistics of the logits l = w node + b of each caption's nodes over all pictures.

    Attributes:
      mean: E l.
      var: E (l - mean)^2.
      mean_slope: the gradient of the mean by w, E node; 0 of running statistics, as the others.
      var_slope: half the gradient of the variance by w, E (l - mean) node.
      bias_slope: the gradient of the mean by b, 1.
    """

    mean: Float[Array, " c"]
    var: Float[Array, " c"]
    mean_slope: Float[Array, "c s"]
    var_slope: Float[Array, "c s"]
    bias_slope: Float[Array, " c"]


def _measure_filtration(
    params: Params, nodes: Float[Array, "a c n s"], texts: Encoding
) -> _Filtration:
    """The statistics of each caption over these pictures."""
    logits = _apply(params["weight"], nodes, jnp.float32)[..., 0]
    real = jnp.broadcast_to(_real(texts), logits.shape)
    mean = jnp.mean(logits, axis=(0, 2), where=real)
    share = real / jnp.sum(real, axis=(0, 2), keepdims=True)
    centred = logits - mean[None, :, None]
    return _Filtration(
        mean,
        jnp.sum(share * centred**2, axis=(0, 2)),
        jnp.einsum("acn,acns->cs", share, nodes),
        jnp.einsum("acn,acns->cs", share * centred, nodes),
        jnp.ones_like(mean),
    )


def _filtered(
    params: Params, nodes: Float[Array, "a c n s"], texts: Encoding, statistics: Statistics
) -> Float[Array, "a c"]:
    """Scores by attention filtration."""
    weight, known = params["weight"], statistics
    # Zero, with the gradient that the statistics have by this layer.
    zero = jax.tree.map(lambda x: x - jax.lax.stop_gradient(x), weight)
    mean = known.mean + (known.mean_slope @ zero["kernel"])[:, 0] + known.bias_slope * zero["bias"]
    var = known.var + 2 * (known.var_slope @ zero["kernel"])[:, 0]
    mean, var = mean[None, :, None], var[None, :, None]
    logits = _apply(weight, nodes, jnp.float32)[..., 0]
    scale, bias = params["norm"]["scale"], params["norm"]["bias"]
    logits = (logits - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias
    # sigmoid / sum of sigmoids, which stays a share where every sigmoid is 0 in float32.
    weights = masked_softmax(jax.nn.log_sigmoid(logits), _real(texts))
    vector = l2_normalize(jnp.sum(weights[..., None] * nodes, axis=2))
    return jax.nn.sigmoid(_apply(params["score"], vector, jnp.float32)[..., 0])


def _reasoned(
    params: Params,
    nodes: Float[Array, "a c n s"],
    texts: Encoding,
    statistics: Statistics,
    dtype: Any,
) -> Float[Array, "a c"]:
    """Scores by graph reasoning."""
    del statistics
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    where = _real(texts)[:, :, None]
    for number, step in enumerate(params["steps"], 1):
        # Only the wholes' node is read in the end.
        asking = nodes if number < len(params["steps"]) else nodes[:, :, :1]
        related = _apply(step["relate"], asking, dtype).astype(dtype)
        logits = product("acms,acns->acmn", related, nodes.astype(dtype))
        edges = masked_softmax(logits, where)
        nodes = product("acmn,acns->acms", edges.astype(dtype), nodes.astype(dtype))
        nodes = jax.nn.relu(_apply(step["out"], nodes, dtype))
    return jax.nn.sigmoid(_apply(params["score"], nodes[:, :, 0], jnp.float32)[..., 0])
