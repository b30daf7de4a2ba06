"""The product quantizer: an embedding as M codes, and the straight-through gradient.

A codebook [M, K, D/M] holds K codes for each of the M equal parts of an embedding; with
K <= 256 the codes of an embedding are M bytes. Source: Jegou et al., Product Quantization for
Nearest Neighbor Search, TPAMI 2011; van den Oord et al., Neural Discrete Representation
Learning, NeurIPS 2017, section 3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def parts_of(z: Float[Array, "b d"], codebook: Float[Array, "m k p"]) -> Float[Array, "b m p"]:
    """Embeddings cut into the codebook's M parts."""
    return z.reshape(z.shape[0], codebook.shape[0], codebook.shape[2])


def code_distances(
    z: Float[Array, "b d"], codebook: Float[Array, "m k p"]
) -> Float[Array, "b m k"]:
    """|z_m - e_mk|^2, by |z|^2 + |e|^2 - 2 z.e; at least 0."""
    parts = parts_of(z, codebook)
    products = jnp.einsum("bmp,mkp->bmk", parts, codebook, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(parts**2, axis=2)[:, :, None] + jnp.sum(codebook**2, axis=2)[None]
    return jnp.maximum(squares - 2.0 * products, 0.0)


def encode(z: Float[Array, "b d"], codebook: Float[Array, "m k p"]) -> Int[Array, "b m"]:
    """The nearest code of each part, the first of equals."""
    return jnp.argmin(code_distances(z, codebook), axis=2).astype(jnp.int32)


def decode(codes: Int[Array, "b m"], codebook: Float[Array, "m k p"]) -> Float[Array, "b d"]:
    """The embeddings that codes stand for."""
    found = jnp.take_along_axis(codebook[None], codes[:, :, None, None], axis=2)
    return found.reshape(codes.shape[0], -1)


def straight_through(z: Float[Array, "b d"], e: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """q(z) = z + stop_gradient(e - z): the value of e, the gradient of z.

    Source: Bengio et al., Estimating or Propagating Gradients, 2013, section 4.
    """
    return z + jax.lax.stop_gradient(e - z)
