"""Beam search for the best captions, of which all pictures and beams make one batch."""

from functools import partial
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


def beam_search(
    step: Step,
    state: Any,
    special: SpecialTokens,
    max_length: int,
    *,
    beams: int,
    n_best: int = 1,
    length_power: float = 0.0,
) -> Captions:
    """The k = `n_best` best captions of each picture that a beam search finds, best first.

    Each step keeps the `beams` best of those kept before that have ended and of all continuations
    of the others. The best have the largest score, log p / length^length_power, where length counts
    <end>. A picture is done once the score of its `n_best`-th ended caption is above
    log p / max_length^length_power of every unended one, and the search stops when all are: log p
    only falls, so that at no length could an unended one come above, and a search to `max_length`
    would return the same.

    Args:
      step: the decoder.
      state: to start from, a row for each picture.
      special: its special tokens.
      max_length: most tokens of a caption.
      beams: captions kept.
      n_best: of them returned; the fewer, the sooner a search can stop.
      length_power: 0 ranks by log probability, which favours the short; 1 by its mean over tokens.

    Raises:
      ValueError: an impossible `special`, `max_length`, `beams`, `n_best` or `length_power`.
    """
    positive("beams", beams)
    if not 1 <= n_best <= beams:
        raise ValueError(f"n_best is {n_best}; expected 1 to {beams}, the number of beams")
    if not 0 <= length_power < np.inf:
        raise ValueError(
            f"length_power is {length_power}; expected 0 (no normalisation) or more, "
            "as below it early stopping would be wrong"
        )
    if length_power * np.log(max(max_length, 1)) >= np.log(np.finfo(np.float32).max):
        raise ValueError(
            f"length_power is {length_power}; {max_length} tokens to this power are no float32"
        )
    allowed = allowed_words(step, state, special, max_length)
    check_beams(beams, int(allowed.sum()) - 1, max_length)
    # By length; a table, as division by it must not rise with the length in the last bit.
    weights = jnp.asarray(np.arange(max_length + 1, dtype=float) ** length_power, jnp.float32)
    extend = partial(_extend, step, beams, allowed, special.end, weights)

    def settled(search: _Beams) -> Bool[Array, " b"]:
        ended = jnp.where(search.ended, _scores(search, weights), -jnp.inf)
        nth = jax.lax.top_k(ended, n_best)[0][:, -1]
        bound = jnp.where(search.ended, -jnp.inf, search.log_probabilities / weights[-1])
        bound = jnp.max(bound, axis=1)
        return (nth > bound) | (bound == -jnp.inf) | search.broken

    def goes_on(search: _Beams) -> Bool[Array, ""]:
        return (search.time < max_length) & ~jnp.all(settled(search))

    def advance(search: _Beams) -> _Beams:
        after = extend(search)
        # What the decoder says of a picture that is done must not depend on the rest of the batch.
        return after._replace(broken=jnp.where(settled(search), search.broken, after.broken))

    # One beam at the start, as equal ones would only displace others.
    search = jax.lax.while_loop(goes_on, advance, extend(_one_beam(state, special, max_length)))
    return _best(search, weights, n_best, special.padding)


class _Beams(NamedTuple):
    """A beam search of j captions of each of b pictures, best first.

    Attributes:
      time: number of tokens of those not ended.
      state: of the decoder, with b x j rows.
      last: the tokens to read next.
      tokens: written so far.
      log_probabilities: of them; -inf where there is no caption.
      lengths: number of tokens.
      ended: whether the last is <end>.
      broken: whether the decoder failed on the picture.
    """

    time: Int[Array, ""]
    state: Any
    last: Int[Array, "b j"]
    tokens: Int[Array, "b j l"]
    log_probabilities: Float[Array, "b j"]
    lengths: Int[Array, "b j"]
    ended: Bool[Array, "b j"]
    broken: Bool[Array, " b"]


def _one_beam(state: Any, special: SpecialTokens, max_length: int) -> _Beams:
    pictures = len(jax.tree.leaves(state)[0])
    return _Beams(
        jnp.int32(0),
        state,
        jnp.full((pictures, 1), special.start, jnp.int32),
        jnp.full((pictures, 1, max_length), special.padding, jnp.int32),
        jnp.zeros((pictures, 1)),
        jnp.zeros((pictures, 1), jnp.int32),
        jnp.zeros((pictures, 1), bool),
        jnp.zeros(pictures, bool),
    )


