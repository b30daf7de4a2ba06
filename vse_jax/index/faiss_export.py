"""A learned codebook and its codes as an index of FAISS."""

from typing import Any, cast

import numpy as np
from jaxtyping import Float

from vse_jax.codebook import Codebook


def index_pq(codebook: Codebook, codes: np.ndarray) -> Any:
    """A `faiss.IndexPQ` over the codes, which finds by asymmetric distance (needs faiss).

    Where the codebook has a rotation, a `faiss.IndexPreTransform`, which turns queries before they
    reach the `IndexPQ` in it. Queries are embeddings as they are, either way.

    Args:
      codebook: K must be a power of two, as FAISS packs codes into bits.
      codes: uint8 [n, M] of the items, in order; their rows are their numbers in the index.

    Raises:
      ValueError: K is not a power of two, or the codes are none of this codebook.
    """
    import faiss

    parts, k, width = codebook.centroids.shape
    bits = k.bit_length() - 1
    if k != 1 << bits:
        raise ValueError(f"the codebook has {k} codes a part; FAISS takes powers of two")
    index: Any = faiss.IndexPQ(parts * width, parts, bits)
    faiss.copy_array_to_vector(_flat(codebook.centroids), index.pq.centroids)
    index.is_trained = True
    if codebook.rotation is not None:
        turn = faiss.LinearTransform(parts * width, parts * width)
        faiss.copy_array_to_vector(_rotation(codebook), turn.A)
        turn.is_trained = True
        turn.set_is_orthonormal()
        index = faiss.IndexPreTransform(turn, index)
    extend(index, codebook, codes)
    return index


def extend(index: Any, codebook: Codebook, codes: np.ndarray) -> None:
    """Adds items to an index of `index_pq`, behind those that it has.

    Args:
      index: of the same codebook.
      codebook: of the model that quantized the items.
      codes: uint8 [n, M] of the items.

    Raises:
      ValueError: the index is of another codebook, in which these codes mean something else, or
        none of `index_pq`; or the codes are none of this codebook.
    """
    import faiss

    parts, k, _ = codebook.centroids.shape
    if np.ndim(codes) != 2 or np.shape(codes)[1] != parts or codes.dtype != np.uint8:
        raise ValueError(
            f"the codes are {codes.dtype}{list(np.shape(codes))}; expected uint8 [n, {parts}]"
        )
    if codes.size and codes.max() >= k:
        raise ValueError(f"a code is {codes.max()}, but the codebook has {k} codes a part")
    inner, turn = index, np.zeros(0)
    if isinstance(index, faiss.IndexPreTransform):
        inner, chain = faiss.downcast_index(index.index), cast(Any, index.chain)
        turn = faiss.vector_to_array(cast(Any, faiss.downcast_VectorTransform(chain.at(0))).A)
    if not isinstance(inner, faiss.IndexPQ):
        raise ValueError(f"the index is a {type(inner).__name__}; expected one of `index_pq`")
    same = np.array_equal(faiss.vector_to_array(inner.pq.centroids), _flat(codebook.centroids))
    if not same or not np.array_equal(turn, _rotation(codebook)):
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


def _flat(values: Any) -> Float[np.ndarray, " n"]:
    """As FAISS keeps arrays."""
    return np.ascontiguousarray(values, np.float32).ravel()


def _rotation(codebook: Codebook) -> Float[np.ndarray, " n"]:
    """As FAISS keeps it, by columns where ours is by rows; empty where there is none."""
    return _flat(() if codebook.rotation is None else np.transpose(codebook.rotation))
