"""Steps and scoring of VSE-infinity and SGRAF beside PyTorch's, on 49 regions of 1,280 channels.

Memory is measured in processes of their own, which are this module:
python -m benchmarks.networks {step,PyTorch,scores} NETWORK.
"""

import importlib.util
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
    for name in ("saf", "sgr"):
        found = in_process("benchmarks.networks", "scores", name)
        rows += [
            Row("networks", f"{name}: {IMAGES} x {CAPTIONS} pairs", found["seconds"], "s",
                note=f"{REGIONS} regions"),
            Row("networks", f"{name}: peak of the process", found["total"] / 2**30, "GiB",
                wanted="<= 4", met=found["total"] <= 4 * 2**30, note=found["how"]),
        ]  # fmt: skip
    return rows


def steps(name: str, options: Options) -> list[Row]:
    """The training step at batch 128 in turns with PyTorch's, and the memory of both."""
    conf = step.config(name)
    captions = step.captions_of(options, conf)
    given = step.batches(captions, conf.train.batch_size, WIDTH, 4, REGIONS)
    ours = step.OurStep(conf, captions.vocabulary)
    work: dict[str, Callable[[Any], Any]] = {"ours": ours}
    if importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_twins import TrainStep

        still = step.without_dropout(conf)
        twin = TrainStep(ours.params, still, compiled=False, still=True)
        step.agree(
            step.OurStep(still, captions.vocabulary, still=True), twin, given[:1], GRADIENT[name]
        )
        work["PyTorch"] = TrainStep(ours.params, conf, compiled=False)
    timings = alternately(
        {
            kind: lambda number, one=one: one(given[number % len(given)])
            for kind, one in work.items()
        },
        options.rounds or 5,
        warmup=1,
    )
    rows = []
    for kind, timing in timings.items():
        what = f"batch {conf.train.batch_size}, {REGIONS} regions; {captions.source}"
        rows.append(rate("networks", f"{name} step, {kind}", timing, 1, "steps/s", what))
        found = in_process("benchmarks.networks", "step" if kind == "ours" else kind, name)
        rows.append(
            Row("networks", f"{name} step, {kind}: peak above its start",
                found["peak"] / 2**20, "MiB", note=found["how"])
        )  # fmt: skip
    if "PyTorch" in timings:
        quantity = f"{name} step: time of PyTorch / ours"
        rows.append(
            ratio("networks", quantity, timings["PyTorch"], timings["ours"], at_least=WANTED[name])
        )
        less = rows[1].median / rows[3].median
        rows.append(
            Row("networks", f"{name} step: memory of ours / PyTorch", less, "x", wanted="< 1",
                met=less < 1)
        )  # fmt: skip
    return rows


def scoring(options: Options) -> list[Row]:
    """SAF's scores of pictures with captions in turns with PyTorch's."""
    ours, conf, params = _scorer("saf", SOME_IMAGES, SOME_CAPTIONS)
    work = {"ours": ours}
    if importlib.util.find_spec("torch") is not None:
        import torch

        from benchmarks.torch_twins import SAFLoss

        module = SAFLoss(params, conf).eval()
        batch = _given(conf, SOME_IMAGES, SOME_CAPTIONS)
        lengths = torch.from_numpy(batch["token_mask"].sum(1))
        tokens = torch.from_numpy(batch["tokens"].astype(np.int64))
        with torch.inference_mode():
            encoded = module.encode(torch.from_numpy(batch["features"]), tokens, lengths)
        work["PyTorch"] = lambda: module.scores(*encoded).numpy()
        np.testing.assert_allclose(ours(), work["PyTorch"](), atol=1e-4)
    timings = alternately(
        {kind: lambda _, one=one: one() for kind, one in work.items()}, options.rounds or 5, 1
    )
    pairs = SOME_IMAGES * SOME_CAPTIONS
    rows = [
        rate("networks", f"saf scores, {kind}", timing, pairs, "pairs/s", f"{REGIONS} regions")
        for kind, timing in timings.items()
    ]
    if "PyTorch" in timings:
        quantity = "saf scores: time of PyTorch / ours"
        rows.append(ratio("networks", quantity, timings["PyTorch"], timings["ours"], at_least=3.0))
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
    name: str, pictures: int, sentences: int
) -> tuple[Callable[[], np.ndarray], ConfigDict, Any]:
    """What scores that many encoded pictures and captions, its config and parameters."""
    conf = step.without_dropout(step.config(name))
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


def _of_step(name: str, kind: str) -> dict[str, Any]:
    """The memory of two steps above what is in use when they begin."""
    conf = step.config(name)
    captions = step.drawn(conf)
    given = step.batches(captions, conf.train.batch_size, WIDTH, 1, REGIONS)
    ours = step.OurStep(conf, captions.vocabulary)
    work: Callable[[Any], Any] = ours
    if kind == "PyTorch":
        from benchmarks.torch_twins import TrainStep

        work = TrainStep(ours.params, conf, compiled=False)
    else:
        work(given[0])  # compiling takes memory of its own
    before = start_peak()
    work(given[0])
    work(given[0])
    most, how = peak()
    return {"peak": most - before, "how": how}


def main(kind: str, name: str) -> None:
    """Prints what was found as one line of JSON."""
    if kind == "scores":
        score, _, _ = _scorer(name, IMAGES, CAPTIONS)
        start_peak()
        begun = time.perf_counter()
        score()
        seconds = time.perf_counter() - begun
        most, how = peak()
        found = {"seconds": seconds, "total": most, "how": how}
    else:
        found = _of_step(name, kind)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
