"""Indices over a million generated embeddings: speed, memory, size and recall, FAISS's beside ours.

Each is built in a process of its own and searched in another; what a process has measured is kept
in `--folder`, so that the same command goes on where it was stopped.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.memory import in_process
from benchmarks.timing import Options, Row

MIB = 2**20


class Part(NamedTuple):
    """An index that is measured.

    Attributes:
      name: of it, as in `index_part`.
      title: for people.
      is_slow: whether it is built of fewer items, as it would take hours or too much memory.
    """

    name: str
    title: str
    is_slow: bool = False


# Those that others are compared with come first.
PARTS = (
    Part("flat", "FAISS Flat"),
    Part("exact", "exact"),
    Part("codes", "codes"),
    Part("pq", "FAISS IndexPQ, our codebook"),
    Part("faiss_pq", "FAISS IndexPQ, its own codebook"),
    Part("ivfpq", "FAISS IVF-PQ"),
    Part("hnsw", "FAISS HNSW", is_slow=True),
    Part("milvus", "Milvus Lite, HNSW", is_slow=True),
)


def run(options: Options) -> list[Row]:
    """Rows of every part, in `options.folder`."""
    rows: list[Row] = []
    for part in PARTS:
        items = min(options.items, options.slow_items) if part.is_slow else options.items
        rows += measure(part, options.folder, items, options.width, options.rounds or 5)
    return rows


def measure(part: Part, folder: Path, items: int, width: int, rounds: int) -> list[Row]:
    """Rows of one index over so many items.

    Args:
      part: which.
      folder: of what is generated, built and measured.
      items: that are indexed.
      width: of their embeddings.
      rounds: of the search in turns with FAISS's exact one.
    """
    place = folder / f"{items}x{width}"
    # FAISS's exact index and the true neighbours are needed by all.
    for name, stage in (("flat", "build"), ("exact", "search")):
        _once(place, name, stage, items, width, rounds)
    built = _once(place, part.name, "build", items, width, rounds)
    found = _once(place, part.name, "search", items, width, rounds)
    size = f"{items:,} x {width:,}"

    def row(quantity: str, value: float, unit: str, **more: Any) -> Row:
        return Row("index", f"{part.title}: {quantity}", value, unit, note=size, **more)

    return [
        row("recall@10", found["recall"], ""),
        *(
            row(name, found[key]["median"], unit, low=found[key]["low"], high=found[key]["high"])
            for name, key, unit in (
                ("queries in batches", "batch", "queries/s"),
                ("queries in batches, FAISS Flat in turns", "flat", "queries/s"),
                ("queries in batches / those of FAISS Flat", "ratio", "x"),
                ("one query", "one", "ms"),
            )
        ),
        row("memory of searching", found["memory"] / MIB, "MiB"),
        row("memory of building", built["memory"] / MIB, "MiB"),
        row("building", built["seconds"], "s"),
        row("building, of the cores", built["cpu_seconds"], "s"),
        row("on disk", built["bytes"] / MIB, "MiB"),
    ]


def _once(
    place: Path, part: str, stage: str, items: int, width: int, rounds: int
) -> dict[str, Any]:
    """What a process of that part measured, now or before."""
    kept = place / f"{part}.{stage}.json"
    if not kept.exists():
        found = in_process("benchmarks.index_part", part, stage, str(place), items, width, rounds)
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())
