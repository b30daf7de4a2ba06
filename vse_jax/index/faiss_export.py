"""A learned codebook and its codes as an index of FAISS."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8


def index_pq(codebook: Float[np.ndarray, "m k p"], codes: UInt8[np.ndarray, "n m"]) -> Any:
    """A `faiss.IndexPQ` over the codes, which finds by asymmetric distance (needs faiss).

    Args:
      codebook: K must be a power of two, as FAISS packs codes into bits.
      codes: of the items, in order; their rows are their numbers in the index.

    Raises:
      ValueError: K is not a power of two.
    """
    import faiss

    parts, k, width = codebook.shape
    bits = k.bit_length() - 1
    if k != 1 << bits:
        raise ValueError(f"the codebook has {k} codes a part; FAISS takes powers of two")
    index = faiss.IndexPQ(parts * width, parts, bits)
    faiss.copy_array_to_vector(_centroids(codebook), index.pq.centroids)
    index.is_trained = True
    extend(index, codebook, codes)
    return index


def extend(
    index: Any, codebook: Float[np.ndarray, "m k p"], codes: UInt8[np.ndarray, "n m"]
) -> None:
    """Adds items to an index of `index_pq`, behind those that it has.

    Args:
      index: of the same codebook.
      codebook: of the model that quantized the items.
      codes: of the items.

    Raises:
      ValueError: the index is of another codebook, in which these codes mean something else.
    """
    import faiss

    if not np.array_equal(faiss.vector_to_array(index.pq.centroids), _centroids(codebook)):
        raise ValueError(
            "the index holds codes of another codebook: quantize all items with one model"
        )
    bits, packed = index.pq.nbits, np.ascontiguousarray(codes)
    if bits != 8:
        # FAISS keeps `bits` bits a code, the lowest first.
        ones = np.unpackbits(codes[:, :, None], axis=2, bitorder="little")[:, :, :bits]
        packed = np.packbits(ones.reshape(len(codes), -1), axis=1, bitorder="little")
    everything = np.concatenate([faiss.vector_to_array(index.codes), packed.ravel()])
    faiss.copy_array_to_vector(everything, index.codes)
    index.ntotal += len(codes)


def _centroids(codebook: Float[np.ndarray, "m k p"]) -> Float[np.ndarray, " c"]:
    """The codebook as FAISS keeps it."""
    return np.ascontiguousarray(codebook, np.float32).ravel()
