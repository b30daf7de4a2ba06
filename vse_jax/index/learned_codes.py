"""The items of a store as the codes of the model's learned codebook: some bytes each.

They lie in `codes/<codebook>/<number>.npy` beside the embeddings, uint8 [n, M], a file for each
shard. A shard never changes, so only those without such a file are quantized, and a build that was
stopped goes on. The codebook is part of the name: codes of another one are never read.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float, UInt8

from vse_jax import codebook as codebooks
from vse_jax.codebook import Codebook
from vse_jax.evaluators import codes
from vse_jax.index import exact
from vse_jax.index.database import StoreError
from vse_jax.index.exact import Found
from vse_jax.index.shards import Files, Shard
from vse_jax.index.store import Store

FOLDER = "codes"


def build(store: Store, codebook: Codebook | None) -> None:
    """Quantizes the shards that have no codes yet, in memory for one, and removes old codes.

    Raises:
      StoreError: the model compares by no distance, or the codes cannot be written.
      ValueError: the model has no codebook.
    """
    book = required(store, codebook)
    files = _files(store, book)
    layout = store.layout()
    with store.database.told():
        files.folder.mkdir(parents=True, exist_ok=True)
        for other in files.folder.parent.iterdir():
            if other != files.folder:
                shutil.rmtree(other)
        files.keep([shard.number for shard in layout])
        for shard in layout:
            if not _is_whole(files, shard):
                files.write(shard.number, codebooks.quantize(store.read(shard), book))


def is_built(store: Store) -> bool:
    """Whether there are codes, old ones too."""
    return (store.folder / FOLDER).exists()


def is_current(store: Store, codebook: Codebook | None) -> bool:
    """Whether all items have codes of this codebook."""
    if codebook is None:
        return False
    files = _files(store, codebook)
    return is_built(store) and all(_is_whole(files, shard) for shard in store.layout())


def shards(store: Store, codebook: Codebook) -> Iterator[tuple[int, UInt8[np.ndarray, "n m"]]]:
    """(number of the first item, codes of it and those after it), memory-mapped.

    Raises:
      StoreError: some items have none, or they cannot be read.
    """
    if not is_built(store):
        raise StoreError(
            f"{store.folder} has no index of the kind 'codes': give --kind=codes when indexing"
        )
    if not is_current(store, codebook):
        raise StoreError(
            f"{store.folder / FOLDER} is not whole, or was built before the last changes: index "
            "again with --kind=codes"
        )
    files, start = _files(store, codebook), 0
    for rows in [files.read(shard) for shard in store.layout()]:
        yield start, rows
        start += len(rows)


def search(
    codebook: Codebook,
    queries: Float[np.ndarray, "q d"],
    items: Iterable[tuple[int, UInt8[np.ndarray, "_ m"]]],
    k: int,
) -> Found:
    """The k items whose codes are nearest to each query, by asymmetric distance.

    Memory does not grow with the items, as that of the exact search.

    Args:
      codebook: of the codes.
      queries: embeddings, not quantized.
      items: of `shards`.
      k: how many are wanted.
    """
    score = Partial(codes.asymmetric, jax.tree.map(jnp.asarray, codebook))
    return exact.best(score, queries, items, k)


def required(store: Store, codebook: Codebook | None) -> Codebook:
    """The codebook, where the items of a store may be searched by it; raises as `build`."""
    found = codebooks.required(codebook)
    if store.about["similarity"] != "negative_euclidean":
        raise StoreError("codes of a learned codebook are of models that compare by distance")
    return found


def _is_whole(files: Files, shard: Shard) -> bool:
    try:
        files.read(shard)
    except StoreError:
        return False
    return True


def _files(store: Store, codebook: Codebook) -> Files:
    told = hashlib.sha256()
    for part in codebook:
        told.update(b"" if part is None else np.ascontiguousarray(part, np.float32).tobytes())
    folder = store.folder / FOLDER / told.hexdigest()[:16]
    return Files(folder, len(codebook.centroids), np.uint8)
