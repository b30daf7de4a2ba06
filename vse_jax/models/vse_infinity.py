"""The heads of VSE-infinity: an embedding of each part, pooled by the generalized operator.

Source: Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding", CVPR 2021,
section 3.3, and the released code (`lib/encoders.py`, `lib/datasets/image_caption.py`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vse_jax.encoding import Encoding
from vse_jax.models.gpo import GPO
from vse_jax.models.masked import MaskedBatchNorm
from vse_jax.models.normalize import l2_normalize
from vse_jax.models.rows_product import rows_product
from vse_jax.models.text import symmetric_uniform


class VSEInfinityImage(nn.Module):
    """Regions or grid cells to the common space: linear + MLP for each part, GPO, length 1.

    part -> W x + MLP(x), MLP = linear, batch norm over all real parts, rectifier, linear. In
    training a share of the parts is dropped first, so that sets of many sizes are met; they count
    neither in the batch norm nor in the pooling, and the returned mask is without them.

    Parameters: `project`, `hidden`, `norm`, `out` and `pool`; statistics: `norm`.

    Attributes:
      dimension: of the common space; the MLP's hidden layer is half as wide.
      drop: share of the parts dropped in training, one always kept; needs the rng "dropout".
      normalize: whether embeddings are scaled to length 1.
      momentum: of the running batch statistics.
      dtype: of the operands of matrix products.
      axis_name: mapped axis over which batch statistics are shared; None for this device's own.
    """

    dimension: int = 1024
    drop: float = 0.2
    normalize: bool = True
    momentum: float = 0.9
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, parts: Float[Array, "b n f"], mask: Bool[Array, "b n"], *, train: bool
    ) -> Encoding:
        """The parts and their pooled vector; zero without parts."""
        if train and self.drop > 0:
            mask = dropped(self.make_rng("dropout"), mask, self.drop)
        project = nn.Dense(
            self.dimension,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            dot_general=rows_product,
            name="project",
        )
        hidden = _linear(self.dimension // 2, parts.shape[-1], self.dtype, "hidden")(parts)
        norm = MaskedBatchNorm(self.momentum, axis_name=self.axis_name, name="norm")
        hidden = nn.relu(norm(hidden, mask, train=train))
        out = _linear(self.dimension, hidden.shape[-1], self.dtype, "out")
        embedded = project(parts).astype(jnp.float32) + out(hidden).astype(jnp.float32)
        return _pooled(embedded, mask, self.normalize)


class VSEInfinityText(nn.Module):
    """Word vectors in context to the common space: linear where asked for, GPO, length 1.

    The words are a GRU's states as they are (not scaled to length 1) or a BERT's outputs.

    Parameters: `project`, if any, and `pool`.

    Attributes:
      dimension: of the common space.
      project: whether words are projected, for those of another width (BERT).
      normalize: whether embeddings are scaled to length 1.
      dtype: of the operands of matrix products.
    """

    dimension: int = 1024
    project: bool = False
    normalize: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, parts: Float[Array, "b l f"], mask: Bool[Array, "b l"], *, train: bool
    ) -> Encoding:
        """The words and their pooled vector; zero without words.

        Raises ValueError for words of another width than the space's that are not projected.
        """
        del train
        width = parts.shape[-1]
        if self.project:
            parts = _linear(self.dimension, width, self.dtype, "project")(parts)
        elif width != self.dimension:
            raise ValueError(
                f"words of width {width} do not fit a space of {self.dimension}: set project=True, "
                "or the dimension to theirs"
            )
        return _pooled(parts.astype(jnp.float32), mask, self.normalize)


def _linear(width: int, inputs: int, dtype: DTypeLike, name: str) -> nn.Dense:
    """A linear layer as PyTorch's starts by default: all in U(+-1/sqrt inputs)."""
    init = symmetric_uniform(inputs**-0.5)
    return nn.Dense(
        width,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        dot_general=rows_product,
        name=name,
    )


def _pooled(embedded: Float[Array, "b n d"], mask: Bool[Array, "b n"], normalize: bool) -> Encoding:
    pooled = GPO(name="pool")(embedded, mask)
    local = jnp.where(mask[..., None], embedded, 0.0)
    if normalize:
        local, pooled = l2_normalize(local), l2_normalize(pooled)
    return Encoding(local=local, mask=mask, pooled=pooled)


def dropped(key: Array, mask: Bool[Array, "b n"], rate: float) -> Bool[Array, "b n"]:
    """The mask with each of its entries dropped with probability `rate`, but never all of a row."""
    chance = jnp.where(mask, jax.random.uniform(key, mask.shape), -1.0)
    # Whenever any other stays, the one of the highest draw does.
    best = chance == jnp.max(chance, axis=1, keepdims=True)
    return mask & ((chance >= rate) | best)


def altered_tokens(
    key: Array,
    tokens: Int[Array, "b l"],
    mask: Bool[Array, "b l"],
    *,
    vocabulary: int,
    mask_token: int,
    special: tuple[int, ...] = (),
    rate: float = 0.2,
) -> tuple[Int[Array, "b l"], Bool[Array, "b l"]]:
    """Captions with some tokens altered, for training: (tokens, mask).

    Each token is altered with probability `rate`: half of these become `mask_token`, a tenth any
    token of the vocabulary, and the others are deleted: later tokens move up, so that the mask
    stays a prefix. If all of a caption would go, none is deleted. Behind the last token are zeros.
    Tokens in `special` are never altered. The released code spares BERT's [CLS] and [SEP], but
    none of the GRU's, <start> and <end> among them; there it draws once for each word, here for
    each token.

    Args:
      key: of the draws; the same key alters in the same way.
      tokens: of the captions, each from its first position on.
      mask: which are real.
      vocabulary: number of token ids.
      mask_token: what stands for a masked word.
      special: ids of the tokens never altered.
      rate: share of the other tokens altered.
    """
    draw, other = jax.random.split(key)
    chance = jax.random.uniform(draw, tokens.shape) / rate
    if special:
        chance = jnp.where(jnp.isin(tokens, jnp.asarray(special)), jnp.inf, chance)
    random = jax.random.randint(other, tokens.shape, 0, vocabulary, tokens.dtype)
    altered = jnp.where(chance < 0.5, mask_token, jnp.where(chance < 0.6, random, tokens))
    kept = mask & ((chance < 0.6) | (chance >= 1.0))
    kept = jnp.where(jnp.any(kept, axis=1, keepdims=True), kept, mask)
    order = jnp.argsort(~kept, axis=1, stable=True)
    mask = jnp.arange(mask.shape[1])[None] < jnp.sum(kept, axis=1, keepdims=True)
    return jnp.where(mask, jnp.take_along_axis(altered, order, axis=1), 0), mask
