"""Training steps from pixels, both towers trained further, beside PyTorch's.

ResNet-50 and BERT under VSE-infinity's heads on the grid's cells and the words, and ViT-B/16 and
BERT under a linear layer of each one's whole. Weights are random, which does not matter to speed.
That PyTorch's step does the same is shown by tests/test_benchmark_pixels.py, in small.

Memory is measured in processes of their own, which are this module:
python -m benchmarks.pixels {ours,PyTorch} SYSTEM PRECISION BATCH.
"""

import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import step_costs
from ml_collections import ConfigDict

from benchmarks import peak, step
from benchmarks.memory import in_process, start_peak
from benchmarks.memory import peak as memory_peak
from benchmarks.step import COMPILED, TORCH
from benchmarks.timing import Options, Row, Timing, alternately, median_row, rate, ratio
from vse_jax.models.backbones import bert, weights

BATCHES = 4
# A BERT without dropout, for comparisons.
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class System(NamedTuple):
    """What is trained: of configs/flickr8k.py, with a backbone of pictures and what it hands on."""

    choice: str
    backbone: str
    features: str
    title: str


SYSTEMS = {
    "vse_infinity": System(
        "vse_infinity,text=bert", "resnet", "grid", "ResNet-50 + BERT, VSE-infinity"
    ),
    # One vector a side: 196 patches to be sorted are not what a ViT is used with.
    "vit": System("vsepp,text=bert", "vit", "pooled", "ViT-B/16 + BERT, linear"),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a step.

    Attributes:
      batch: pairs.
      image_size: pixels a side.
      reader: `config.json` of the BERT; an empty one is bert-base-uncased's, which VSE-infinity's
        authors train further.
      side: of the matrices whose product is the peak.
    """

    batch: int
    image_size: int = 224
    reader: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    side: int = peak.SIDE


def run(options: Options) -> list[Row]:
    """Rows of both: 128 pairs in bfloat16 on an accelerator, 4 in float32 on a CPU."""
    rows = []
    for name in SYSTEMS:
        rows += measure(name, *_usual(), options.rounds, options.compile)
        rows += memory(name, *_usual())
    return rows


def _usual() -> tuple[Sizes, str]:
    """(sizes, precision) for this machine."""
    if jax.default_backend() == "cpu":
        return Sizes(4), "float32"
    # A smaller product would not fill such a device.
    return Sizes(128, side=2 * peak.SIDE), "bfloat16"


def config(name: str, sizes: Sizes, precision: str) -> ConfigDict:
    """A system's, from pixels and with all of it trained, the reader at its preset's rate.

    The same work on both sides: no token altered, nothing averaged.
    """
    system = SYSTEMS[name]
    conf = step.config(system.choice, precision)
    conf.data.image_size, conf.train.batch_size = sizes.image_size, sizes.batch
    conf.model.image.backbone, conf.model.image.weights = system.backbone, None
    conf.model.image.features = system.features
    conf.train.freeze = tuple(rule for rule in conf.train.freeze if not rule[0].startswith("image"))
    conf.model.text.alter = conf.train.ema = 0.0
    return conf


class OurStep(step.OurStep):
    """The project's own step from pixels, one host batch a call."""

    def __init__(self, conf: ConfigDict, reader: Mapping[str, Any]) -> None:
        """Random weights; `reader` is the `config.json` of the BERT."""
        conf = conf.copy_and_resolve_references()
        with tempfile.TemporaryDirectory() as folder:
            # A reader's sizes come with its weights only.
            vocabulary = _save_reader(Path(folder), reader)
            conf.model.text.weights = folder
            super().__init__(conf, vocabulary)

    def flops(self, batch: step.Batch) -> float:
        """FLOPs of the products of a step on one device, padding included; see `step_costs`."""
        given = self._state, self._devices.split(batch)
        return step_costs.count(self._step, *given, devices=self._devices.count).flops


def _save_reader(folder: Path, reader: Mapping[str, Any]) -> int:
    """Saves a BERT with random weights as the hub's are; its number of tokens."""
    module = bert.make(reader)
    example = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), *example)
    safetensors.numpy.save_file(weights.revert(variables, bert.RULES), folder / weights.WEIGHTS)
    (folder / weights.CONFIG).write_text(json.dumps({"model_type": "bert", **reader}))
    return module.vocab_size


def batches(conf: ConfigDict, reader: Mapping[str, Any], count: int = BATCHES) -> list[step.Batch]:
    """Random pictures uint8 [b, h, w, 3] with drawn captions; those of a picture have its id."""
    captions = step.drawn(conf, bert.make(reader).vocab_size)
    made = step.batches(captions, conf.train.batch_size, width=1, count=count)
    shape = (conf.data.image_size, conf.data.image_size, 3)
    for batch in made:
        del batch["features"], batch["feature_mask"]
        batch["image"] = np.stack(
            [np.random.default_rng(i).integers(0, 256, shape, np.uint8) for i in batch["image_id"]]
        )
    return made


def agree(name: str, sizes: Sizes, steps: int = 1) -> None:
    """Steps both sides from the same weights, without dropout, in float32.

    Raises:
      AssertionError: they do not do the same, see `step.agree`.
    """
    from benchmarks.torch_pixels import TrainStep

    conf = step.without_dropout(config(name, sizes, "float32"))
    reader = {**sizes.reader, **STILL}
    ours = OurStep(conf, reader)
    twin = TrainStep(ours.params, conf, reader, compiled=False)
    step.agree(ours, twin, batches(conf, reader, steps))


