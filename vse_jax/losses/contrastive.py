"""The cross-entropy of picking the right key among all, in memory linear in the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax.losses.blocks import Block, blocks, negatives
from vse_jax.models.similarity import Similarity

# Stands for a key that is no negative; finite, so that its gradient is.
_NEVER = -1e30


def cross_entropy(
    similarity: Similarity,
    queries: Float[Array, "b d"],
    query_ids: Int[Array, "b"],
    positive: Float[Array, "b"],
    query_where: Bool[Array, "b"],
    keys: Float[Array, "n d"],
    key_ids: Int[Array, "n"],
    key_where: Bool[Array, "n"],
    temperature: float,
    chunk: int,
) -> Float[Array, ""]:
    """Sum over the queries of log(e^(s_ii/t) + sum_j e^(s_ij/t)) - s_ii/t, j the negatives.

    Scores b x chunk at a time and again in the backward pass. Source: van den Oord et al.,
    2018, eq. 4 (InfoNCE); Radford et al., CLIP, ICML 2021, section 2.3.

    Args:
      similarity: scores queries against keys.
      queries: [b, d].
      query_ids: id of each query.
      positive: s_ii, the score of each query with its own key.
      query_where: False for padding.
      keys: [n, d].
      key_ids: id of each key.
      key_where: False for padding.
      temperature: t.
      chunk: keys scored at a time.
    """

    @jax.checkpoint
    def block_total(queries: Float[Array, "b d"], block: Block) -> Float[Array, "b"]:
        block_keys, block_ids, block_where, _ = block
        scores = similarity.matrix(queries, block_keys) / temperature
        negative = negatives(query_ids, block_ids, block_where)
        return jax.nn.logsumexp(jnp.where(negative, scores, _NEVER), axis=1)

    def step(total: Float[Array, "b"], block: Block) -> tuple[Float[Array, "b"], None]:
        return jnp.logaddexp(total, block_total(queries, block)), None

    own = positive / temperature
    total, _ = jax.lax.scan(step, own, blocks(keys, key_ids, key_where, chunk))
    return jnp.sum(jnp.where(query_where, total - own, 0.0))
