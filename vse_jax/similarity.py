"""Similarities of embeddings: larger is closer."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class Similarity(NamedTuple):
    """A similarity of two vectors, in the two forms that training and retrieval need.

    Attributes:
      matrix: ([a, d], [b, d]) -> [a, b], every row with every row.
      rows: ([a, d], [a, d]) -> [a], row by row.
      is_distance: whether it is minus a distance.
    """

    matrix: Callable[[Float[Array, "a d"], Float[Array, "b d"]], Float[Array, "a b"]]
    rows: Callable[[Float[Array, "a d"], Float[Array, "a d"]], Float[Array, "a"]]
    is_distance: bool = False

    @property
    def turned(self) -> "Similarity":
        """The same with the sides changed over: ([b, d], [a, d]) -> [b, a]."""
        return self._replace(
            matrix=lambda b, a: self.matrix(a, b).T, rows=lambda b, a: self.rows(a, b)
        )


def _dot_matrix(a: Float[Array, "a d"], b: Float[Array, "b d"]) -> Float[Array, "a b"]:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _dot_rows(a: Float[Array, "a d"], b: Float[Array, "a d"]) -> Float[Array, "a"]:
    return jnp.sum(a * b, axis=-1)


# The inner product; the cosine, as encoders return vectors of length 1.
dot = Similarity(_dot_matrix, _dot_rows)


def _distance_matrix(a: Float[Array, "a d"], b: Float[Array, "b d"]) -> Float[Array, "a b"]:
    """-|x - y| by |x|^2 + |y|^2 - 2 x.y."""
    squares = _squares(a)[:, None] + _squares(b)[None, :]
    return -_root(squares - 2.0 * _dot_matrix(a, b))


def _squares(rows: Float[Array, "a d"]) -> Float[Array, " a"]:
    """|x|^2, kept apart from the matrix product.

    XLA's CPU compiler makes one program of sums and a product that read the same rows, which takes
    two and a half times as long as both (jax 0.10); to round to the type that the sums have
    already changes nothing, and it does not do that across it.
    """
    kind = jnp.finfo(rows.dtype)
    return lax.reduce_precision(jnp.sum(rows**2, axis=1), kind.nexp, kind.nmant)


def _distance_rows(a: Float[Array, "a d"], b: Float[Array, "a d"]) -> Float[Array, "a"]:
    """-|x - y|; 0 below rounding, where the direction of the gradient would be a chance one."""
    squares = jnp.sum((a - b) ** 2, axis=-1)
    # An embedding and what it is stored as may be one vector that a rotation and its inverse have
    # moved by a few units of its last place; 8 are more than was met.
    rounding = (8 * jnp.finfo(squares.dtype).eps) ** 2 * jnp.sum(a**2 + b**2, axis=-1)
    return -_root(jnp.where(squares <= rounding, 0.0, squares))


def _root(squares: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root; of 0, and of what rounding made negative, 0 with gradient 0; NaN of NaN."""
    nothing = squares <= 0.0
    return jnp.where(nothing, 0.0, jnp.sqrt(jnp.where(nothing, 1.0, squares)))


# Minus the Euclidean distance.
negative_euclidean = Similarity(_distance_matrix, _distance_rows, is_distance=True)


def _columns(scores: Float[Array, "a n"], numbers: Int[Array, " b"]) -> Float[Array, "a b"]:
    return jnp.take(scores, numbers, axis=1)


def _entries(scores: Float[Array, "a n"], numbers: Int[Array, " a"]) -> Float[Array, " a"]:
    return jnp.take_along_axis(scores, numbers[:, None], axis=1)[:, 0]


# Of scores that exist: what is compared is a row of them, and a number of a column.
look_up = Similarity(_columns, _entries)
