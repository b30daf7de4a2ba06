"""A learned codebook and its codes as an index of FAISS."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vse_jax.quantizer import Codebook


def index_pq(codebook: Codebook, codes: UInt8[np.ndarray, "n m"]) -> Any:
    """A `faiss.IndexPQ` over the codes, which finds by asymmetric distance (needs faiss).

    Where the codebook has a rotation, a `faiss.IndexPreTransform`, which turns queries before they
    reach the `IndexPQ` in it. Queries are embeddings as they are, either way.

    Args:
      codebook: K must be a power of two, as FAISS packs codes into bits.
      codes: of the items, in order; their rows are their numbers in the index.

    Raises:
      ValueError: K is not a power of two.
    """
    import faiss

    parts, k, width = codebook.centroids.shape
    bits = k.bit_length() - 1
    if k != 1 << bits:
        raise ValueError(f"the codebook has {k} codes a part; FAISS takes powers of two")
    index = faiss.IndexPQ(parts * width, parts, bits)
    faiss.copy_array_to_vector(_flat(codebook.centroids), index.pq.centroids)
    index.is_trained = True
    if codebook.rotation is not None:
        turn = faiss.LinearTransform(parts * width, parts * width)
        faiss.copy_array_to_vector(_flat(codebook.rotation.T), turn.A)
        turn.is_trained = True
        turn.set_is_orthonormal()
        index = faiss.IndexPreTransform(turn, index)
    extend(index, codebook, codes)
    return index


def extend(index: Any, codebook: Codebook, codes: UInt8[np.ndarray, "n m"]) -> None:
    """Adds items to an index of `index_pq`, behind those that it has.

    Args:
      index: of the same codebook.
      codebook: of the model that quantized the items.
      codes: of the items.

    Raises:
      ValueError: the index is of another codebook, in which these codes mean something else.
    """
    import faiss

    inner, rotation = index, None
    if isinstance(index, faiss.IndexPreTransform):
        inner = faiss.downcast_index(index.index)
        rotation = faiss.vector_to_array(faiss.downcast_VectorTransform(index.chain.at(0)).A)
    own = None if codebook.rotation is None else _flat(codebook.rotation.T)
    centroids = faiss.vector_to_array(inner.pq.centroids)
    same = np.array_equal(centroids, _flat(codebook.centroids)) and (
        rotation is None if own is None else np.array_equal(rotation, own)
    )
    if not same:
        raise ValueError(
            "the index holds codes of another codebook: quantize all items with one model"
        )
    bits, packed = inner.pq.nbits, np.ascontiguousarray(codes)
    if bits != 8:
        # FAISS keeps `bits` bits a code, the lowest first.
        ones = np.unpackbits(codes[:, :, None], axis=2, bitorder="little")[:, :, :bits]
        packed = np.packbits(ones.reshape(len(codes), -1), axis=1, bitorder="little")
    everything = np.concatenate([faiss.vector_to_array(inner.codes), packed.ravel()])
    faiss.copy_array_to_vector(everything, inner.codes)
    inner.ntotal += len(codes)
    index.ntotal = inner.ntotal


def _flat(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, " n"]:
    """As FAISS keeps arrays."""
    return np.ascontiguousarray(values, np.float32).ravel()
