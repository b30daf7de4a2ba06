"""Steps and scoring of VSE-infinity and SGRAF beside PyTorch's, on 49 regions of 1,280 channels.

Memory is measured in processes of their own, which are this module:
python -m benchmarks.networks {step,PyTorch,scores} NETWORK PRECISION.
"""

import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import step
from benchmarks.memory import in_process, peak, start_peak
from benchmarks.timing import Options, Row, alternately, rate, ratio
from vse_jax import assembly, parallel
from vse_jax.encode import Encoder

REGIONS, WIDTH = 49, 1280
# What ours should be over PyTorch's speed.
WANTED = {"vse_infinity": 1.5, "saf": 3.0}
# Of ours; PyTorch's twins are in float32, as the released codes are.
PRECISIONS = ("float32", "bfloat16")
TORCH = "PyTorch"
# SAF's gradient has no share through the batch norm's statistics, PyTorch's has.
GRADIENT = {"vse_infinity": 1e-3, "saf": 0.1}
# Flickr8k's test split, and the part of it that is scored in turns.
IMAGES, CAPTIONS = 1000, 5000
SOME_IMAGES, SOME_CAPTIONS = 200, 400


def run(options: Options) -> list[Row]:
    """Rows of the steps, of scoring, and of the memory of either."""
    rows = []
    for name in WANTED:
        rows += steps(name, options)
    rows += scoring(options)
    for name, precision in itertools.product(("saf", "sgr"), PRECISIONS):
        found = in_process("benchmarks.networks", "scores", name, precision)
        what = f"{name}, {precision}"
        rows += [
            Row("networks", f"{what}: {IMAGES} x {CAPTIONS} pairs", found["seconds"], "s",
                note=f"{REGIONS} regions"),
            Row("networks", f"{what}: peak of the process", found["total"] / 2**30, "GiB",
                wanted="<= 4", met=found["total"] <= 4 * 2**30, note=found["how"]),
        ]  # fmt: skip
    return rows


def steps(name: str, options: Options) -> list[Row]:
    """The training step at batch 128 in turns with PyTorch's, and the memory of both."""
    conf = step.config(name)
    captions = step.captions_of(options, conf)
    given = step.batches(captions, conf.train.batch_size, WIDTH, 4, REGIONS)
    ours = {
        precision: step.OurStep(step.config(name, precision), captions.vocabulary)
        for precision in PRECISIONS
    }
    work: dict[str, Callable[[Any], Any]] = {f"ours, {key}": one for key, one in ours.items()}
    # Of each, the program that measures its memory, and in which precision.
    programs = {f"ours, {key}": ("step", key) for key in ours} | {TORCH: (TORCH, "float32")}
    if importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_twins import TrainStep

        params, still = ours["float32"].params, step.without_dropout(conf)
        twin = TrainStep(params, still, compiled=False, still=True)
        step.agree(
            step.OurStep(still, captions.vocabulary, still=True), twin, given[:1], GRADIENT[name]
        )
        work[TORCH] = TrainStep(params, conf, compiled=False)
    timings = alternately(
        {
            kind: lambda number, one=one: one(given[number % len(given)])
            for kind, one in work.items()
        },
        options.rounds or 5,
        warmup=1,
    )
    memory = {}
    for kind in timings:
        program, precision = programs[kind]
        memory[kind] = in_process("benchmarks.networks", program, name, precision)
    what = f"batch {conf.train.batch_size}, {REGIONS} regions; {captions.source}"
    rows = []
    for kind, timing in timings.items():
        found = memory[kind]
        rows += [
            rate("networks", f"{name} step, {kind}", timing, 1, "steps/s", what),
            Row("networks", f"{name} step, {kind}: peak above its start",
                found["peak"] / 2**20, "MiB", note=found["how"]),
        ]  # fmt: skip
    return rows + [
        row
        for kind in timings
        if kind != TORCH and TORCH in timings
        for row in (
            ratio(
                "networks", f"{name} step: time of {TORCH} / {kind}", timings[TORCH],
                timings[kind], at_least=WANTED[name],
            ),
            _less(f"{name} step: memory of {kind} / {TORCH}", memory[kind], memory[TORCH]),
        )
    ]  # fmt: skip


