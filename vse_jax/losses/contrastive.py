"""Cross-entropies over a batch of pairs, in memory linear in the batch.

`cross_entropy` is of picking the right key among all (InfoNCE), `pair_entropy` of telling for every
pair whether it is right (SigLIP).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax.losses.blocks import Block, Rows, blocks, negatives
from vse_jax.similarity import Similarity

# Numbers of keys -> which of them each query looks at.
Among = Callable[[Int[Array, " c"]], Bool[Array, "b c"]]
Scalar = float | Float[Array, ""]
# Stands for a key that is no negative; finite, so that its gradient is.
_NEVER = -1e30


def cross_entropy(
    similarity: Similarity,
    queries: Rows,
    keys: Rows,
    positive: Float[Array, " b"],
    temperature: Scalar,
    chunk: int,
    among: Among | None = None,
) -> Float[Array, ""]:
    """Sum over the queries of log(e^(s_ii/t) + sum_j e^(s_ij/t)) - s_ii/t, j the negatives.

    Scores b x chunk at a time and again in the backward pass. Source: van den Oord et al.,
    2018, eq. 4 (InfoNCE); Radford et al., CLIP, ICML 2021, section 2.3.

    Args:
      similarity: scores queries against keys.
      queries: [b, d].
      keys: [n, d].
      positive: s_ii, the score of each query with its own key.
      temperature: t.
      chunk: keys scored at a time.
      among: which negatives are looked at; None: all.
    """
    total = log_total(similarity, queries, keys, temperature, chunk, among)
    return picking_cost(positive / temperature, total, queries.where)


def picking_cost(
    own: Float[Array, " b"], total: Float[Array, " b"], where: Bool[Array, " b"]
) -> Float[Array, ""]:
    """Sum of log(e^own + e^total) - own, the log of e^total being of all negatives' sum."""
    return jnp.sum(jnp.where(where, jnp.logaddexp(own, total) - own, 0.0))


def log_total(
    similarity: Similarity,
    queries: Rows,
    keys: Rows,
    temperature: Scalar,
    chunk: int,
    among: Among | None = None,
) -> Float[Array, " b"]:
    """log sum_j e^(s_ij/t) over the negatives j of each query; hugely below 0 where none is."""

    @jax.checkpoint
    def block_total(queries: Rows, block: Block, temperature: Scalar) -> Float[Array, " b"]:
        keys, start = block
        where = negatives(queries, keys)
        if among is not None:
            where &= among(start + jnp.arange(keys.ids.shape[0]))
        scores = similarity.matrix(queries.vectors, keys.vectors) / temperature
        return jax.nn.logsumexp(jnp.where(where, scores, _NEVER), axis=1)

    def step(total: Float[Array, " b"], block: Block) -> tuple[Float[Array, " b"], None]:
        return jnp.logaddexp(total, block_total(queries, block, temperature)), None

    nothing = jnp.full(queries.where.shape, _NEVER)
    return jax.lax.scan(step, nothing, blocks(keys, chunk))[0]


def pair_entropy(
    similarity: Similarity,
    queries: Rows,
    keys: Rows,
    positive: Float[Array, " b"],
    temperature: Scalar,
    bias: Scalar,
    chunk: int,
) -> Float[Array, ""]:
    """Sum over the queries of -log g(s_ii/t + c) - sum_j log g(-s_ij/t - c), j the negatives.

    g is the logistic function. Scores b x chunk at a time and again in the backward pass. Source:
    Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, section 3.2.

    Args:
      similarity: scores queries against keys.
      queries: [b, d].
      keys: [n, d].
      positive: s_ii, the score of each query with its own key.
      temperature: t.
      bias: c.
      chunk: keys scored at a time.
    """
    total = wrong_total(similarity, queries, keys, temperature, bias, chunk)
    return telling_cost(positive / temperature + bias, total, queries.where)


def telling_cost(
    own: Float[Array, " b"], total: Float[Array, " b"], where: Bool[Array, " b"]
) -> Float[Array, ""]:
    """Sum of -log g(own) + total, the cost of all negatives."""
    return jnp.sum(jnp.where(where, jax.nn.softplus(-own) + total, 0.0))


def wrong_total(
    similarity: Similarity, queries: Rows, keys: Rows, temperature: Scalar, bias: Scalar, chunk: int
) -> Float[Array, " b"]:
    """sum_j -log g(-s_ij/t - c) over the negatives j of each query."""

    @jax.checkpoint
    def block_total(
        queries: Rows, keys: Rows, temperature: Scalar, bias: Scalar
    ) -> Float[Array, " b"]:
        logits = similarity.matrix(queries.vectors, keys.vectors) / temperature + bias
        return jnp.sum(jnp.where(negatives(queries, keys), jax.nn.softplus(logits), 0.0), axis=1)

    def step(total: Float[Array, " b"], block: Block) -> tuple[Float[Array, " b"], None]:
        return total + block_total(queries, block[0], temperature, bias), None

    return jax.lax.scan(step, jnp.zeros(queries.where.shape), blocks(keys, chunk))[0]
