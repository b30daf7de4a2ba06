"""What it costs to compare where a classifier and a captioner look, beside training both."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import step
from benchmarks.timing import Options, Row, alternately, median_row, ratio

# Of the frequent words of captions about half are function words.
CLASSES, FUNCTION_WORDS = 100, tuple(range(4)) + tuple(range(4, step.VOCABULARY, 2))
ROWS = {
    "joint": {"objective.disagreement.weight": 0.0},
    "first order": {"objective.disagreement.second_order": False},
    "second order": {"objective.disagreement.second_order": True},
}


def run(options: Options) -> list[Row]:
    """Seconds a step of configs/flickr8k.py:cam on cached grids of 7 x 7 cells."""
    conf = step.config("cam")
    captions = step.captions_of(options, conf)
    return measure(conf, captions, 49, options.rounds or 10)


def measure(conf: Any, captions: step.Captions, cells: int, rounds: int) -> list[Row]:
    """Rows of the joint model and of both orders of the disagreement, and their ratios."""
    steps: dict[str, Callable[[step.Batch], Any]] = {}
    for name, values in ROWS.items():
        own = conf.copy_and_resolve_references()
        own.update_from_flattened_dict(values)
        steps[name] = step.OurStep(
            own, captions.vocabulary, classes=CLASSES, function_words=FUNCTION_WORDS
        )
        width = steps[name].params["image"]["head"]["project"]["kernel"].shape[0]
    rng = np.random.default_rng(2)
    given = [
        batch | {"label": rng.integers(0, CLASSES, len(batch["weight"])).astype(np.int32)}
        for batch in step.batches(captions, conf.train.batch_size, width, 4, cells)
    ]
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
    note = f"batch {conf.train.batch_size}, {cells} cells, {content:.1f} content words a caption"
    rows = [
        median_row("maps", f"step, {name}", timing.seconds, "s", note)
        for name, timing in timings.items()
    ]
    return rows + [
        ratio("maps", f"time of {name} / joint", timings[name], timings["joint"])
        for name in ("first order", "second order")
    ]
