"""Indices of FAISS over the items of a store: kept beside it, built from it, searched by number.

"flat" compares with every item, "hnsw" walks a graph of neighbours, "ivfpq" looks at the nearest of
some clusters of items in a few bytes each, and "pq" has the codes of the model's own learned
codebook. Each knows the state of the store that it was built of, and is refused after another.
Built again it takes up what is new; where an item has changed or gone it is made anew from all.
"""

import json
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
# With so many times the items that it was trained among "ivfpq" is made anew.
_GROWN = 2


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
    """Makes the index of this kind one of all items, and writes it.

    In memory for the index and a shard; while "ivfpq" is trained, for up to 200,000 items beside.

    Args:
      kind: of `KINDS`.
      store: of the items.
      codebook: of the model, for "pq".

    Raises:
      StoreError: FAISS is missing, there are too few items, or the index cannot be written.
      ValueError: the model has no codebook, for "pq".
    """
    generation, items = store.generation, len(store)
    if kind == LEARNED:
        codebook = learned_codes.required(store, codebook)
    try:
        index, trained = _built(kind, store, codebook)
    except RuntimeError as error:
        raise StoreError(f"FAISS cannot build an index of the kind {kind!r}: {error}") from error
    path, about = _paths(store, kind)
    partial = path.with_suffix(".partial")
    told = {"items": items, "keys": store.digest(items), "trained": trained}
    try:
        # What it says of the index before is no longer true, whatever happens now.
        about.unlink(missing_ok=True)
        _faiss().write_index(index, str(partial))
        partial.replace(path)
        told["bytes"] = path.stat().st_size
        about.write_text(json.dumps({"generation": generation, **told}))
    except (OSError, RuntimeError) as error:
        raise StoreError(f"{path} cannot be written: {error}") from error


def _built(kind: str, store: Store, codebook: Codebook | None) -> tuple[Any, int]:
    """(index of all items, among how many it was trained); raises RuntimeError of FAISS."""
    grown = _grown(kind, store, codebook)
    index, before, trained = grown or (_empty(kind, store, codebook), 0, len(store))
    for start, rows in store.shards():
        if len(new := np.ascontiguousarray(rows[max(before - start, 0) :])):
            if kind == LEARNED:
                faiss_export.extend(index, codebook, new)
            else:
                index.add(new)
    return index, trained


def _grown(kind: str, store: Store, codebook: Codebook | None) -> tuple[Any, int, int] | None:
    """(index, its items, those it was trained among) of before, if only new items came since."""
    path, about = _paths(store, kind)
    try:
        noted = json.loads(about.read_text())
        items, keys, trained = (noted[name] for name in ("items", "keys", "trained"))
        is_outgrown = kind == "ivfpq" and len(store) > _GROWN * trained
        if is_outgrown or items > len(store) or store.digest(items) != keys:
            return None
        index = _faiss().read_index(str(path))
        if kind == LEARNED:  # raises where the index is of another codebook
            faiss_export.extend(index, codebook, np.zeros((0, store.width), np.float32))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError):
        return None  # there is none to go on from
    return (index, items, trained) if index.ntotal == items else None


def built(store: Store) -> list[str]:
    """The kinds that there are of a store, old ones too."""
    return [kind for kind in KINDS if _paths(store, kind)[0].exists()]


def is_current(kind: str, store: Store) -> bool:
    """Whether the index of this kind is there, whole, and of the items as they are."""
    path, _ = _paths(store, kind)
    try:
        of = _built_of(kind, store)
        return of["generation"] == store.generation and of.get("bytes") == path.stat().st_size
    except (StoreError, OSError):
        return False


def load(kind: str, store: Store) -> Built:
    """The index of this kind.

    Raises:
      StoreError: it is not there, is older than the items, or cannot be read.
    """
    path, _ = _paths(store, kind)
    if _built_of(kind, store)["generation"] != store.generation:
        raise StoreError(
            f"{path} was built before the last changes: index again with --kind={kind}"
        )
    try:
        index = _faiss().read_index(str(path))
    except RuntimeError as error:
        raise StoreError(f"{path} cannot be read; index again with --kind={kind}") from error
    return Built(index, store.about["similarity"] == "negative_euclidean")


def _built_of(kind: str, store: Store) -> dict[str, Any]:
    """What was noted beside the index of this kind; the store's "generation" always."""
    _, about = _paths(store, kind)
    try:
        noted = dict(json.loads(about.read_text()))
        return noted | {"generation": int(noted["generation"])}
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


def _empty(kind: str, store: Store, codebook: Codebook | None) -> Any:
    """An index without items, trained where it must be."""
    faiss, count, width = _faiss(), len(store), store.width
    is_distance = store.about["similarity"] == "negative_euclidean"
    metric = faiss.METRIC_L2 if is_distance else faiss.METRIC_INNER_PRODUCT
    if kind == LEARNED:
        return faiss_export.index_pq(codebook, np.zeros((0, width), np.float32))
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
