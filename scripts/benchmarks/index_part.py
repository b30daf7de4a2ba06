"""An index over generated embeddings, built or searched in this process; see `index`.

    python -m benchmarks.index_part PART build|search FOLDER ITEMS WIDTH ROUNDS

prints what was measured as JSON. Embeddings have length 1 and lie in clusters of about 250; the
centers and what is around them have variances that fall off as 1 / i over 128 axes, as those of a
model do, beside a little noise in all. Queries are others of the same kind. The codebook is what
the quantizer of LEAP comes to on embeddings that no network moves: principal axes, moving averages
over batches, k-means at the end.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import memory
from benchmarks.timing import Timing, alternately
from vse_jax.codebook import Codebook, encode
from vse_jax.index import approximate, kinds, learned_codes
from vse_jax.index.exact import Found
from vse_jax.index.records import Encoded, File, Row
from vse_jax.index.store import SHARD, Store
from vse_jax.losses import codes as losses
from vse_jax.similarity import negative_euclidean

QUERIES, NEAREST = 200, 10
AXES, IN_A_CLUSTER, AROUND, NOISE = 128, 250, 0.6, 0.1
# Bytes of a code, embeddings that codebooks are trained on, of a batch, rounds of k-means.
BYTES, CODES, TRAINED_ON, BATCH, ROUNDS = 64, 256, 65_536, 256, 10


def main(part: str, stage: str, folder: str, items: str, width: str, rounds: str) -> None:
    """Prints what `measured` finds."""
    found = measured(part, stage, Path(folder), int(items), int(width), int(rounds))
    sys.stdout.write(json.dumps(found) + "\n")


def measured(
    part: str, stage: str, place: Path, items: int, width: int, rounds: int
) -> dict[str, Any]:
    """Of a stage of a part."""
    store = generated(place, items, width)
    model = kinds.Model(negative_euclidean, codebook(place, store))
    start = memory.start_peak()
    if stage == "search":
        return search(part, store, model, rounds, start)
    begun, busy = time.perf_counter(), time.process_time()
    build(part, store, model)
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - busy,
        "memory": memory.peak()[0] - start,
        "bytes": on_disk(part, store),
    }


def draw(items: int, width: int, seed: int, count: int, first: int) -> np.ndarray:
    """`count` embeddings of a set of so many; another `first` or seed, and they are others."""
    fixed = np.random.default_rng(0)
    axes = min(AXES, width)
    scales = np.arange(1, axes + 1) ** -0.5
    scales = (scales / np.linalg.norm(scales)).astype(np.float32)
    basis = np.linalg.qr(fixed.standard_normal((width, axes)))[0].T.astype(np.float32)
    centers = scales * fixed.standard_normal((max(1, items // IN_A_CLUSTER), axes), np.float32)
    rng = np.random.default_rng([seed, first])
    around = AROUND * scales * rng.standard_normal((count, axes), np.float32)
    rows = (centers[rng.integers(0, len(centers), count)] + around) @ basis
    rows += (NOISE / width**0.5) * rng.standard_normal((count, width), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def generated(place: Path, items: int, width: int) -> Store:
    """The store of the items; made, or what is missing of it, if need be."""
    store = Store(
        place,
        {"side": "images", "model": "generated", "dimension": width,
         "similarity": "negative_euclidean"},
    )  # fmt: skip

    def rest() -> Iterator[Encoded]:
        for first in range(len(store), items, SHARD):
            rows = draw(items, width, 1, min(SHARD, items - first), first)
            for number, row in enumerate(rows, first):
                yield Encoded(File(f"{number:09d}.jpg", 1, 1), [Row(None, None, row)])

    for _ in store.add(Path("/generated"), rest()):
        pass
    return store


def codebook(place: Path, store: Store) -> Codebook:
    """The codebook of the store's items; learned if need be."""
    path = place / "codebook.npz"
    if not path.exists():
        found = learned(sample(store), max(1, min(BYTES, store.width // 4)))
        np.savez(path, centroids=found.centroids, rotation=found.rotation)
    with np.load(path) as file:
        return Codebook(file["centroids"], file["rotation"])


def sample(store: Store) -> np.ndarray:
    """Embeddings, evenly spread over the store, that codebooks are trained on."""
    count = len(store)
    return store.embeddings(np.unique(np.linspace(0, count - 1, TRAINED_ON).astype(np.int64)))


def learned(rows: np.ndarray, parts: int) -> Codebook:
    """What LEAP's quantizer comes to on embeddings that stay where they are."""
    size = min(CODES, len(rows) // 4)
    rotation = losses.principal_rotation(jnp.cov(rows, rowvar=False), parts)
    order = np.random.default_rng(0).permutation(len(rows))
    first = (rows[order[:size]] @ rotation).reshape(size, parts, -1)
    totals, sums = jnp.ones((parts, size)), jnp.swapaxes(first, 0, 1)

    @jax.jit
    def moved(totals: jax.Array, sums: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        book = Codebook(sums / totals[:, :, None], rotation)
        seen = losses.usage(batch, encode(batch, book), book, jnp.ones(len(batch), bool))
        return losses.moved_by_average(totals, sums, *seen, 0.99)

    for start in range(0, len(rows) - BATCH + 1, BATCH):
        totals, sums = moved(totals, sums, jnp.asarray(rows[order[start : start + BATCH]]))
    begun = Codebook(np.asarray(sums / totals[:, :, None]), np.asarray(rotation))
    return losses.refitted(begun, rows, ROUNDS)


def build(part: str, store: Store, model: kinds.Model) -> None:
    """Builds an index; of FAISS's own codebook there is no kind in the package."""
    if part != "faiss_pq":
        kinds.build(part, store, model)
        return
    import faiss

    assert model.codebook is not None
    parts, size, _ = model.codebook.centroids.shape
    index = faiss.IndexPQ(store.width, parts, size.bit_length() - 1)
    index.train(sample(store))
    for _, rows in store.shards():
        index.add(np.ascontiguousarray(rows))
    faiss.write_index(index, str(store.folder / "faiss_pq.faiss"))


def opened(part: str, store: Store, model: kinds.Model) -> Callable[[np.ndarray, int], Found]:
    """The search of an index."""
    if part != "faiss_pq":
        return kinds.opened(part, store, model).search
    import faiss

    index = approximate.Built(faiss.read_index(str(store.folder / "faiss_pq.faiss")), True)
    return lambda queries, k: approximate.search(index, queries, k)


def search(part: str, store: Store, model: kinds.Model, rounds: int, start: int) -> dict[str, Any]:
    """Recall, speed in turns with FAISS's exact search, milliseconds of a query alone, memory."""
    import faiss

    queries = draw(len(store), store.width, 2, QUERIES, 0)
    ask = opened(part, store, model)
    found = ask(queries, NEAREST).numbers
    held = memory.peak()[0] - start
    truth = store.folder / "truth.npy"
    if part == "exact" and not truth.exists():
        np.save(truth, found)
    same = [len({*one} & {*two}) for one, two in zip(found, np.load(truth), strict=True)]
    # From the file, so that what is measured has the memory for itself.
    path = store.folder / "flat.faiss"
    flat = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    turns = alternately(
        {"own": lambda _: ask(queries, NEAREST), "flat": lambda _: flat.search(queries, NEAREST)},
        rounds, warmup=1,
    )  # fmt: skip
    alone = alternately({"own": lambda number: ask(queries[number : number + 1], NEAREST)}, rounds)
    own, other = turns["own"].seconds, turns["flat"].seconds
    return {
        "recall": float(np.mean(same)) / NEAREST,
        "memory": held,
        "batch": spread([QUERIES / second for second in own]),
        "flat": spread([QUERIES / second for second in other]),
        "ratio": spread([b / a for a, b in zip(own, other, strict=True)]),
        "one": spread([1000 * second for second in alone["own"].seconds]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """The middle one, the least and the largest."""
    return {"median": Timing(tuple(values)).median, "low": min(values), "high": max(values)}


def on_disk(part: str, store: Store) -> int:
    """Bytes of an index, without the store's names of files."""
    where = {
        "exact": store.folder.glob("[0-9]*.npy"),
        "codes": (store.folder / learned_codes.FOLDER).rglob("*"),
        "milvus": (store.folder / "milvus.db").rglob("*"),
    }.get(part, [store.folder / f"{part}.faiss"])
    return sum(path.stat().st_size for path in where if path.is_file())


if __name__ == "__main__":
    main(*sys.argv[1:])
