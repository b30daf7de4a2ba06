"""DVSA's alignment model: words in both directions, and scores of pairs from their fragments.

Source: Karpathy & Fei-Fei, Deep Visual-Semantic Alignments for Generating Image Descriptions, CVPR
2015, section 3.1.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vse_jax.encoding import Encoding
from vse_jax.models.backbones.feature_map import WordFeatures
from vse_jax.models.dropout import Dropout
from vse_jax.models.pairwise import Comparison, Tile, score
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
            name="embed",
        )
        e = Dropout(self.dropout)(nn.relu(embed(x).astype(jnp.float32)), train=train)
        states = [self._states(name, e, inside) for name in ("forward", "backward")]
        words = jnp.where(inside[..., None], states[0] + states[1], 0.0)
        return WordFeatures(words=words, pooled=jnp.sum(words, axis=1))

    def _states(
        self, name: str, e: Float[Array, "b l h"], inside: Bool[Array, "b l"]
    ) -> Float[Array, "b l h"]:
        """The state after each word of one direction; outside of the words it stays as it is."""
        # Rectified states neither die out nor explode at first.
        kernel = self.param(name, nn.initializers.orthogonal(), (self.hidden, self.hidden))
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (self.hidden,))
        kernel = kernel.astype(self.dtype)

        def run(h: Array, e: Array, real: Array) -> Array:
            product = jnp.matmul(h.astype(self.dtype), kernel, preferred_element_type=jnp.float32)
            return jnp.where(real[:, None], nn.relu(e + product + bias[None]), h)

        def step(h: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            e, real = inputs
            # Behind the longest sentence of the batch nothing is computed.
            h = jax.lax.cond(jnp.any(real), run, lambda h, *_: h, h, e, real)
            return h, h

        start = jnp.zeros((e.shape[0], self.hidden))
        inputs = (e.swapaxes(0, 1), inside.T)
        _, states = jax.lax.scan(step, start, inputs, reverse=name == "backward")
        return states.swapaxes(0, 1)


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
    best = jnp.max(products(images, texts, dtype), axis=2)
    return jnp.where(jnp.any(images.mask, axis=1)[:, None, None], best, 0.0)


def _summed(
    params: tuple[()], best: Float[Array, "a c l"], texts: Encoding, statistics: tuple[()]
) -> Float[Array, "a c"]:
    del params, statistics
    return jnp.sum(jnp.where(texts.mask[None], best, 0.0), axis=2)
