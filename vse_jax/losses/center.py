"""Centers of concepts: where the pictures and captions of one concept should lie together."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax.losses.blocks import Block, Rows, blocks


def center_loss(
    embeddings: Float[Array, "b d"], centers: Float[Array, "b d"], where: Bool[Array, " b"]
) -> Float[Array, ""]:
    """Sum over the rows of 1/2 |e_i - c_i|^2, c_i the center of row i's concept.

    No gradient flows into the centers, and none comes of rows that `where` drops. Source: Wen
    et al., A Discriminative Feature Learning Approach, ECCV 2016, eq. 2.
    """
    squares = jnp.sum((embeddings - jax.lax.stop_gradient(centers)) ** 2, axis=1)
    return 0.5 * jnp.sum(jnp.where(where, squares, 0.0))


def concept_sums(
    queries: Int[Array, " b"], keys: Rows, chunk: int
) -> tuple[Float[Array, "b d"], Float[Array, " b"]]:
    """For each id the sum of the vectors of the rows that have it, and how many these are.

    By products with 0 and 1 rather than by scattering, so that every device gets the same
    bits; b x chunk of them at a time.

    Args:
      queries: ids.
      keys: [n, d]; rows that do not count are left out.
      chunk: keys looked at at a time.
    """

    def step(
        carry: tuple[Float[Array, "b d"], Float[Array, " b"]], block: Block
    ) -> tuple[tuple[Float[Array, "b d"], Float[Array, " b"]], None]:
        rows, _ = block
        same = (queries[:, None] == rows.ids[None, :]) & rows.where[None, :]
        same = same.astype(jnp.float32)
        sums = jnp.matmul(same, rows.vectors, precision=jax.lax.Precision.HIGHEST)
        return (carry[0] + sums, carry[1] + jnp.sum(same, axis=1)), None

    b, d = queries.shape[0], keys.vectors.shape[1]
    start = jnp.zeros((b, d)), jnp.zeros((b,))
    (sums, counts), _ = jax.lax.scan(step, start, blocks(keys, chunk))
    return sums, counts


def moved_centers(
    centers: Float[Array, "b d"],
    sums: Float[Array, "b d"],
    counts: Float[Array, " b"],
    alpha: float,
) -> Float[Array, "b d"]:
    """c - alpha * sum_k (c - e_k) / (1 + n), over the n embeddings e_k of each concept.

    Source: Wen et al., ECCV 2016, eq. 4.

    Args:
      centers: one a concept.
      sums: of the concept's embeddings in the batch.
      counts: how many these are.
      alpha: how far a center moves.
    """
    n = counts[:, None]
    return centers - alpha * (n * centers - sums) / (1.0 + n)
