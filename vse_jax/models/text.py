"""Encoders of sentences: tokens in, `Encoding` out."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vse_jax.encoding import Encoding
from vse_jax.models import recurrent
from vse_jax.models.backbones.feature_map import WordFeatures
from vse_jax.models.dropout import Dropout


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


class GRUReader(nn.Module):
    """Word vectors and a GRU, as in VSE++ (Faghri et al., BMVC 2018, section 4.2).

    Parameters: `words` [vocabulary, width], `gru` and, if bidirectional, `gru_reverse`.

    Attributes:
      vocabulary: number of token ids.
      width: of the word vectors.
      hidden: width of the state.
      bidirectional: average both directions, as in SCAN (Lee et al., ECCV 2018, eq. 4).
      dropout: rate on the word vectors while training; needs the rng "dropout".
      dtype: of the operands of matrix products.
    """

    vocabulary: int
    width: int = 300
    hidden: int = 1024
    bidirectional: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"], *, train: bool
    ) -> WordFeatures:
        """The state after each word, and after the last; `mask` is True for leading tokens only.

        A caption without tokens is zero.
        """
        table = self.param("words", symmetric_uniform(0.1), (self.vocabulary, self.width))
        x = table.at[jnp.where(mask, tokens, self.vocabulary)].get(mode="fill", fill_value=0)
        x = Dropout(self.dropout)(x, train=train)
        lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
        states = GRU(self.hidden, dtype=self.dtype, name="gru")(x, lengths)
        if self.bidirectional:
            backward = GRU(self.hidden, reverse=True, dtype=self.dtype, name="gru_reverse")
            states = recurrent.average(states, backward(x, lengths))
        return WordFeatures(words=states.outputs, pooled=states.last)


class TextEncoder(nn.Module):
    """Sentences, or features of them, to the common space.

    Attributes:
      reader: tokens and their mask -> `WordFeatures`.
      head: parts [b, n, f] and their mask to an encoding.
      parts: what of the reader's features the parts are: the "words", or the "pooled" one alone.
      words_only: whether the tokens that open and close a sentence are no parts of it.
      frozen: whether the reader is used as it is: no gradient, no dropout.
      dropout: share of feature channels dropped in training.
      alter: (key, tokens, mask) -> others, in training; None: as they are.
    """

    reader: nn.Module
    head: nn.Module
    parts: Literal["pooled", "words"] = "pooled"
    words_only: bool = False
    frozen: bool = False
    dropout: float = 0.0
    alter: Callable[..., tuple[Int[Array, "b l"], Bool[Array, "b l"]]] | None = None

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "b l"] | None,
        mask: Bool[Array, "b l"] | None,
        features: Float[Array, "b n f"] | None = None,
        feature_mask: Bool[Array, "b n"] | None = None,
        *,
        train: bool,
    ) -> Encoding:
        """Encodes given features and their mask, or else tokens."""
        if features is None or feature_mask is None:
            if tokens is None or mask is None:
                raise ValueError("neither tokens nor features with their mask were given")
            if train and self.alter is not None:
                tokens, mask = self.alter(self.make_rng("dropout"), tokens, mask)
            read = self.reader(tokens, mask, train=train and not self.frozen)
            features, feature_mask = word_parts(read, mask, self.parts)
            if self.frozen:
                features = jax.lax.stop_gradient(features)
        if self.words_only:
            # The closing token follows the last word: a word has another token behind it.
            features, feature_mask = features[:, 1:-1], feature_mask[:, 2:]
        features = Dropout(self.dropout)(features, train=train)
        return self.head(features, feature_mask, train=train)

    def features(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> tuple[Float[Array, "b n f"], Bool[Array, "b n"]]:
        """What the reader alone makes of sentences, as it is, and which parts are real."""
        return word_parts(self.reader(tokens, mask, train=False), mask, self.parts)


def word_parts(
    read: WordFeatures, mask: Bool[Array, "b l"], parts: Literal["pooled", "words"]
) -> tuple[Float[Array, "b n f"], Bool[Array, "b n"]]:
    """Parts of sentences, float32, and which are real."""
    if parts == "pooled":
        return read.pooled.astype(jnp.float32)[:, None], jnp.ones((mask.shape[0], 1), bool)
    return read.words.astype(jnp.float32), mask
