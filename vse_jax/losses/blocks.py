"""Keys in blocks of one size, so that a loss holds b x chunk scores at a time."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Keys, their ids, whether they count, and the number of the first of them.
Block = tuple[
    Float[Array, "c d"],
    Int[Array, "c"],
    Bool[Array, "c"],
    Int[Array, ""],
]


def negatives(
    query_ids: Int[Array, "b"], key_ids: Int[Array, "c"], key_where: Bool[Array, "c"]
) -> Bool[Array, "b c"]:
    """Which keys are negatives: not of the same id, not padding.

    Two captions of one picture are never each other's negatives.
    """
    return (query_ids[:, None] != key_ids[None, :]) & key_where[None, :]


def blocks(
    keys: Float[Array, "n d"],
    key_ids: Int[Array, "n"],
    key_where: Bool[Array, "n"],
    chunk: int,
) -> tuple[Float[Array, "k c d"], Int[Array, "k c"], Bool[Array, "k c"], Int[Array, "k"]]:
    """The keys as k blocks of one size, the last one padded with keys that do not count."""
    n, d = keys.shape
    chunk = min(chunk, n)
    count = -(-n // chunk)
    padding = count * chunk - n
    keys = jnp.pad(keys, ((0, padding), (0, 0))).reshape(count, chunk, d)
    key_ids = jnp.pad(key_ids, (0, padding)).reshape(count, chunk)
    key_where = jnp.pad(key_where, (0, padding)).reshape(count, chunk)
    return keys, key_ids, key_where, jnp.arange(count, dtype=jnp.int32) * chunk
