"""Normalisation that survives zero vectors."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def l2_normalize(x: Float[Array, "*n d"], *, epsilon: float = 1e-12) -> Float[Array, "*n d"]:
    """Vectors of the last axis divided by their Euclidean norm.

    A vector no longer than `epsilon` becomes zero and passes no gradient, so both stay finite:
    real pictures have cells that are zero in every channel, and captions have masked words.
    """
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    zero = square <= epsilon**2
    # Two selections: one for the value, one to keep the root's derivative off zero.
    return jnp.where(zero, 0.0, x * lax.rsqrt(jnp.where(zero, 1.0, square)))
