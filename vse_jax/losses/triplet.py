"""The triplet hinge with the hardest or with all negatives, in memory linear in the batch.

Each function looks at one direction: `queries` are this device's rows of one side, `keys`
every device's rows of the other.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax.losses.blocks import Block, Rows, blocks, negatives
from vse_jax.similarity import Similarity

# One margin for all pairs, or one for each: (queries, keys) -> [b, c], from their `meanings`.
# No gradient flows through either.
Margin = float | Float[Array, ""] | Callable[[Rows, Rows], Float[Array, "b c"]]


class Negatives(NamedTuple):
    """What the hinge has seen of each query's negatives, without gradient.

    Attributes:
      hardest: the score of the one that costs most; -inf without negatives.
      margin: its margin.
      total: the sum of the scores of all.
    """

    hardest: Float[Array, " b"]
    margin: Float[Array, " b"]
    total: Float[Array, " b"]


# Of each query the largest cost, where it is, how many negatives there are, what was seen.
_Best = tuple[Float[Array, " b"], Int[Array, " b"], Int[Array, " b"], Negatives]


def hinge(
    positive: Float[Array, "*b"],
    negative: Float[Array, "*b"],
    margin: float | Float[Array, "*#b"],
    where: Bool[Array, "*#b"],
) -> Float[Array, ""]:
    """Sum of [margin + negative - positive]+ over the pairs kept by `where`.

    Scores are similarities (larger is closer). A pair that `where` drops adds nothing to
    the sum or the gradient. Source: Faghri et al., VSE++, BMVC 2018, eq. 5.

    >>> hinge(jnp.array([0.5, 1.0]), jnp.array([0.5, 0.0]), 0.25, jnp.array([True, True]))
    Array(0.25, dtype=float32)
    """
    cost = jnp.maximum(margin + negative - positive, 0.0)
    return jnp.sum(jnp.where(where, cost, 0.0))


def hardest_negatives(
    similarity: Similarity,
    queries: Rows,
    keys: Rows,
    margin: Margin,
    chunk: int,
) -> tuple[Int[Array, " b"], Int[Array, " b"], Negatives]:
    """For each query the number of the negative with the largest margin + score, and its like.

    The second result is how many negatives it has. Scores b x chunk at a time, without gradient;
    of equals the first key wins.

    Args:
      similarity: scores queries against keys.
      queries: [b, d].
      keys: [n, d].
      margin: of the pairs; a single one does not matter to the choice.
      chunk: keys scored at a time; n need not be a multiple of it.
    """
    queries, keys = jax.lax.stop_gradient((queries, keys))
    b = queries.ids.shape[0]

    def step(best: _Best, block: Block) -> tuple[_Best, None]:
        cost, index, count, seen = best
        block_keys, start = block
        where = negatives(queries, block_keys)
        scores = similarity.matrix(queries.vectors, block_keys.vectors)
        scores = jnp.where(where, scores, -jnp.inf)
        margins = _margins(margin, queries, block_keys)
        costs = scores + margins if callable(margin) else scores
        block_index = jnp.argmax(costs, axis=1)

        def chosen(values: Float[Array, "b c"]) -> Float[Array, " b"]:
            return jnp.take_along_axis(values, block_index[:, None], axis=1)[:, 0]

        better = chosen(costs) > cost
        return (
            jnp.where(better, chosen(costs), cost),
            jnp.where(better, start + block_index.astype(jnp.int32), index),
            count + jnp.sum(where, axis=1, dtype=jnp.int32),
            Negatives(
                jnp.where(better, chosen(scores), seen.hardest),
                jnp.where(better, chosen(margins), seen.margin),
                seen.total + _total(scores),
            ),
        ), None

    zeros = jnp.zeros((b,), jnp.int32)
    nothing = jnp.full((b,), -jnp.inf), zeros, zeros, nothing_seen(b)
    (_, index, count, seen), _ = jax.lax.scan(step, nothing, blocks(keys, chunk))
    return index, count, seen


def hardest_hinge(
    similarity: Similarity,
    queries: Rows,
    keys: Rows,
    positive: Float[Array, " b"],
    margin: Margin,
    chunk: int,
) -> tuple[Float[Array, ""], Negatives]:
    """Sum over the queries of max_j [margin_ij + s_ij - s_ii]+, and what was seen (LMH).

    The gradient flows through the chosen negatives alone. A query without negatives costs
    nothing. Source: Faghri et al., VSE++, BMVC 2018, eq. 6; the negative is chosen after
    adding the margin as by Gong & Cosma, 2023.

    Args:
      similarity: scores queries against keys.
      queries: [b, d].
      keys: [n, d].
      positive: s_ii, the score of each query with its own key.
      margin: of the hinge.
      chunk: keys scored at a time while mining.
    """
    index, count, seen = hardest_negatives(similarity, queries, keys, margin, chunk)
    negative = similarity.rows(queries.vectors, jnp.take(keys.vectors, index, axis=0))
    # Counted, for scores that are not numbers must not pass for queries without negatives.
    found = count > 0
    loss = hinge(positive, negative, seen.margin, queries.where & found)
    hardest = jnp.where(found, jax.lax.stop_gradient(negative), -jnp.inf)
    return loss, seen._replace(hardest=hardest)


def all_hinge(
    similarity: Similarity,
    queries: Rows,
    keys: Rows,
    positive: Float[Array, " b"],
    margin: Margin,
    chunk: int,
) -> tuple[Float[Array, ""], Negatives]:
    """Sum over queries and negatives of [margin_ij + s_ij - s_ii]+, and what was seen (LSH).

    Scores b x chunk at a time and again in the backward pass, so that memory grows with
    b x chunk. Arguments as for `hardest_hinge`. Source: Kiros et al., 2014, eq. 8; called
    LSH by Gong & Cosma, 2023.
    """

    @jax.checkpoint
    def block_cost(
        queries: Rows, positive: Float[Array, " b"], keys: Rows
    ) -> tuple[Float[Array, ""], Negatives]:
        scores = _negative_scores(similarity, queries, keys)
        margins = _margins(margin, queries, keys)
        own = jnp.broadcast_to(positive[:, None], scores.shape)
        cost = hinge(own, scores, margins, negatives(queries, keys) & queries.where[:, None])
        costs = scores + margins if callable(margin) else scores
        index = jnp.argmax(costs, axis=1)[:, None]
        hardest, chosen = (
            jnp.take_along_axis(values, index, axis=1)[:, 0] for values in (scores, margins)
        )
        return cost, jax.lax.stop_gradient(Negatives(hardest, chosen, _total(scores)))

    def step(
        carry: tuple[Float[Array, ""], Negatives], block: Block
    ) -> tuple[tuple[Float[Array, ""], Negatives], None]:
        loss, seen = carry
        cost, more = block_cost(queries, positive, block[0])
        better = more.hardest + more.margin > seen.hardest + seen.margin
        return (
            loss + cost,
            Negatives(
                jnp.where(better, more.hardest, seen.hardest),
                jnp.where(better, more.margin, seen.margin),
                seen.total + more.total,
            ),
        ), None

    start = jnp.zeros(()), nothing_seen(positive.shape[0])
    (loss, seen), _ = jax.lax.scan(step, start, blocks(keys, chunk))
    return loss, seen


def _margins(margin: Margin, queries: Rows, keys: Rows) -> Float[Array, "b c"]:
    """The margin of every pair."""
    found = margin(queries, keys) if callable(margin) else jnp.asarray(margin, jnp.float32)
    shape = queries.ids.shape + keys.ids.shape
    return jnp.broadcast_to(jax.lax.stop_gradient(found), shape)


def _negative_scores(similarity: Similarity, queries: Rows, keys: Rows) -> Float[Array, "b c"]:
    """The scores, -inf for what is no negative."""
    scores = similarity.matrix(queries.vectors, keys.vectors)
    return jnp.where(negatives(queries, keys), scores, -jnp.inf)


def _total(scores: Float[Array, "b c"]) -> Float[Array, " b"]:
    """Sum over the negatives of each query, of `_negative_scores`."""
    return jnp.sum(jnp.where(jnp.isneginf(scores), 0.0, scores), axis=1)


def nothing_seen(b: int) -> Negatives:
    """Before any block has been looked at."""
    return Negatives(jnp.full((b,), -jnp.inf), jnp.zeros((b,)), jnp.zeros((b,)))
