"""The best of all items, by looking at every one of them."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Shaped

from vse_jax.evaluators import blocks
from vse_jax.similarity import Similarity

# Items compared at a time, and queries: what is between them takes 32 MiB.
ITEMS, QUERIES = 16_384, 512
# Above so many queries their number is rounded up to a multiple of it, below to a power of two: few
# programs serve all, and of little that is computed nothing is asked.
ROUNDED = 32


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
    return best(Partial(similarity.matrix), queries, items, k)


def best(
    score: Partial,
    queries: Float[np.ndarray, "q d"],
    items: Iterable[tuple[int, Shaped[np.ndarray, "_ w"]]],
    k: int,
) -> Found:
    """`search` by any score of items that are rows of numbers.

    Args:
      score: (queries [q, d], items [n, w]) -> [q, n], larger is closer; what it carries are
        arguments of the compiled program.
      queries: their embeddings.
      items: as of `search`.
      k: how many are wanted.
    """
    if not len(queries):
        return Found(np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
    parts = [_padded(queries[start : start + QUERIES]) for start in range(0, len(queries), QUERIES)]
    known = [_nothing(len(part), k) for part in parts]
    for first, rows in items:
        for start in range(0, len(rows), ITEMS):
            some = rows[start : start + ITEMS]
            # Shards never change, so that they need no copy, which takes longer than to compare.
            held = jax.device_put(_padded(some, ITEMS), may_alias=True)
            there = jnp.arange(len(held)) < len(some)
            before, known = (
                known,
                [
                    _better(score, one, part, held, there, first + start)
                    for one, part in zip(known, parts, strict=True)
                ],
            )
            jax.block_until_ready(before)  # else all items wait in memory for their turn
    rows_of = [np.concatenate([np.asarray(one[side]) for one in known]) for side in (0, 1)]
    numbers, scores = (side[: len(queries)] for side in rows_of)
    return Found(np.where(np.isneginf(scores), -1, numbers), scores)


@jax.jit
def _better(
    score: Partial,
    known: tuple[Int[Array, "q k"], Float[Array, "q k"]],
    queries: Float[Array, "q d"],
    items: Shaped[Array, "n w"],
    there: Bool[Array, " n"],
    first: Int[Array, ""] | int,
) -> tuple[Int[Array, "q k"], Float[Array, "q k"]]:
    """The best of what was the best and of these items."""
    scores = jnp.where(there[None], score(queries, items), -jnp.inf)
    return blocks.merge(*known, scores, jnp.asarray(first), 0)


def _nothing(queries: int, k: int) -> tuple[Int[Array, "q k"], Float[Array, "q k"]]:
    return jnp.full((queries, k), -1, jnp.int32), jnp.full((queries, k), -jnp.inf)


def _padded(rows: Shaped[np.ndarray, "n d"], to: int | None = None) -> Shaped[np.ndarray, "m d"]:
    """With zeros behind them up to this many, or as `ROUNDED` says."""
    power = 1 << max(len(rows) - 1, 0).bit_length()
    count = to or min(QUERIES, power, -(-len(rows) // ROUNDED) * ROUNDED)
    # A whole one is not copied: of many items that would be most of the time.
    return rows if count == len(rows) else np.pad(rows, ((0, count - len(rows)), (0, 0)))
