"""The triplet hinge with the hardest or with all negatives, in memory linear in the batch.

Each function looks at one direction: `queries` are this device's rows of one side, `keys`
every device's rows of the other.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax.losses.blocks import Block, Rows, blocks, negatives
from vse_jax.models.similarity import Similarity


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
    similarity: Similarity, queries: Rows, keys: Rows, chunk: int
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """For each query the number of its most similar negative, and whether it has any.

    Scores b x chunk at a time, without gradient; of equal scores the first key wins.

    Args:
      similarity: scores queries against keys.
      queries: [b, d].
      keys: [n, d].
      chunk: keys scored at a time; n need not be a multiple of it.
    """
    queries, keys = jax.lax.stop_gradient((queries, keys))

    def step(
        best: tuple[Float[Array, " b"], Int[Array, " b"]], block: Block
    ) -> tuple[tuple[Float[Array, " b"], Int[Array, " b"]], None]:
        block_keys, start = block
        scores = similarity.matrix(queries.vectors, block_keys.vectors)
        scores = jnp.where(negatives(queries, block_keys), scores, -jnp.inf)
        index = jnp.argmax(scores, axis=1)
        score = jnp.take_along_axis(scores, index[:, None], axis=1)[:, 0]
        better = score > best[0]
        return (
            jnp.where(better, score, best[0]),
            jnp.where(better, start + index.astype(jnp.int32), best[1]),
        ), None

    b = queries.ids.shape[0]
    nothing = (jnp.full((b,), -jnp.inf), jnp.zeros((b,), jnp.int32))
    (score, index), _ = jax.lax.scan(step, nothing, blocks(keys, chunk))
    return index, score > -jnp.inf


def hardest_hinge(
    similarity: Similarity,
    queries: Rows,
    keys: Rows,
    positive: Float[Array, " b"],
    margin: float,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, " b"]]:
    """Sum over the queries of [margin + max_j s_ij - s_ii]+, and the hardest scores (LMH).

    The gradient flows through the chosen negatives alone. A query without negatives costs
    nothing and has the score -inf. Source: Faghri et al., VSE++, BMVC 2018, eq. 6.

    Args:
      similarity: scores queries against keys.
      queries: [b, d].
      keys: [n, d].
      positive: s_ii, the score of each query with its own key.
      margin: of the hinge.
      chunk: keys scored at a time while mining.
    """
    index, found = hardest_negatives(similarity, queries, keys, chunk)
    negative = similarity.rows(queries.vectors, jnp.take(keys.vectors, index, axis=0))
    loss = hinge(positive, negative, margin, queries.where & found)
    return loss, jnp.where(found, jax.lax.stop_gradient(negative), -jnp.inf)


def all_hinge(
    similarity: Similarity,
    queries: Rows,
    keys: Rows,
    positive: Float[Array, " b"],
    margin: float,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, " b"]]:
    """Sum over queries and negatives of [margin + s_ij - s_ii]+, and the hardest scores (LSH).

    Scores b x chunk at a time and again in the backward pass, so that memory grows with
    b x chunk. Arguments as for `hardest_hinge`. Source: Kiros et al., 2014, eq. 8; called
    LSH by Gong & Cosma, 2023.
    """

    @jax.checkpoint
    def block_cost(
        queries: Rows, positive: Float[Array, " b"], keys: Rows
    ) -> tuple[Float[Array, ""], Float[Array, " b"]]:
        scores = similarity.matrix(queries.vectors, keys.vectors)
        negative = negatives(queries, keys) & queries.where[:, None]
        cost = hinge(jnp.broadcast_to(positive[:, None], scores.shape), scores, margin, negative)
        return cost, jnp.max(jnp.where(negative, scores, -jnp.inf), axis=1)

    def step(
        carry: tuple[Float[Array, ""], Float[Array, " b"]], block: Block
    ) -> tuple[tuple[Float[Array, ""], Float[Array, " b"]], None]:
        cost, hardest = block_cost(queries, positive, block[0])
        return (carry[0] + cost, jnp.maximum(carry[1], jax.lax.stop_gradient(hardest))), None

    start = (jnp.zeros(()), jnp.full(positive.shape, -jnp.inf))
    (loss, hardest), _ = jax.lax.scan(step, start, blocks(keys, chunk))
    return loss, hardest
