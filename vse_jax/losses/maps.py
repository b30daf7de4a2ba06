"""How far two maps over the cells of a picture disagree."""

from typing import Literal, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Kind: TypeAlias = Literal["cosine", "l2", "kl"]
# Share of a map that is spread evenly, so that a cell of nothing has a logarithm.
SPREAD = 1e-3


def cosine(a: Float[Array, "b n"], b: Float[Array, "b n"]) -> Float[Array, " b"]:
    """a . b / (||a|| ||b||), 1 for maps of one form; 0, without gradient, beside a map of zeros."""
    return jnp.sum(unit(a) * unit(b), axis=-1)


def unit(x: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Each row at length 1; a row of zeros stays so, and passes no gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    found = square > 0
    # Two selections: one for the value, one to keep the root's derivative off zero.
    return jnp.where(found, x * lax.rsqrt(jnp.where(found, square, 1.0)), 0.0)


def disagreement(
    a: Float[Array, "b n"], b: Float[Array, "b n"], kind: Kind = "cosine"
) -> Float[Array, " b"]:
    """How far maps of 0 or more are from each other; 0 for maps of one form.

    "cosine": 1 - cos(a, b), which is 1 and has no gradient beside a map of zeros. "l2": ||p - q||^2
    and "kl": sum (p - q) (log p - log q), the sum of the divergences both ways, of the maps scaled
    to a sum of 1, of which SPREAD is spread evenly; a map of zeros counts as an even one.

    Args:
      a: maps.
      b: maps, each to be compared with that of the same row.
      kind: of the measure.
    """
    if kind == "cosine":
        return 1.0 - cosine(a, b)
    p, q = _shares(a), _shares(b)
    if kind == "l2":
        return jnp.sum(jnp.square(p - q), axis=-1)
    return jnp.sum((p - q) * (jnp.log(p) - jnp.log(q)), axis=-1)


def _shares(x: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Each row scaled to a sum of 1, a little of which is spread evenly."""
    total = jnp.sum(x, axis=-1, keepdims=True)
    even = 1.0 / x.shape[-1]
    shares = jnp.where(total > 0, x / jnp.where(total > 0, total, 1.0), even)
    return (1.0 - SPREAD) * shares + SPREAD * even
