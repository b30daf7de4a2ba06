"""The cross-entropy of picking the right key among all, in memory linear in the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax.losses.blocks import Block, Rows, blocks, negatives
from vse_jax.similarity import Similarity

# Numbers of keys -> which of them each query looks at.
Among = Callable[[Int[Array, " c"]], Bool[Array, "b c"]]
# Stands for a key that is no negative; finite, so that its gradient is.
_NEVER = -1e30


def cross_entropy(
    similarity: Similarity,
    queries: Rows,
    keys: Rows,
    positive: Float[Array, " b"],
    temperature: float,
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

    @jax.checkpoint
    def block_total(queries: Rows, block: Block) -> Float[Array, " b"]:
        keys, start = block
        where = negatives(queries, keys)
        if among is not None:
            where &= among(start + jnp.arange(keys.ids.shape[0]))
        scores = similarity.matrix(queries.vectors, keys.vectors) / temperature
        return jax.nn.logsumexp(jnp.where(where, scores, _NEVER), axis=1)

    def step(total: Float[Array, " b"], block: Block) -> tuple[Float[Array, " b"], None]:
        return jnp.logaddexp(total, block_total(queries, block)), None

    own = positive / temperature
    total, _ = jax.lax.scan(step, own, blocks(keys, chunk))
    return jnp.sum(jnp.where(queries.where, total - own, 0.0))
