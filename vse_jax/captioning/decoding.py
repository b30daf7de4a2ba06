"""Captions written word by word: the likeliest word of each step, or one drawn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vse_jax.captioning.captions import (
    Captions,
    SpecialTokens,
    Step,
    allowed_words,
    log_probabilities_of,
    positive,
    without_failures,
)


def greedy(step: Step, state: Any, special: SpecialTokens, max_length: int) -> Captions:
    """The caption of each picture, k = 1, that takes the most likely word at each step.

    Args:
      step: the decoder.
      state: to start from, a row for each picture.
      special: its special tokens.
      max_length: most tokens of a caption.

    Raises:
      ValueError: an impossible `special` or `max_length`.
    """

    def choose(_: Array, logits: Array) -> Array:
        return jnp.argmax(logits, axis=1)

    return _write(step, state, choose, special, max_length, 1)


def sample(
    step: Step,
    state: Any,
    key: Array,
    special: SpecialTokens,
    max_length: int,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    samples: int = 1,
) -> Captions:
    """Captions of each picture drawn word by word, k = `samples` of them in the order drawn.

    A word is drawn with a probability in proportion to p(word)^(1 / temperature), from all but the
    banned ones. Log probabilities and scores are those at a temperature of 1 over all words.

    Args:
      step: the decoder.
      state: to start from, a row for each picture.
      key: of the randomness.
      special: its special tokens.
      max_length: most tokens of a caption.
      temperature: 0 is greedy.
      top_k: draw from this many most likely words only; None: from all.
      samples: captions of each picture.

    Raises:
      ValueError: an impossible `special`, `max_length`, `temperature`, `top_k` or `samples`.
    """
    positive("samples", samples)
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature is {temperature}; expected 0 (greedy) or more, and finite")
    if top_k is not None:
        positive("top_k", top_k)

    def choose(time: Array, logits: Array) -> Array:
        values, words = logits, None
        if top_k is not None and top_k < logits.shape[1]:
            values, words = jax.lax.top_k(logits, top_k)
        # The largest of logit / temperature + Gumbel noise, in a form that 0 does not break.
        noise = jax.random.gumbel(jax.random.fold_in(key, time), values.shape)
        drawn = jnp.argmax(values + temperature * noise, axis=1)
        return drawn if words is None else jnp.take_along_axis(words, drawn[:, None], axis=1)[:, 0]

    state = jax.tree.map(lambda leaf: jnp.repeat(leaf, samples, axis=0), state)
    return _write(step, state, choose, special, max_length, samples)


class _Written(NamedTuple):
    """A caption each of n rows, so far; attributes as in `_Beams`."""

    time: Int[Array, ""]
    state: Any
    last: Int[Array, " n"]
    tokens: Int[Array, "n l"]
    log_probabilities: Float[Array, " n"]
    lengths: Int[Array, " n"]
    ended: Bool[Array, " n"]


def _write(
    step: Step,
    state: Any,
    choose: Callable[[Array, Array], Array],
    special: SpecialTokens,
    max_length: int,
    each: int,
) -> Captions:
    """Captions of the state's rows, `each` of a picture, of words that `choose(time, logits)`."""
    allowed = allowed_words(step, state, special, max_length)
    rows = len(jax.tree.leaves(state)[0])

    def goes_on(written: _Written) -> Bool[Array, ""]:
        return (written.time < max_length) & ~jnp.all(written.ended)

    def extend(written: _Written) -> _Written:
        time, state, last, tokens, log_probabilities, lengths, ended = written
        state, logits = step(state, last)
        possible = jnp.where(allowed[None], logits, -jnp.inf)
        word = choose(time, possible).astype(jnp.int32)
        value = jnp.take_along_axis(possible, word[:, None], axis=1)
        added = log_probabilities_of(value, logits)[:, 0]
        here = (jnp.arange(max_length) == time)[None] & ~ended[:, None]
        log_probabilities = jnp.where(ended, log_probabilities, log_probabilities + added)
        return _Written(
            time + 1,
            state,
            word,
            jnp.where(here, word[:, None], tokens),
            log_probabilities,
            jnp.where(ended, lengths, time + 1),
            ended | (word == special.end) | ~(log_probabilities > -jnp.inf),
        )

    written = jax.lax.while_loop(
        goes_on,
        extend,
        _Written(
            jnp.int32(0),
            state,
            jnp.full(rows, special.start, jnp.int32),
            jnp.full((rows, max_length), special.padding, jnp.int32),
            jnp.zeros(rows),
            jnp.zeros(rows, jnp.int32),
            jnp.zeros(rows, bool),
        ),
    )
    log_probabilities = written.log_probabilities.reshape(-1, each)
    return without_failures(
        Captions(
            written.tokens.reshape(-1, each, max_length),
            log_probabilities,
            log_probabilities,
            written.lengths.reshape(-1, each),
        ),
        special.padding,
    )
