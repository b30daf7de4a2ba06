"""DVSA's alignment model: words in both directions, and scores of pairs from their fragments.

Source: Karpathy & Fei-Fei, Deep Visual-Semantic Alignments for Generating Image Descriptions, CVPR
2015, section 3.1.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vse_jax.encoding import Encoding
from vse_jax.models import cells, packed
from vse_jax.models.backbones.feature_map import WordFeatures
from vse_jax.models.cells import CellParams
from vse_jax.models.dropout import Dropout
from vse_jax.models.pairwise import KEPT, Comparison, Tile, score
from vse_jax.models.rows_product import rows_product
from vse_jax.models.text import symmetric_uniform


class BRNNReader(nn.Module):
    """Word vectors and a rectified recurrent network in both directions.

    x_t is the word's vector, e_t = f(W_e x_t + b_e), h^f_t = f(e_t + W_f h^f_{t-1} + b_f), h^b_t =
    f(e_t + W_b h^b_{t+1} + b_b), f = max(0, .); `words` are h^f_t + h^b_t, `pooled` their sum. Only
    the words between the token that opens a sentence and the one that closes it are read.

    Parameters: `words` [vocabulary, width], `embed`, `forward`, `backward` and their biases.

    Attributes:
      vocabulary: number of token ids.
      width: of the word vectors.
      hidden: width h of the states.
      dropout: rate on e_t while training, not in the recurrence; needs the rng "dropout".
      dtype: of the operands of matrix products; the states stay float32.
    """

    vocabulary: int
    width: int = 300
    hidden: int = 512
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"], *, train: bool
    ) -> WordFeatures:
        """What is known after each word; zero where none is. `mask` is True for leading tokens."""
        inside = between(mask)
        table = self.param("words", symmetric_uniform(0.1), (self.vocabulary, self.width))
        x = table.at[jnp.where(inside, tokens, self.vocabulary)].get(mode="fill", fill_value=0)
        embed = nn.Dense(
            self.hidden,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            dot_general=rows_product,
            name="embed",
        )
        e = Dropout(self.dropout)(nn.relu(embed(x).astype(jnp.float32)), train=train)
        states = [self._states(name, e, mask) for name in ("forward", "backward")]
        words = states[0] + states[1]
        return WordFeatures(words=words, pooled=jnp.sum(words, axis=1))

    def _states(
        self, name: str, e: Float[Array, "b l h"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b l h"]:
        """The state after each word of one direction; zero outside of the words."""
        # Rectified states neither die out nor explode at first.
        kernel = self.param(name, nn.initializers.orthogonal(), (self.hidden, self.hidden))
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (self.hidden,))
        found = cells.states(
            CellParams(None, kernel, bias),
            jnp.zeros((e.shape[0], self.hidden)),
            e[:, 1:],  # The first token opens the sentence, the last closes it.
            jnp.maximum(jnp.sum(mask, axis=1) - 2, 0),
            lstm=False,
            reverse=name == "backward",
            dtype=self.dtype,
        )
        return jnp.pad(found, ((0, 0), (1, 0), (0, 0)))


class RectifiedHead(nn.Module):
    """Words to the common space: s_t = max(0, W_d h_t + b_d), as they are, of any length.

    Attributes:
      dimension: of the common space.
      dtype: of the operands of matrix products.
    """

    dimension: int = 1024
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, parts: Float[Array, "b n f"], mask: Bool[Array, "b n"], *, train: bool
    ) -> Encoding:
        """The words, and as the whole their sum."""
        del train
        project = nn.Dense(
            self.dimension,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            dot_general=rows_product,
            name="project",
        )
        local = jnp.where(mask[..., None], nn.relu(project(parts).astype(jnp.float32)), 0.0)
        return Encoding(local=local, mask=mask, pooled=jnp.sum(local, axis=1))


class FragmentScore(nn.Module):
    """S_kl: every word of sentence l finds its best region of picture k, the products summed.

    S_kl = sum_{t in l} max_{i in k} v_i . s_t (eq. 8). No parameters.

    Attributes:
      tile: pairs looked at at a time, in the gradient again.
      dtype: of the operands of matrix products.
    """

    tile: Tile = Tile()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Encoding, texts: Encoding, *, train: bool) -> Float[Array, "a c"]:
        """The score of every picture with every sentence; 0 where either is empty."""
        del train
        comparison = Comparison(partial(_best_regions, dtype=self.dtype), None, _summed)
        return score(comparison, (), images, texts, (), self.tile)[0]


def products(
    images: Encoding, texts: Encoding, dtype: DTypeLike = jnp.float32
) -> Float[Array, "a c r l"]:
    """v_i . s_t of every region with every word, -inf of regions that are none."""
    (a, r, d), (c, length) = images.local.shape, texts.mask.shape
    found = jnp.matmul(
        images.local.reshape(a * r, d).astype(dtype),
        texts.local.reshape(c * length, d).T.astype(dtype),
        preferred_element_type=jnp.float32,
    )
    found = found.reshape(a, r, c, length).swapaxes(1, 2)
    return jnp.where(images.mask[:, None, :, None], found, -jnp.inf)


def between(mask: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
    """Which tokens are words: those of a leading mask but its first and its last."""
    return jnp.pad(mask[:, 2:], ((0, 0), (1, 1))) if mask.shape[1] > 1 else jnp.zeros_like(mask)


def _best_regions(
    params: tuple[()], images: Encoding, texts: Encoding, dtype: DTypeLike
) -> Float[Array, "a c l"]:
    """Of each word the largest product with a region; 0 where the picture has none."""
    del params
    return _best(jnp.dtype(dtype), images.local, images.mask, texts.local)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _best(
    dtype: Any,
    regions: Float[Array, "a r d"],
    there: Bool[Array, "a r"],
    words: Float[Array, "c l d"],
) -> Float[Array, "a c l"]:
    """As `_best_regions`. Its gradient needs of the products only which region is best."""
    _, best = _found(dtype, regions, there, words)
    return _where_any(there, best, words)


def _found(
    dtype: Any, regions: Any, there: Any, words: Any
) -> tuple[Float[Array, "a r w"], Float[Array, "a w"]]:
    """Every product of a region with a word of any caption, and of each word the largest."""
    (a, r, d), (c, length, _) = regions.shape, words.shape
    found = packed.dot(regions.reshape(a * r, d), words.reshape(c * length, d).T, 1, dtype)
    found = jnp.where(there[:, :, None], found.reshape(a, r, c * length), -jnp.inf)
    return found, jnp.max(found, axis=1)


def _where_any(there: Any, best: Float[Array, "a w"], words: Any) -> Float[Array, "a c l"]:
    """The largest products, word by word of each caption; 0 where the picture has no region."""
    best = jnp.where(jnp.any(there, axis=1)[:, None], best, 0.0)
    return best.reshape(best.shape[0], *words.shape[:2])


def _best_forward(dtype: Any, regions: Any, there: Any, words: Any) -> tuple[Array, Any]:
    found, best = _found(dtype, regions, there, words)
    r = found.shape[1]
    numbers = jnp.arange(r, dtype=jnp.float32)[None, :, None]
    # `argmax` by reductions that a CPU has vector instructions for.
    which = jnp.min(jnp.where(found == best[:, None], numbers, float(r)), axis=1)
    small = jnp.uint8 if r < 256 else jnp.int32
    which = checkpoint_name(which.astype(small), KEPT)
    return _where_any(there, best, words), (regions, there, words, which)


def _best_backward(dtype: Any, residual: Any, d_best: Float[Array, "a c l"]) -> Any:
    """Gradients of the regions and of the words. Regions that are no word's best are left out."""
    regions, there, words, which = residual
    (a, r, d), (c, length, _) = regions.shape, words.shape
    count, capacity = a * r, packed.whole_blocks(a * r)
    parts, said = regions.reshape(count, d), words.reshape(c * length, d)
    d_best = jnp.where(jnp.any(there, axis=1)[:, None], d_best.reshape(a, c * length), 0.0)
    is_best = which[:, None] == jnp.arange(r, dtype=which.dtype)[None, :, None]
    used = jnp.any(is_best & (d_best != 0)[:, None], axis=2).reshape(count)
    order = jnp.argsort(~used, stable=True)
    numbers = jnp.pad(order, (0, capacity - count), constant_values=count)

    def block(start: Int[Array, ""], size: int, carry: Any) -> Any:
        d_parts, d_said = carry
        some = lax.dynamic_slice_in_dim(numbers, start, size)
        picture, region = jnp.minimum(some // r, a - 1), (some % r).astype(which.dtype)
        own = (which[picture] == region[:, None]) & (some < count)[:, None]
        d_found = jnp.where(own, d_best[picture], 0.0).astype(dtype)
        d_parts = packed.write(d_parts, packed.dot(d_found, said, 1, dtype), start)
        return d_parts, d_said + packed.dot(d_found, packed.take(parts, some), 0, dtype)

    begun = jnp.zeros((capacity, d)), jnp.zeros((c * length, d))
    d_parts, d_said = packed.over_blocks(jnp.sum(used), capacity, block, begun)
    d_regions = d_parts[jnp.argsort(order)]
    return d_regions.reshape(regions.shape), None, d_said.reshape(words.shape)


_best.defvjp(_best_forward, _best_backward)


def _summed(
    params: tuple[()], best: Float[Array, "a c l"], texts: Encoding, statistics: tuple[()]
) -> Float[Array, "a c"]:
    del params, statistics
    return jnp.sum(jnp.where(texts.mask[None], best, 0.0), axis=2)
