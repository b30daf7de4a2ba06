"""Retrieval ranks both ways beside FAISS's exact search one way."""

import importlib.util

import numpy as np

from benchmarks.timing import Options, Row, alternately, rate, ratio
from vse_jax.evaluators import retrieval

IMAGES, CAPTIONS_OF_EACH, WIDTH, NEAREST = 5000, 5, 1024, 10


def run(options: Options) -> list[Row]:
    """COCO's size: 5,000 images, 25,000 captions, 1,024 channels."""
    return measure(IMAGES, WIDTH, options.rounds or 7)


def measure(images: int, width: int, rounds: int) -> list[Row]:
    """Rows of `images` pictures and five captions each; matrices start as host arrays."""
    rng = np.random.default_rng(0)
    ids = np.arange(images)
    owners = np.repeat(ids, CAPTIONS_OF_EACH)
    pictures = _unit(rng.standard_normal((images, width), np.float32))
    noise = rng.standard_normal((len(owners), width), np.float32) / np.sqrt(width)
    captions = _unit(pictures[owners] + 4.0 * noise)
    protocol = f"benchmark_{images}"

    work = {
        "ranks both ways": lambda _: retrieval.evaluate(protocol, pictures, captions, owners),
        "nearest 10, one way": lambda _: retrieval.top_k(pictures, captions, NEAREST),
    }
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        index = faiss.IndexFlatIP(width)
        index.add(captions)
        work["FAISS one way"] = lambda _: index.search(pictures, NEAREST)
        _agree(index.search(pictures, NEAREST), retrieval.top_k(pictures, captions, NEAREST))
    timings = alternately(work, rounds)

    size = f"{images} x {len(owners)} x {width}"
    rows = [
        rate("evaluation", name, timing, images * len(owners) * 1e-6, "M pairs/s", size)
        for name, timing in timings.items()
    ]
    rows += [
        Row("evaluation", f"seconds, {name}", timing.median, "s", min(timing.seconds),
            max(timing.seconds))
        for name, timing in timings.items()
    ]  # fmt: skip
    if "FAISS one way" in timings:
        faiss_time = timings["FAISS one way"]
        for name, limit in (("ranks both ways", 1.3), ("nearest 10, one way", None)):
            quantity = f"time of {name} / FAISS one way"
            rows.append(ratio("evaluation", quantity, timings[name], faiss_time, at_most=limit))
    return rows


def _agree(theirs: tuple, ours: tuple) -> None:
    """Raises AssertionError unless both found the same scores."""
    difference = np.max(np.abs(theirs[0] - ours[1]))
    assert difference < 1e-5, f"FAISS and top_k differ by {difference}"


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
