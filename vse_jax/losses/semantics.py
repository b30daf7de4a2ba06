"""Margins from what captions mean."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vse_jax.losses.blocks import Block, Rows, blocks


def largest_product(
    own: Float[Array, "b s"], every: Float[Array, "n s"], where: Bool[Array, " n"], chunk: int
) -> Float[Array, " b"]:
    """max_k <u_i, u_k> of each row i over the rows k kept by `where`; 1 where that is 0.

    Products b x chunk at a time. Source: Gong & Cosma, 2023, whose code has the 1 too.
    """
    rows = Rows(every, jnp.zeros(len(every), jnp.int32), where)

    def step(most: Float[Array, " b"], block: Block) -> tuple[Float[Array, " b"], None]:
        keys, _ = block
        products = jnp.matmul(own, keys.vectors.T, precision=jax.lax.Precision.HIGHEST)
        products = jnp.where(keys.where[None], products, -jnp.inf)
        return jnp.maximum(most, jnp.max(products, axis=1)), None

    most, _ = jax.lax.scan(step, jnp.full(len(own), -jnp.inf), blocks(rows, chunk))
    return jnp.where(jnp.isneginf(most) | (most == 0.0), 1.0, most)


def related_margin(margin: float, share: float, queries: Rows, keys: Rows) -> Float[Array, "b c"]:
    """margin + share x <meaning of the query, meaning of the key>.

    With meanings of one side scaled by `largest_product`, the larger the more the captions of a
    negative and of the query say the same. Source: Gong & Cosma, 2023, with 0.185 and 0.025.
    """
    assert queries.meanings is not None, "margins of this kind are of pairs with meanings"
    assert keys.meanings is not None
    products = jnp.matmul(queries.meanings, keys.meanings.T, precision=jax.lax.Precision.HIGHEST)
    return margin + share * products
