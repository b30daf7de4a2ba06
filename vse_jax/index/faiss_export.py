"""Items as a learned codebook stores them, in an index of FAISS."""

from typing import Any, cast

import numpy as np
from jaxtyping import Float

from vse_jax.codebook import Codebook, quantize, required


def index_pq(codebook: Codebook | None, embeddings: Float[np.ndarray, "n d"]) -> Any:
    """A `faiss.IndexPQ` of items, which finds by asymmetric distance (needs faiss).

    Where the codebook has a rotation, a `faiss.IndexPreTransform`, which turns queries before they
    reach the `IndexPQ` in it. Queries are embeddings as they are, either way.

    Args:
      codebook: of the model; K must be a power of two, as FAISS packs codes into bits.
      embeddings: of the items, in order; their rows are their numbers in the index. They are
        quantized here, so that an index never has codes of another codebook, which would mean
        something else.

    Raises:
      ValueError: there is no codebook, K is not a power of two, or the embeddings are not as wide
        as the codebook or not finite.
    """
    import faiss

    codebook = required(codebook)
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
    extend(index, codebook, embeddings)
    return index


def extend(index: Any, codebook: Codebook | None, embeddings: Float[np.ndarray, "n d"]) -> None:
    """Adds items to an index of `index_pq`, behind those that it has.

    Args:
      index: of the same codebook.
      codebook: of the model that the embeddings are of.
      embeddings: of the items.

    Raises:
      ValueError: the index is of another codebook, or none of `index_pq`; or the embeddings are
        not as wide as the codebook or not finite.
    """
    import faiss

    codebook = required(codebook)
    parts, _, width = codebook.centroids.shape
    if np.shape(embeddings)[1:] != (parts * width,):
        raise ValueError(
            f"the embeddings are {list(np.shape(embeddings))}; expected [n, {parts * width}]"
        )
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
    packed, bits = quantize(embeddings, codebook), inner.pq.nbits
    if bits != 8:
        # FAISS keeps `bits` bits a code, the lowest first.
        ones = np.unpackbits(packed[:, :, None], axis=2, bitorder="little")[:, :, :bits]
        ones = ones.reshape(len(packed), packed.shape[1] * bits)
        packed = np.packbits(ones, axis=1, bitorder="little")
    everything = np.concatenate([faiss.vector_to_array(inner.codes), packed.ravel()])
    faiss.copy_array_to_vector(everything, inner.codes)
    inner.ntotal += len(embeddings)
    index.ntotal = inner.ntotal


def _flat(values: Any) -> Float[np.ndarray, " n"]:
    """As FAISS keeps arrays."""
    return np.ascontiguousarray(values, np.float32).ravel()


def _rotation(codebook: Codebook) -> Float[np.ndarray, " n"]:
    """As FAISS keeps it, by columns where ours is by rows; empty where there is none."""
    return _flat(() if codebook.rotation is None else np.transpose(codebook.rotation))