def _extend(
    step: Step,
    beams: int,
    allowed: Bool[np.ndarray, " v"],
    end: int,
    weights: Float[Array, " l1"],
    search: _Beams,
) -> _Beams:
    """The best `beams` captions out of those there are and their next words."""
    pictures, held = search.last.shape
    state, logits = step(search.state, search.last.reshape(-1))
    # No caption has more successors among the best than there are places.
    count = min(beams, logits.shape[1])
    values, words = jax.lax.top_k(jnp.where(allowed[None], logits, -jnp.inf), count)
    added = log_probabilities_of(values, logits).reshape(pictures, held, count)

    before, ended = search.log_probabilities[..., None], search.ended[..., None]
    failed = jnp.isnan(added) & ~ended & (before > -jnp.inf)
    # An ended caption is its own only successor.
    stays = jnp.where(jnp.arange(count) == 0, 0.0, -jnp.inf)[None, None]
    added = jnp.where(ended, stays, jnp.where(jnp.isnan(added), -jnp.inf, added))
    after = before + added
    lengths = jnp.where(search.ended, search.lengths, search.time + 1)
    scores = (after / weights[lengths][..., None]).reshape(pictures, -1)
    missing = max(beams - held * count, 0)
    scores = jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    _, chosen = jax.lax.top_k(scores, beams)
    real = chosen < held * count
    chosen = jnp.where(real, chosen, 0)
    parent = chosen // count

    def of_parents(values: Array) -> Array:
        index = parent.reshape(parent.shape + (1,) * (values.ndim - 2))
        return jnp.take_along_axis(values, index, axis=1)

    def of_choice(values: Array) -> Array:
        return jnp.take_along_axis(values.reshape(pictures, -1), chosen, axis=1)

    rows = (jnp.arange(pictures)[:, None] * held + parent).reshape(-1)
    was_ended = of_parents(search.ended)
    word = of_choice(words.astype(jnp.int32))
    tokens = of_parents(search.tokens)
    here = (jnp.arange(tokens.shape[-1]) == search.time)[None, None]
    return _Beams(
        search.time + 1,
        jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), state),
        word,
        jnp.where(here & ~was_ended[..., None], word[..., None], tokens),
        jnp.where(real, of_choice(after), -jnp.inf),
        of_parents(lengths),
        was_ended | (word == end),
        search.broken | jnp.any(failed, axis=(1, 2)),
    )


def _scores(search: _Beams, weights: Float[Array, " l1"]) -> Float[Array, "b j"]:
    return search.log_probabilities / weights[search.lengths]


def _best(search: _Beams, weights: Float[Array, " l1"], n_best: int, padding: int) -> Captions:
    """Those ended or cut, best first."""
    complete = search.ended | (search.lengths == search.tokens.shape[-1])
    scores = jnp.where(complete, _scores(search, weights), -jnp.inf)
    scores, chosen = jax.lax.top_k(scores, n_best)
    take = partial(jnp.take_along_axis, indices=chosen, axis=1)
    log_probabilities = jnp.where(scores > -jnp.inf, take(search.log_probabilities), -jnp.inf)
    broken = search.broken[:, None]
    return without_failures(
        Captions(
            jnp.take_along_axis(search.tokens, chosen[..., None], axis=1),
            jnp.where(broken, jnp.nan, log_probabilities),
            jnp.where(broken, jnp.nan, scores),
            take(search.lengths),
        ),
        padding,
    )


def check_beams(beams: int, words: int, max_length: int) -> None:
    """Raises ValueError unless `words`, beside <end>, make as many captions as there are beams."""
    most = 0
    for length in range(max_length):
        most += words**length  # Those that end there.
        if most + words ** (length + 1) >= beams:
            return
    raise ValueError(
        f"{beams} beams, but {words} words beside <end> make only {most + words**max_length} "
        f"captions of at most {max_length} tokens; ask for no more beams than captions"
    )
