"""What it costs to compare where a classifier and a captioner look, beside training both."""

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import step
from benchmarks.timing import Options, Row, alternately, median_row, ratio

# Of the frequent words of captions about half are function words.
CLASSES, FUNCTION_WORDS = 100, tuple(range(4)) + tuple(range(4, step.VOCABULARY, 2))
ROWS = {
    "joint": {"objective.disagreement.weight": 0.0},
    "first order": {"objective.disagreement.second_order": False},
    "second order": {"objective.disagreement.second_order": True},
}
# Of MobileNetV2's grid at 224 pixels.
CELLS, WIDTH = 49, 1280


def run(options: Options) -> list[Row]:
    """Seconds a step of `cam`: on cached grids of Flickr8k, and on the pixels of `shapes`."""
    frozen, pixels = step.config("cam"), step.config("cam", file="shapes")
    captions = step.captions_of(options, frozen)
    rng = np.random.default_rng(2)
    of_features = step.batches(captions, frozen.train.batch_size, WIDTH, 4, CELLS)
    of_pixels = [
        {name: rows for name, rows in batch.items() if not name.startswith("feature")}
        | {"image": rng.integers(0, 256, (pixels.train.batch_size, 96, 96, 3), np.uint8)}
        for batch in step.batches(captions, pixels.train.batch_size, 1, 4)
    ]
    rounds = options.rounds or 10
    return [
        *measure("frozen grids", frozen, captions.vocabulary, of_features, rounds),
        *measure("pixels", pixels, captions.vocabulary, of_pixels, rounds),
    ]


def measure(
    what: str, conf: ConfigDict, vocabulary: int, given: list[step.Batch], rounds: int
) -> list[Row]:
    """Rows of the joint model and of both orders of the disagreement, and their ratios."""
    rng = np.random.default_rng(3)
    for batch in given:
        batch["label"] = rng.integers(0, CLASSES, len(batch["weight"])).astype(np.int32)
    steps: dict[str, Callable[[step.Batch], Any]] = {}
    for name, values in ROWS.items():
        own = conf.copy_and_resolve_references()
        own.update_from_flattened_dict(values)
        steps[name] = step.OurStep(own, vocabulary, False, CLASSES, FUNCTION_WORDS)
    timings = alternately(
        {
            name: lambda number, step=step: step(given[number % len(given)])
            for name, step in steps.items()
        },
        rounds,
    )
    content = np.mean(
        [(~np.isin(batch["tokens"], FUNCTION_WORDS) & batch["token_mask"]).sum(1).mean()
         for batch in given]
    )  # fmt: skip
    note = f"batch {len(given[0]['weight'])}, {content:.1f} content words a caption"
    rows = [
        median_row("maps", f"step on {what}, {name}", timing.seconds, "s", note)
        for name, timing in timings.items()
    ]
    return rows + [
        ratio("maps", f"{what}, time of {name} / joint", timings[name], timings["joint"])
        for name in ("first order", "second order")
    ]