def _less(quantity: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Row:
    share = ours["peak"] / theirs["peak"]
    return Row("networks", quantity, share, "x", wanted="< 1", met=share < 1)


def scoring(options: Options) -> list[Row]:
    """SAF's scores of pictures with captions in turns with PyTorch's."""
    scorers = {
        precision: _scorer("saf", SOME_IMAGES, SOME_CAPTIONS, precision) for precision in PRECISIONS
    }
    work = {f"ours, {precision}": score for precision, (score, _, _) in scorers.items()}
    if importlib.util.find_spec("torch") is not None:
        import torch

        from benchmarks.torch_twins import SAFLoss

        ours, conf, params = scorers["float32"]
        module = SAFLoss(params, conf).eval()
        batch = _given(conf, SOME_IMAGES, SOME_CAPTIONS)
        lengths = torch.from_numpy(batch["token_mask"].sum(1))
        tokens = torch.from_numpy(batch["tokens"].astype(np.int64))
        with torch.inference_mode():
            encoded = module.encode(torch.from_numpy(batch["features"]), tokens, lengths)
        work[TORCH] = lambda: module.scores(*encoded).numpy()
        np.testing.assert_allclose(ours(), work[TORCH](), atol=1e-4)
    timings = alternately(
        {kind: lambda _, one=one: one() for kind, one in work.items()}, options.rounds or 5, 1
    )
    pairs = SOME_IMAGES * SOME_CAPTIONS
    rows = [
        rate("networks", f"saf scores, {kind}", timing, pairs, "pairs/s", f"{REGIONS} regions")
        for kind, timing in timings.items()
    ]
    if TORCH in timings:
        rows += [
            ratio("networks", f"saf scores: time of {TORCH} / {kind}", timings[TORCH], timing,
                  at_least=WANTED["saf"])
            for kind, timing in timings.items()
            if kind != TORCH
        ]  # fmt: skip
    return rows


def _given(conf: ConfigDict, pictures: int, sentences: int) -> dict[str, np.ndarray]:
    """Drawn features of pictures, and drawn captions."""
    captions = step.drawn(conf)
    features = np.random.default_rng(0).gamma(0.5, 1.0, (pictures, REGIONS, WIDTH))
    mask = captions.mask[:sentences]
    most = int(mask.sum(1).max())
    return {
        "features": features.astype(np.float32),
        "feature_mask": np.ones((pictures, REGIONS), bool),
        "tokens": captions.tokens[:sentences, :most],
        "token_mask": mask[:, :most],
    }


def _scorer(
    name: str, pictures: int, sentences: int, precision: str
) -> tuple[Callable[[], np.ndarray], ConfigDict, Any]:
    """What scores that many encoded pictures and captions, its config and parameters."""
    conf = step.without_dropout(step.config(name, precision))
    conf.train.freeze, conf.model.image.weights = (), None
    frozen = assembly.Frozen(image=False, text=False)
    built = assembly.build_model(conf, assembly.Words(step.VOCABULARY, 0, ()), frozen, WIDTH)
    encoder = Encoder(built.model, parallel.Devices(conf.parallel, tuple(jax.devices()[:1])))
    variables = encoder.variables(built.variables["params"], built.variables["batch_stats"])
    batch = _given(conf, pictures, sentences)

    def slices(names: tuple[str, ...], count: int) -> Any:
        for start in range(0, count, 200):
            rows = {key: batch[key][start : start + 200] for key in names}
            yield rows | {"weight": np.ones(len(rows[names[0]]), np.float32)}

    images = encoder.images(variables, slices(("features", "feature_mask"), pictures))
    texts = encoder.texts(variables, slices(("tokens", "token_mask"), sentences))
    return lambda: encoder.scores(variables, images, texts), conf, built.variables["params"]


def _of_step(name: str, kind: str, precision: str) -> dict[str, Any]:
    """The memory of two steps above what is in use when they begin, all state being there."""
    conf = step.config(name, precision)
    captions = step.drawn(conf)
    given = step.batches(captions, conf.train.batch_size, WIDTH, 1, REGIONS)
    ours = step.OurStep(conf, captions.vocabulary)
    work: Callable[[Any], Any] = ours
    if kind == TORCH:
        from benchmarks.torch_twins import TrainStep

        work = TrainStep(ours.params, conf, compiled=False)
    work(given[0])  # compiling, and PyTorch's gradients and moments, take memory of their own
    before = start_peak()
    work(given[0])
    work(given[0])
    most, how = peak()
    return {"peak": most - before, "how": how}


def main(kind: str, name: str, precision: str) -> None:
    """Prints what was found as one line of JSON."""
    if kind == "scores":
        score, _, _ = _scorer(name, IMAGES, CAPTIONS, precision)
        start_peak()
        begun = time.perf_counter()
        score()
        seconds = time.perf_counter() - begun
        most, how = peak()
        found = {"seconds": seconds, "total": most, "how": how}
    else:
        found = _of_step(name, kind, precision)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
