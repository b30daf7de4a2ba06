"""The best of all items, by looking at every one of them."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vse_jax.evaluators import blocks
from vse_jax.similarity import Similarity

# Items compared at a time, and queries: what is between them takes 32 MiB.
ITEMS, QUERIES = 16_384, 512


class Found(NamedTuple):
    """The best items of each query, the best first, of equals the first.

    Attributes:
      numbers: of the items; -1 where there are fewer than were asked for.
      scores: larger is closer; minus infinity where there is none.
    """

    numbers: Int[np.ndarray, "q k"]
    scores: Float[np.ndarray, "q k"]


def search(
    similarity: Similarity,
    queries: Float[np.ndarray, "q d"],
    items: Iterable[tuple[int, Float[np.ndarray, "_ d"]]],
    k: int,
) -> Found:
    """The k items that are most similar to each query.

    Memory does not grow with the items: they are compared some thousands at a time.

    Args:
      similarity: of the model.
      queries: their embeddings.
      items: (number of the first, embeddings of it and those after it), with numbers that rise.
      k: how many are wanted.
    """
    if not len(queries):
        return Found(np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
    parts = [_padded(queries[start : start + QUERIES]) for start in range(0, len(queries), QUERIES)]
    best = [_nothing(len(part), k) for part in parts]
    for first, rows in items:
        for start in range(0, len(rows), ITEMS):
            some = rows[start : start + ITEMS]
            held = jnp.asarray(_padded(some, ITEMS))
            there = jnp.arange(len(held)) < len(some)
            best = [
                _better(similarity, known, part, held, there, first + start)
                for known, part in zip(best, parts, strict=True)
            ]
    rows_of = [np.concatenate([np.asarray(one[side]) for one in best]) for side in (0, 1)]
    numbers, scores = (side[: len(queries)] for side in rows_of)
    return Found(np.where(np.isneginf(scores), -1, numbers), scores)


@partial(jax.jit, static_argnums=0)
def _better(
    similarity: Similarity,
    best: tuple[Int[Array, "q k"], Float[Array, "q k"]],
    queries: Float[Array, "q d"],
    items: Float[Array, "n d"],
    there: Bool[Array, " n"],
    first: Int[Array, ""] | int,
) -> tuple[Int[Array, "q k"], Float[Array, "q k"]]:
    """The best of what was the best and of these items."""
    scores = jnp.where(there[None], similarity.matrix(queries, items), -jnp.inf)
    return blocks.merge(*best, scores, jnp.asarray(first), 0)


def _nothing(queries: int, k: int) -> tuple[Int[Array, "q k"], Float[Array, "q k"]]:
    return jnp.full((queries, k), -1, jnp.int32), jnp.full((queries, k), -jnp.inf)


def _padded(rows: Float[np.ndarray, "n d"], to: int | None = None) -> Float[np.ndarray, "m d"]:
    """With zeros behind them up to this many, or to a power of two: few programs serve all."""
    count = to or min(QUERIES, 1 << max(len(rows) - 1, 0).bit_length())
    return np.pad(rows, ((0, count - len(rows)), (0, 0)))
