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
    faiss.copy_array_to_vector(
        np.ascontiguousarray(codebook, np.float32).ravel(), index.pq.centroids
    )
    index.is_trained = True
    packed = np.ascontiguousarray(codes)
    if bits != 8:
        # FAISS keeps `bits` bits a code, the lowest first.
        ones = np.unpackbits(codes[:, :, None], axis=2, bitorder="little")[:, :, :bits]
        packed = np.packbits(ones.reshape(len(codes), -1), axis=1, bitorder="little")
    faiss.copy_array_to_vector(packed.ravel(), index.codes)
    index.ntotal = len(codes)
    return index
