"""Indices of FAISS over the items of a store: kept beside it, built from it, searched by number.

"flat" compares with every item, "hnsw" walks a graph of neighbours, "ivfpq" looks at the nearest of
some clusters of items in a few bytes each, and "pq" has the codes of the model's own learned
codebook. Each knows the state of the store that it was built of, and is refused after another.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vse_jax.codebook import Codebook
from vse_jax.index import faiss_export, learned_codes
from vse_jax.index.database import StoreError
from vse_jax.index.exact import Found
from vse_jax.index.store import Store

LEARNED = "pq"
KINDS = ("flat", "hnsw", "ivfpq", LEARNED)
# Of "hnsw": neighbours of an item in the graph, and candidates while it is built and searched.
NEIGHBOURS, BUILDING, SEARCHING = 32, 80, 128
# Of "ivfpq": bytes an item, clusters looked at, and items that it is trained on at most.
_BYTES, _LOOKED_AT, _TRAINED_ON = 64, 32, 200_000
# k-means of 256 centers: with fewer items FAISS refuses.
_LEAST = 256


class Built(NamedTuple):
    """An index of FAISS.

    Attributes:
      index: whose numbers are the store's.
      is_distance: whether it tells squared distances; else products.
    """

    index: Any
    is_distance: bool


def check() -> None:
    """Raises StoreError where FAISS is missing."""
    _faiss()


def build(kind: str, store: Store, codebook: Codebook | None = None) -> None:
    """Builds an index of this kind of all items, in memory for it and a shard, and writes it.

    Args:
      kind: of `KINDS`.
      store: of the items.
      codebook: of the model, for "pq".

    Raises:
      StoreError: FAISS is missing, there are too few items, or the index cannot be written.
      ValueError: the model has no codebook, for "pq".
    """
    faiss, is_distance = _faiss(), store.about["similarity"] == "negative_euclidean"
    generation = store.generation
    metric = faiss.METRIC_L2 if is_distance else faiss.METRIC_INNER_PRODUCT
    if kind == LEARNED:
        codebook = learned_codes.required(store, codebook)
        index = faiss_export.index_pq(codebook, np.zeros((0, store.width), np.float32))
        _fill(store, lambda rows: faiss_export.extend(index, codebook, rows))
    else:
        index = _empty(kind, store, metric)
        _fill(store, index.add)
    path, about = _paths(store, kind)
    partial = path.with_suffix(".partial")
    try:
        # What it says of the index before is no longer true, whatever happens now.
        about.unlink(missing_ok=True)
        faiss.write_index(index, str(partial))
        partial.replace(path)
        about.write_text(json.dumps({"generation": generation}))
    except (OSError, RuntimeError) as error:
        raise StoreError(f"{path} cannot be written: {error}") from error


def built(store: Store) -> list[str]:
    """The kinds that there are of a store, old ones too."""
    return [kind for kind in KINDS if _paths(store, kind)[0].exists()]


def is_current(kind: str, store: Store) -> bool:
    """Whether the index of this kind is there, and of the items as they are."""
    try:
        return _generation(kind, store) == store.generation
    except StoreError:
        return False


def load(kind: str, store: Store) -> Built:
    """The index of this kind.

    Raises:
      StoreError: it is not there, is older than the items, or cannot be read.
    """
    path, _ = _paths(store, kind)
    if _generation(kind, store) != store.generation:
        raise StoreError(
            f"{path} was built before the last changes: index again with --kind={kind}"
        )
    try:
        index = _faiss().read_index(str(path))
    except RuntimeError as error:
        raise StoreError(f"{path} cannot be read; index again with --kind={kind}") from error
    return Built(index, store.about["similarity"] == "negative_euclidean")


def _generation(kind: str, store: Store) -> int:
    """Of the store that the index of this kind was built of."""
    _, about = _paths(store, kind)
    try:
        return int(json.loads(about.read_text())["generation"])
    except FileNotFoundError as error:
        raise StoreError(
            f"{store.folder} has no index of the kind {kind!r}: give --kind={kind} when indexing"
        ) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{about} cannot be read: {error}; index with --kind={kind}") from error


def search(index: Built, queries: Float[np.ndarray, "q d"], k: int) -> Found:
    """The k items found for each query, the best first; scores as the exact search has them.

    Those of "ivfpq" and "pq" are of what the codes stand for.
    """
    values, numbers = index.index.search(np.ascontiguousarray(queries, np.float32), k)
    scores = -np.sqrt(np.maximum(values, 0)) if index.is_distance else values
    return Found(numbers.astype(np.int32), np.where(numbers < 0, -np.inf, scores))


def _empty(kind: str, store: Store, metric: int) -> Any:
    """An index without items, trained where it must be."""
    faiss, count, width = _faiss(), len(store), store.width
    if kind == "flat":
        return faiss.IndexFlat(width, metric)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, NEIGHBOURS, metric)
        index.hnsw.efConstruction, index.hnsw.efSearch = BUILDING, SEARCHING
        return index
    if count < _LEAST:
        raise StoreError(
            f"{store.folder} has {count} items, an index of the kind 'ivfpq' needs {_LEAST}: "
            "few are searched exactly at once"
        )
    parts = max(n for n in range(1, min(_BYTES, width) + 1) if width % n == 0)
    lists = max(1, min(round(4 * count**0.5), count // 39))
    index = faiss.IndexIVFPQ(faiss.IndexFlat(width, metric), width, lists, parts, 8, metric)
    index.nprobe = min(_LOOKED_AT, lists)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _TRAINED_ON)).astype(np.int64))
    index.train(store.embeddings(chosen))
    return index


def _fill(store: Store, add: Callable[[Float[np.ndarray, "n d"]], object]) -> None:
    for _, rows in store.shards():
        add(np.ascontiguousarray(rows))


def _paths(store: Store, kind: str) -> tuple[Path, Path]:
    """(the index, of what it was built)."""
    return store.folder / f"{kind}.faiss", store.folder / f"{kind}.json"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise StoreError(
            "FAISS is missing, of which this kind of index is: pip install 'vse_jax[search]'; "
            "--kind=exact needs nothing"
        ) from error
    return faiss
