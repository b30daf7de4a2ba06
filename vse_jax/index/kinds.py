"""The kinds of index over a store, of which each is built, kept up to date and searched alike.

"exact" looks at every embedding and needs nothing more than the store. "codes" looks at the codes
of the model's learned codebook, "milvus" asks Milvus, the others are of FAISS; see the modules.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vse_jax.codebook import Codebook
from vse_jax.index import approximate, exact, learned_codes, milvus
from vse_jax.index.database import StoreError
from vse_jax.index.exact import Found
from vse_jax.index.store import Store
from vse_jax.similarity import Similarity

EXACT, CODES, MILVUS = "exact", "codes", milvus.KIND
KINDS = (EXACT, CODES, *approximate.KINDS, MILVUS)


class Model(NamedTuple):
    """What a kind needs of the model that made the embeddings.

    Attributes:
      similarity: by which it compares.
      codebook: that it has learned, if any.
    """

    similarity: Similarity
    codebook: Codebook | None = None


class Searcher(NamedTuple):
    """An index that is open.

    Attributes:
      search: (queries [q, d], k) -> the best of the items as they were when it was opened.
      close: gives back what it holds.
    """

    search: Callable[[Float[np.ndarray, "q d"], int], Found]
    close: Callable[[], None] = lambda: None


def check(kind: str, store: Store, model: Model, uri: str | None = None) -> None:
    """Raises StoreError or ValueError where there can be no index of this kind, before any work."""
    if uri is not None and kind != MILVUS:
        raise StoreError("--uri is of a server of Milvus: give --kind=milvus, too")
    if kind in (CODES, approximate.LEARNED):
        learned_codes.required(store, model.codebook)
    if kind == MILVUS:
        milvus.check(uri)
    elif kind in approximate.KINDS:
        approximate.check()


def build(kind: str, store: Store, model: Model, uri: str | None = None) -> None:
    """Makes the index of this kind one of the items as they are.

    Args:
      kind: of `KINDS`.
      store: of the items.
      model: that made them.
      uri: of a server, for "milvus".

    Raises:
      StoreError: what it needs is missing, or it cannot be written.
      ValueError: the model has no codebook, for "codes" and "pq".
    """
    if kind == CODES:
        learned_codes.build(store, model.codebook)
    elif kind == MILVUS:
        milvus.build(store, uri)
    elif kind != EXACT:
        approximate.build(kind, store, model.codebook)


def built(store: Store) -> list[str]:
    """The kinds that there are beside the exact one, old ones too."""
    found = approximate.built(store)
    found += [CODES] if learned_codes.is_built(store) else []
    return found + ([MILVUS] if milvus.is_built(store) else [])


def is_current(kind: str, store: Store, model: Model, uri: str | None = None) -> bool:
    """Whether the index of this kind is there, and of the items as they are."""
    if kind == CODES:
        return learned_codes.is_current(store, model.codebook)
    if kind == MILVUS:
        return milvus.is_current(store, uri)
    return kind == EXACT or approximate.is_current(kind, store)


def opened(kind: str, store: Store, model: Model, uri: str | None = None) -> Searcher:
    """The index of this kind, ready to be searched.

    Raises:
      StoreError: it is not there, or older than the items.
      ValueError: the model has no codebook, for "codes".
    """
    if kind == EXACT:
        return Searcher(lambda q, k: exact.search(model.similarity, q, store.shards(), k))
    if kind == CODES:
        codebook = learned_codes.required(store, model.codebook)
        items = list(learned_codes.shards(store, codebook))
        return Searcher(lambda q, k: learned_codes.search(codebook, q, items, k))
    if kind == MILVUS:
        copy = milvus.Copy(store, uri)
        return Searcher(copy.search, copy.close)
    index = approximate.load(kind, store)
    return Searcher(lambda q, k: approximate.search(index, q, k))
