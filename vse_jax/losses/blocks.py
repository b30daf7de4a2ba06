"""Embeddings with their ids, and in blocks of one size: a loss holds b x chunk scores at a time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Rows(NamedTuple):
    """Embeddings of one side of the pairs.

    Attributes:
      vectors: the embeddings; where scores exist already (`similarity.look_up`) a row of them for
        each query, and for each key the number of its column, int [b].
      ids: of the pictures they belong to; rows of one id are never each other's negatives.
      where: False for padding.
      meanings: what margins between pairs of rows depend on; None where they do not.
    """

    vectors: Float[Array, "*k b d"] | Int[Array, "*k b"]
    ids: Int[Array, "*k b"]
    where: Bool[Array, "*k b"]
    meanings: Float[Array, "*k b s"] | None = None


# Keys, and the number of the first of them.
Block = tuple[Rows, Int[Array, ""]]


def negatives(queries: Rows, keys: Rows) -> Bool[Array, "b c"]:
    """Which keys are negatives of each query: not of the same id, not padding.

    Two captions of one picture are never each other's negatives.
    """
    return (queries.ids[:, None] != keys.ids[None, :]) & keys.where[None, :]


def negative_counts(queries: Rows, keys: Rows) -> Float[Array, " b"]:
    """How many keys are negatives of each query, without b x n comparisons."""
    # Padding goes last, where no query that counts finds its own id.
    own = jnp.sort(jnp.where(keys.where, keys.ids, jnp.iinfo(jnp.int32).max))
    first, end = (jnp.searchsorted(own, queries.ids, side=side) for side in ("left", "right"))
    return (jnp.sum(keys.where) - (end - first)).astype(jnp.float32)


def blocks(keys: Rows, chunk: int) -> tuple[Rows, Int[Array, " k"]]:
    """The keys [n, d] as k blocks of one size, and the number of the first key of each.

    The last block is padded with keys that do not count.
    """
    n = keys.ids.shape[0]
    chunk = min(chunk, n)
    count = -(-n // chunk)

    def cut(rows: Array) -> Array:
        padding = ((0, count * chunk - n), *((0, 0) for _ in rows.shape[1:]))
        return jnp.pad(rows, padding).reshape(count, chunk, *rows.shape[1:])

    return jax.tree.map(cut, keys), jnp.arange(count, dtype=jnp.int32) * chunk