def measure(
    name: str, sizes: Sizes, precision: str, rounds: int | None = None, compiled: bool = False
) -> list[Row]:
    """Rows of a system's step in turns with its twins, where their libraries are installed.

    Args:
      name: of SYSTEMS.
      sizes: of the step.
      precision: "float32" or "bfloat16".
      rounds: of the comparison; None: 20, on a CPU 3.
      compiled: whether PyTorch's is also measured compiled.
    """
    conf = config(name, sizes, precision)
    given = batches(conf, sizes.reader)
    ours = OurStep(conf, sizes.reader)
    work: dict[str, Callable[[step.Batch], Any]] = {"ours": ours}
    work |= dict(_twins(conf, sizes.reader, ours.params, compiled, given))
    timings = alternately(
        {
            kind: lambda number, one=one: one(given[number % len(given)])
            for kind, one in work.items()
        },
        rounds or (3 if jax.default_backend() == "cpu" else 20),
    )
    best = peak.gflops(sizes.side, dtype=precision)
    return _rows(name, sizes, precision, timings, 1e-9 * ours.flops(given[0]), best)


def _twins(
    conf: ConfigDict,
    reader: Mapping[str, Any],
    params: Any,
    compiled: bool,
    given: list[step.Batch],
) -> Iterator[tuple[str, Callable[[step.Batch], Any]]]:
    """PyTorch's step from the same weights: eager and, if asked for and possible, compiled."""
    if not _twin_is_possible():
        return
    from benchmarks.torch_pixels import TrainStep

    twin = partial(TrainStep, params, conf, reader)
    yield TORCH, twin(compiled=False)
    if compiled and step.compiles(by_compiler := twin(compiled=True), given):
        yield COMPILED, by_compiler


def _twin_is_possible() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "timm", "transformers"))


def _rows(
    name: str,
    sizes: Sizes,
    precision: str,
    timings: Mapping[str, Timing],
    gflop: float,
    best: float,
) -> list[Row]:
    title, what = SYSTEMS[name].title, _what(sizes, precision)
    counted = "of ours, scans and padding included, on one device"
    rows = [Row("pixels", f"{title}: products of a step", gflop, "GFLOP", note=counted)]
    for kind, timing in timings.items():
        shares = [100 * gflop / second / best for second in timing.seconds]
        rows += [
            rate("pixels", f"{title}, {kind}", timing, sizes.batch, "pairs/s", what),
            median_row("pixels", f"{title}, {kind}: share of peak", shares, "%",
                       f"these products, of {best:,.0f} GFLOP/s of a product in {precision}"),
        ]  # fmt: skip
    rows += [
        ratio("pixels", f"{title}: time of {kind} / ours", timing, timings["ours"], note=what)
        for kind, timing in timings.items()
        if kind != "ours"
    ]
    return rows


def _what(sizes: Sizes, precision: str) -> str:
    small = "; small, for a CPU" if jax.default_backend() == "cpu" else ""
    return f"batch {sizes.batch}, {sizes.image_size} pixels a side, {precision}{small}"


def memory(name: str, sizes: Sizes, precision: str) -> list[Row]:
    """Rows of what a step takes beside what is there between steps, and of the whole.

    Of the published networks at 224 pixels: of `sizes` the batch alone counts.
    """
    found = {
        kind: in_process("benchmarks.pixels", kind, name, precision, sizes.batch)
        for kind in (("ours", TORCH) if _twin_is_possible() else ("ours",))
    }
    title, what = SYSTEMS[name].title, _what(Sizes(sizes.batch), precision)
    rows = [
        Row("pixels", f"{title}, {kind}: {quantity}", one[key] / 2**20, "MiB",
            note=f"{one['how']}; {what}")
        for kind, one in found.items()
        for quantity, key in (("peak above its start", "peak"), ("peak", "total"))
    ]  # fmt: skip
    if TORCH in found:
        share = found["ours"]["peak"] / found[TORCH]["peak"]
        rows.append(
            Row("pixels", f"{title}: memory of ours / {TORCH}", share, "x", note="above the start")
        )
    return rows


def memory_of_step(kind: str, name: str, sizes: Sizes, precision: str) -> dict[str, Any]:
    """Bytes of two steps above what is in use when they begin, all state being there, and in all.

    Of PyTorch on a GPU by its own allocator, as JAX's does not see it.
    """
    conf = config(name, sizes, precision)
    (batch,) = batches(conf, sizes.reader, 1)
    ours = OurStep(conf, sizes.reader)
    work: Callable[[step.Batch], Any] = ours
    if kind == TORCH:
        from benchmarks import torch_pixels

        work = torch_pixels.TrainStep(ours.params, conf, sizes.reader, compiled=False)
    work(batch)  # compiling, and PyTorch's gradients and moments, take memory of their own

    def twice() -> None:
        work(batch)
        work(batch)

    if kind == TORCH and peak.torch_device() == "cuda":
        above, most = torch_pixels.allocated(twice)
        return {"peak": above, "total": most, "how": "by PyTorch's allocator"}
    before = start_peak()
    twice()
    most, how = memory_peak()
    return {"peak": most - before, "total": most, "how": how}


if __name__ == "__main__":
    # Another process may hold most of the device, and JAX would take what is left of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    program, system_name, in_precision, pairs = sys.argv[1:]
    told = memory_of_step(program, system_name, Sizes(int(pairs)), in_precision)
    sys.stdout.write(json.dumps(told) + "\n")
