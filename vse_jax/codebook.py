"""The product quantizer: an embedding as M codes, and the straight-through gradient.

Each of the M parts of an embedding has K codes; with K <= 256 the codes of an embedding are M
bytes. This is what the quantizer computes; its codebook is state that an objective moves. Source:
Jegou et al., Product Quantization for Nearest Neighbor Search, TPAMI 2011; Ge et al., Optimized
Product Quantization, TPAMI 2014, for the rotation; van den Oord et al., Neural Discrete
Representation Learning, NeurIPS 2017, section 3, for learning in training.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

# Embeddings quantized at a time on the host: the M x K scores of each stay in a core's cache, and
# of four times as many they do not, which takes three times as long.
CHUNK = 256


class Codebook(NamedTuple):
    """What codes stand for.

    Attributes:
      centroids: float32 [M, K, D/M], of each part's codes.
      rotation: float32 [D, D], orthogonal: embeddings are cut into parts after z @ rotation; None
        cuts them as they are.
    """

    centroids: Float[Array | np.ndarray, "m k p"]
    rotation: Float[Array | np.ndarray, "d d"] | None = None


def turned(z: Float[Array, "b d"], codebook: Codebook) -> Float[Array, "b d"]:
    """Embeddings in the axes of the codebook, in which distances are the same."""
    if codebook.rotation is None:
        return z
    return jnp.matmul(z, codebook.rotation, precision=jax.lax.Precision.HIGHEST)


def parts_of(z: Float[Array, "b d"], codebook: Codebook) -> Float[Array, "m b p"]:
    """Embeddings cut into the codebook's M parts, part by part as the products want them."""
    parts, _, width = codebook.centroids.shape
    return jnp.swapaxes(turned(z, codebook).reshape(z.shape[0], parts, width), 0, 1)


def code_scores(z: Float[Array, "b d"], codebook: Codebook) -> Float[Array, "m b k"]:
    """2 z_m.e_mk - |e_mk|^2, which is |z_m|^2 - |z_m - e_mk|^2: the larger, the nearer."""
    # One product, of (z, 1) and (2 e, -|e|^2): see `encode`.
    parts, centroids = parts_of(z, codebook), jnp.asarray(codebook.centroids)
    left = jnp.concatenate([parts, jnp.ones_like(parts[:, :, :1])], axis=2)
    squares = jnp.sum(centroids**2, axis=2, keepdims=True)
    right = jnp.concatenate([2.0 * centroids, -squares], axis=2)
    return jnp.einsum("mbp,mkp->mbk", left, right, precision=jax.lax.Precision.HIGHEST)


def code_distances(z: Float[Array, "b d"], codebook: Codebook) -> Float[Array, "m b k"]:
    """|z_m - e_mk|^2, by |z|^2 + |e|^2 - 2 z.e; at least 0."""
    squares = jnp.sum(parts_of(z, codebook) ** 2, axis=2, keepdims=True)
    return jnp.maximum(squares - code_scores(z, codebook), 0.0)


def encode(z: Float[Array, "b d"], codebook: Codebook) -> Int[Array, "b m"]:
    """The nearest code of each part, the first of equals; K where z is not finite."""
    # `argmax` of floats, by reductions that a CPU has vector instructions for: a fifth of its time.
    # Equality is safe, as a matrix product is computed once, and not anew for each that reads it.
    scores = code_scores(z, codebook)
    size = scores.shape[2]
    best = scores == jnp.max(scores, axis=2, keepdims=True)
    numbers = jnp.where(best, jnp.arange(size, dtype=jnp.float32), float(size))
    return jnp.min(numbers, axis=2).astype(jnp.int32).T


def decode(codes: Int[Array, "b m"], codebook: Codebook) -> Float[Array, "b d"]:
    """The embeddings that codes stand for."""
    found = jnp.take_along_axis(jnp.asarray(codebook.centroids), codes.T[:, :, None], axis=1)
    found = jnp.swapaxes(found, 0, 1).reshape(codes.shape[0], -1)
    if codebook.rotation is None:
        return found
    return jnp.matmul(found, codebook.rotation.T, precision=jax.lax.Precision.HIGHEST)


def quantize(embeddings: Float[np.ndarray, "n d"], codebook: Codebook) -> UInt8[np.ndarray, "n m"]:
    """Codes of host embeddings: the nearest of the K <= 256 codes of each part.

    Raises:
      ValueError: an embedding is not finite.
    """
    check_finite(embeddings)
    book = jax.tree.map(jnp.asarray, codebook)
    function = jax.jit(encode)
    nothing = np.zeros((0, len(book.centroids)), np.uint8)
    found = (np.asarray(function(rows, book))[where] for rows, where in blocks_of(embeddings))
    return np.concatenate([nothing, *(codes.astype(np.uint8) for codes in found)])


def required(codebook: Codebook | None) -> Codebook:
    """The codebook of a model; raises ValueError where it has none."""
    if codebook is None:
        raise ValueError("the model has no codebook: train with objective.quantizer.weight > 0")
    return codebook


def check_finite(embeddings: Shaped[np.ndarray, "n d"], what: str = "embedding") -> None:
    """Raises ValueError where an embedding is not finite in float32."""
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(np.asarray(embeddings, np.float32)).all(axis=1))
    if len(bad):
        raise ValueError(f"{what} {bad[0]} is not finite")


def blocks_of(
    embeddings: Float[np.ndarray, "n d"],
) -> Iterator[tuple[Float[np.ndarray, "b d"], Bool[np.ndarray, " b"]]]:
    """(embeddings, False for padding) of blocks of one size, in order.

    One program serves all: the last one is padded with zeros.
    """
    n = len(embeddings)
    size = max(1, min(CHUNK, n))
    for start in range(0, n, size):
        rows = np.asarray(embeddings[start : start + size], np.float32)
        yield np.pad(rows, ((0, size - len(rows)), (0, 0))), np.arange(size) < len(rows)


def straight_through(z: Float[Array, "b d"], e: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """q(z) = z + stop_gradient(e - z): the value of e, the gradient of z.

    Source: Bengio et al., Estimating or Propagating Gradients, 2013, section 4.
    """
    return z + jax.lax.stop_gradient(e - z)
