"""Encoders of sentences: tokens in, `Encoding` out."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vse_jax.encoding import Encoding
from vse_jax.models import recurrent
from vse_jax.models.normalize import l2_normalize

POOLINGS = ("last", "max")


def symmetric_uniform(bound: float) -> nn.initializers.Initializer:
    """An initializer drawing from U(-bound, bound)."""

    def init(key: Array, shape: Any, dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class GRU(nn.Module):
    """One direction of a GRU; parameters named and shaped as PyTorch's `nn.GRU` (without `_l0`).

    Attributes:
      hidden: width h of the state.
      reverse: read captions from their last token to their first.
      dtype: of the operands of matrix products; state and gradients stay float32.
    """

    hidden: int
    reverse: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "b l e"], lengths: Int[Array, " b"]
    ) -> recurrent.GRUResult:
        """States after each of the first `lengths` inputs; every weight starts in U(+-1/sqrt h)."""
        init = symmetric_uniform(self.hidden**-0.5)
        gates = 3 * self.hidden
        params = recurrent.GRUParams(
            weight_ih=self.param("weight_ih", init, (gates, inputs.shape[-1])),
            weight_hh=self.param("weight_hh", init, (gates, self.hidden)),
            bias_ih=self.param("bias_ih", init, (gates,)),
            bias_hh=self.param("bias_hh", init, (gates,)),
        )
        return recurrent.gru(params, inputs, lengths, reverse=self.reverse, dtype=self.dtype)


class GRUTextEncoder(nn.Module):
    """Word vectors and a GRU, as in VSE++ (Faghri et al., BMVC 2018, section 4.2).

    Parameters: `words` [vocabulary, words], `gru` and, if bidirectional, `gru_reverse`.

    Attributes:
      vocabulary: number of token ids.
      words: width of the word vectors.
      embedding: width of the state and of the common space.
      bidirectional: average both directions, as in SCAN (Lee et al., ECCV 2018, eq. 4).
      dropout: rate on the word vectors while training; needs the rng "dropout".
      pooling: how one vector comes of the words: "last", the state after the last token, or
        "max", each channel's largest value over the words.
      normalize: whether embeddings are scaled to length 1.
      dtype: of the operands of matrix products.
    """

    vocabulary: int
    words: int = 300
    embedding: int = 1024
    bidirectional: bool = False
    dropout: float = 0.0
    pooling: str = "last"
    normalize: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"], *, train: bool
    ) -> Encoding:
        """The captions' words and wholes; `mask` is True for leading tokens only.

        A caption without tokens is zero. Raises ValueError for an unknown pooling.
        """
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling {self.pooling!r} is unknown; known: {', '.join(POOLINGS)}")
        table = self.param("words", symmetric_uniform(0.1), (self.vocabulary, self.words))
        x = table.at[jnp.where(mask, tokens, self.vocabulary)].get(mode="fill", fill_value=0)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
        states = GRU(self.embedding, dtype=self.dtype, name="gru")(x, lengths)
        if self.bidirectional:
            backward = GRU(self.embedding, reverse=True, dtype=self.dtype, name="gru_reverse")
            states = recurrent.average(states, backward(x, lengths))
        whole = states.last
        if self.pooling == "max":
            highest = jnp.max(states.outputs, axis=1, where=mask[:, :, None], initial=-jnp.inf)
            whole = jnp.where(lengths[:, None] > 0, highest, 0.0)
        local, pooled = states.outputs, whole
        if self.normalize:
            local, pooled = l2_normalize(local), l2_normalize(pooled)
        return Encoding(local=local, mask=mask, pooled=pooled)
