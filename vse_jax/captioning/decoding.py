"""Captions out of a decoder that tells, word after word, how likely each next word is.

A decoder is here a function (state, tokens [n]) -> (state, logits [n, v]) whose state is any tree of
arrays with the leading axis n, and a state to start from, a row for each picture.

Everywhere: log probabilities are the decoder's own, log softmax over all of its v words, of every
token of a caption, <end> included. A caption has at most `max_length` tokens; one whose last
permitted token is not <end> is cut there, and its log probability is that of its words alone. Equal
scores are ranked by the rank of what they continue, then by the number of the word.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Step = Callable[[Any, Int[Array, " n"]], tuple[Any, Float[Array, "n v"]]]


class Captions(NamedTuple):
    """Captions of b pictures, k of each.

    Where the decoder's logits were NaN or infinite, so that it says nothing, the log probabilities
    and scores of all of that picture's captions are NaN; where no further caption has a
    probability, they are -inf. Neither has tokens.

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
      ValueError: an impossible `special`, `max_length`, `top_k` or `samples`.
    """
    _positive("samples", samples)
    if top_k is not None:
        _positive("top_k", top_k)

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

    Each step keeps the `beams` best of all captions, ended or not, that continue those kept before;
    an ended one keeps its score and has a place only while it is among the best. Best is by score =
    log p / length^length_power, length counting <end>. A picture is done, and the search stops when
    all are, once the score of its `n_best`-th ended caption is above log p / max_length^length_power
    of every unended one: as log p only falls, those could not come above it in any length, and what
    is returned is what the search to `max_length` would return.

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
    _positive("beams", beams)
    if not 1 <= n_best <= beams:
        raise ValueError(f"n_best is {n_best}; expected 1 to {beams}, the number of beams")
    if not 0 <= length_power < np.inf:
        raise ValueError(
            f"length_power is {length_power}; expected 0 (no normalisation) or more, "
            "as below it early stopping would be wrong"
        )
    allowed = _allowed(step, state, special, max_length)
    _check_beams(beams, int(allowed.sum()) - 1, max_length)
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

    # One beam at the start, as equal ones would only displace others.
    search = jax.lax.while_loop(goes_on, extend, extend(_one_beam(state, special, max_length)))
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
    added = _log_probabilities(values, logits).reshape(pictures, held, count)

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
    return _without_failures(
        Captions(
            jnp.take_along_axis(search.tokens, chosen[..., None], axis=1),
            jnp.where(broken, jnp.nan, log_probabilities),
            jnp.where(broken, jnp.nan, scores),
            take(search.lengths),
        ),
        padding,
    )


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
    allowed = _allowed(step, state, special, max_length)
    rows = len(jax.tree.leaves(state)[0])

    def goes_on(written: _Written) -> Bool[Array, ""]:
        return (written.time < max_length) & ~jnp.all(written.ended)

    def extend(written: _Written) -> _Written:
        time, state, last, tokens, log_probabilities, lengths, ended = written
        state, logits = step(state, last)
        possible = jnp.where(allowed[None], logits, -jnp.inf)
        word = choose(time, possible).astype(jnp.int32)
        value = jnp.take_along_axis(possible, word[:, None], axis=1)
        added = _log_probabilities(value, logits)[:, 0]
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
    return _without_failures(
        Captions(
            written.tokens.reshape(-1, each, max_length),
            log_probabilities,
            log_probabilities,
            written.lengths.reshape(-1, each),
        ),
        special.padding,
    )


def _log_probabilities(
    values: Float[Array, "n m"], logits: Float[Array, "n v"]
) -> Float[Array, "n m"]:
    """Of words with these logits out of all; NaN if a logit is NaN or +inf."""
    total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    found = jnp.where(total == -jnp.inf, -jnp.inf, values - total)
    return jnp.where(total < jnp.inf, found, jnp.nan)


def _without_failures(captions: Captions, padding: int) -> Captions:
    """The captions, those without a probability without tokens."""
    there = captions.log_probabilities > -jnp.inf
    return captions._replace(
        tokens=jnp.where(there[..., None], captions.tokens, padding),
        lengths=jnp.where(there, captions.lengths, 0),
    )


def _allowed(
    step: Step, state: Any, special: SpecialTokens, max_length: int
) -> Bool[np.ndarray, " v"]:
    """Which words may be written."""
    _positive("max_length", max_length)
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


def _check_beams(beams: int, words: int, max_length: int) -> None:
    """Raises ValueError unless there are as many captions as beams."""
    most = 0
    for length in range(max_length):
        most += words**length  # Those that end there.
        if most + words ** (length + 1) >= beams:
            return
    raise ValueError(
        f"{beams} beams, but {words} words beside <end> make only {most + words**max_length} "
        f"captions of at most {max_length} tokens; ask for no more beams than captions"
    )


def _positive(name: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{name} is {number}; expected 1 or more")
