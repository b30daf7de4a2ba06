"""The product of a linear layer over many parts, with the gradient in the form that XLA likes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def rows_product(
    x: Float[Array, "... f"], kernel: Float[Array, "f d"], *_: Any, **__: Any
) -> Float[Array, "... d"]:
    """x kernel, summed in float32; to be given to `nn.Dense` as its `dot_general`.

    The gradient by the kernel is x^T g, written as such. JAX's own rule writes (g^T x)^T, of which
    XLA on a CPU makes a copy of g^T: at 128 x 49 parts of 1,024 channels an eighth of the time of
    VSE-infinity's image head. What `nn.Dense` says of dimensions and precision is always this.
    """
    rows = _product(x.reshape(-1, x.shape[-1]), kernel)
    return rows.reshape(*x.shape[:-1], kernel.shape[1])


@jax.custom_vjp
def _product(x: Float[Array, "n f"], kernel: Float[Array, "f d"]) -> Float[Array, "n d"]:
    return _dot(x, kernel, 1, 0)


def _forward(x: Any, kernel: Any) -> Any:
    return _product(x, kernel), (x, kernel)


def _backward(residual: Any, gradient: Any) -> Any:
    x, kernel = residual
    gradient = gradient.astype(x.dtype)
    dx, d_kernel = _dot(gradient, kernel, 1, 1), _dot(x, gradient, 0, 0)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype)


_product.defvjp(_forward, _backward)


def _dot(a: Array, b: Array, axis: int, other: int) -> Array:
    dims = (((axis,), (other,)), ((), ()))
    return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
