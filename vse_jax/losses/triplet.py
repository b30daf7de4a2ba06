"""The triplet hinge with the hardest or with all negatives, in memory linear in the batch.

Each function looks at one direction: `queries` are this device's rows of one side, `keys`
every device's rows of the other.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax.losses.blocks import Block, blocks, negatives
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

    >>> hinge(jnp.array([0.5, 0.9]), jnp.array([0.4, 0.1]), 0.2, jnp.array([True, True]))
    Array(0.1, dtype=float32)
    """
    cost = jnp.maximum(margin + negative - positive, 0.0)
    return jnp.sum(jnp.where(where, cost, 0.0))


def hardestnegatives(
    similarity: Similarity,
    queries: Float[Array, "b d"],
    query_ids: Int[Array, "b"],
    keys: Float[Array, "n d"],
    key_ids: Int[Array, "n"],
    key_where: Bool[Array, "n"],
    chunk: int,
) -> tuple[Int[Array, "b"], Bool[Array, "b"]]:
    """For each query the number of its most similar negative, and whether it has any.

    Scores b x chunk at a time, without gradient; of equal scores the first key wins.

    Args:
      similarity: scores queries against keys.
      queries: [b, d].
      query_ids: id of each query.
      keys: [n, d].
      key_ids: id of each key.
      key_where: False for padding.
      chunk: keys scored at a time; n need not be a multiple of it.
    """
    queries, keys = jax.lax.stop_gradient((queries, keys))

    def step(
        best: tuple[Float[Array, "b"], Int[Array, "b"]], block: Block
    ) -> tuple[tuple[Float[Array, "b"], Int[Array, "b"]], None]:
        block_keys, block_ids, block_where, start = block
        scores = similarity.matrix(queries, block_keys)
        negative = negatives(query_ids, block_ids, block_where)
        scores = jnp.where(negative, scores, -jnp.inf)
        index = jnp.argmax(scores, axis=1)
        score = jnp.take_along_axis(scores, index[:, None], axis=1)[:, 0]
        better = score > best[0]
        return (
            jnp.where(better, score, best[0]),
            jnp.where(better, start + index.astype(jnp.int32), best[1]),
        ), None

    b = queries.shape[0]
    nothing = (jnp.full((b,), -jnp.inf), jnp.zeros((b,), jnp.int32))
    (score, index), _ = jax.lax.scan(step, nothing, blocks(keys, key_ids, key_where, chunk))
    return index, score > -jnp.inf


def hardest_hinge(
    similarity: Similarity,
    queries: Float[Array, "b d"],
    query_ids: Int[Array, "b"],
    positive: Float[Array, "b"],
    query_where: Bool[Array, "b"],
    keys: Float[Array, "n d"],
    key_ids: Int[Array, "n"],
    key_where: Bool[Array, "n"],
    margin: float,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "b"]]:
    """Sum over the queries of [margin + max_j s_ij - s_ii]+, and the hardest scores (LMH).

    The gradient flows through the chosen negatives alone. A query without negatives costs
    nothing and has the score -inf. Source: Faghri et al., VSE++, BMVC 2018, eq. 6.

    Args:
      similarity: scores queries against keys.
      queries: [b, d].
      query_ids: id of each query.
      positive: s_ii, the score of each query with its own key.
      query_where: False for padding.
      keys: [n, d].
      key_ids: id of each key.
      key_where: False for padding.
      margin: of the hinge.
      chunk: keys scored at a time while mining.
    """
    index, found = hardestnegatives(similarity, queries, query_ids, keys, key_ids, key_where, chunk)
    negative = similarity.rows(queries, jnp.take(keys, index, axis=0))
    loss = hinge(positive, negative, margin, query_where & found)
    return loss, jnp.where(found, jax.lax.stop_gradient(negative), -jnp.inf)


def all_hinge(
    similarity: Similarity,
    queries: Float[Array, "b d"],
    query_ids: Int[Array, "b"],
    positive: Float[Array, "b"],
    query_where: Bool[Array, "b"],
    keys: Float[Array, "n d"],
    key_ids: Int[Array, "n"],
    key_where: Bool[Array, "n"],
    margin: float,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "b"]]:
    """Sum over queries and negatives of [margin + s_ij - s_ii]+, and the hardest scores (LSH).

    Scores b x chunk at a time and again in the backward pass, so that memory grows with
    b x chunk. Arguments as for `hardest_hinge`. Source: Kiros et al., 2014, eq. 8; called
    LSH by Gong & Cosma, 2023.
    """

    @jax.checkpoint
    def block_cost(
        queries: Float[Array, "b d"], positive: Float[Array, "b"], block: Block
    ) -> tuple[Float[Array, ""], Float[Array, "b"]]:
        block_keys, block_ids, block_where, _ = block
        scores = similarity.matrix(queries, block_keys)
        negative = negatives(query_ids, block_ids, block_where) & query_where[:, None]
        cost = hinge(jnp.broadcast_to(positive[:, None], scores.shape), scores, margin, negative)
        return cost, jnp.max(jnp.where(negative, scores, -jnp.inf), axis=1)

    def step(
        carry: tuple[Float[Array, ""], Float[Array, "b"]], block: Block
    ) -> tuple[tuple[Float[Array, ""], Float[Array, "b"]], None]:
        cost, hardest = block_cost(queries, positive, block)
        return (carry[0] + cost, jnp.maximum(carry[1], jax.lax.stop_gradient(hardest))), None

    start = (jnp.zeros(()), jnp.full(positive.shape, -jnp.inf))
    (loss, hardest), _ = jax.lax.scan(step, start, blocks(keys, key_ids, key_where, chunk))
    return loss, hardest
