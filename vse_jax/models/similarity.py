"""Similarities of embeddings: larger is closer."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Similarity(NamedTuple):
    """A similarity of two vectors, in the two forms that training and retrieval need.

    Attributes:
      matrix: ([a, d], [b, d]) -> [a, b], every row with every row.
      rows: ([a, d], [a, d]) -> [a], row by row.
    """

    matrix: Callable[[Float[Array, "a d"], Float[Array, "b d"]], Float[Array, "a b"]]
    rows: Callable[[Float[Array, "a d"], Float[Array, "a d"]], Float[Array, "a"]]


def _dot_matrix(a: Float[Array, "a d"], b: Float[Array, "b d"]) -> Float[Array, "a b"]:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _dot_rows(a: Float[Array, "a d"], b: Float[Array, "a d"]) -> Float[Array, "a"]:
    return jnp.sum(a * b, axis=-1)


# The inner product; the cosine, as encoders return vectors of length 1.
dot = Similarity(_dot_matrix, _dot_rows)
