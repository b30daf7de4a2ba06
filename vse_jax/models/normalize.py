"""Normalisation that survives zero vectors."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def l2_normalize(x: Float[Array, "*n d"], *, epsilon: float = 1e-8) -> Float[Array, "*n d"]:
    """Vectors of the last axis divided by max(norm, epsilon).

    A vector no longer than `epsilon` is only scaled: zero stays zero and its gradient is finite,
    the incoming one divided by `epsilon` as in PyTorch's `normalize` (real pictures have cells that
    are zero in every channel). A zero vector itself passes no gradient.
    """
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The root and the quotient never see zero, in the value nor in the gradient.
    zero = square <= epsilon**2
    scale = lax.rsqrt(jnp.where(zero, 1.0, square))
    return jnp.where(zero, 0.0, x * scale)
