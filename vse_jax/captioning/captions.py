"""Captions out of a decoder that tells, word after word, how likely each next word is.

A decoder is here a function (state, tokens [n]) -> (state, logits [n, v]) whose state is any tree
of arrays with the leading axis n, and a state to start from, a row for each picture.

Everywhere: log probabilities are the decoder's own, log softmax over all of its v words, of every
token of a caption, <end> included. A caption has at most `max_length` tokens; one of so many words
is cut there, without <end>, and its log probability is that of its words alone. Of equal scores the
better is what continues the better caption, then the word of the smaller number.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Step = Callable[[Any, Int[Array, " n"]], tuple[Any, Float[Array, "n v"]]]


class Captions(NamedTuple):
    """Captions of b pictures, k of each.

    Where the decoder's logits were NaN or +inf, so that it says nothing, log probability and score
    are NaN: of all of that picture's captions, or of the drawn one that met them. Where no further
    caption has a probability they are -inf. Neither has tokens.

    Attributes:
      tokens: words and <end>, the padding token behind.
      log_probabilities: sum over the tokens.
      scores: what they are ranked by.
      lengths: number of tokens, <end> included.
    """

    tokens: Int[Array, "b k l"]
    log_probabilities: Float[Array, "b k"]
    scores: Float[Array, "b k"]
    lengths: Int[Array, "b k"]


class SpecialTokens(NamedTuple):
    """The tokens that a search must know.

    Attributes:
      start: read first, by every caption.
      end: the last of a caption.
      padding: put behind it.
      banned: never written, such as padding, start and unknown.
    """

    start: int
    end: int
    padding: int
    banned: tuple[int, ...]


def log_probabilities_of(
    values: Float[Array, "n m"], logits: Float[Array, "n v"]
) -> Float[Array, "n m"]:
    """Of words with these logits out of all; NaN if a logit is NaN or +inf."""
    total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    found = jnp.where(total == -jnp.inf, -jnp.inf, values - total)
    return jnp.where(total < jnp.inf, found, jnp.nan)


def without_failures(captions: Captions, padding: int) -> Captions:
    """The captions, those without a probability without tokens."""
    there = captions.log_probabilities > -jnp.inf
    return captions._replace(
        tokens=jnp.where(there[..., None], captions.tokens, padding),
        lengths=jnp.where(there, captions.lengths, 0),
    )


def allowed_words(
    step: Step, state: Any, special: SpecialTokens, max_length: int
) -> Bool[np.ndarray, " v"]:
    """Which of the decoder's words may be written.

    Raises:
      ValueError: a special token that the decoder does not have, a banned <end>, or a `max_length`
        below 1.
    """
    positive("max_length", max_length)
    if special.end in special.banned:
        raise ValueError(f"<end>, token {special.end}, is among the banned; captions could not end")
    rows = len(jax.tree.leaves(state)[0])
    _, logits = jax.eval_shape(step, state, jax.ShapeDtypeStruct((rows,), jnp.int32))
    vocabulary = logits.shape[1]
    named = {"start": (special.start,), "end": (special.end,), "banned": special.banned}
    for name, tokens in named.items():
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise ValueError(
                    f"special.{name} has token {token}; the decoder's are 0 to {vocabulary - 1}"
                )
    allowed = np.ones(vocabulary, bool)
    allowed[list(special.banned)] = False
    return allowed


def positive(name: str, number: int) -> None:
    """Raises ValueError unless it is a whole number of 1 or more."""
    if not isinstance(number, int | np.integer) or number < 1:
        raise ValueError(f"{name} is {number}; expected 1 or more, a whole number")
