"""Training steps of VSE-infinity and SAF beside PyTorch's, on 49 regions of 1,280 channels.

Memory is measured in processes of their own, which are this module:
python -m benchmarks.networks {ours,PyTorch} NETWORK PRECISION.
"""

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from benchmarks import step
from benchmarks.memory import in_process, peak, start_peak
from benchmarks.timing import Options, Row, alternately, median_row, rate, ratio

REGIONS, WIDTH = 49, 1280
# What ours should be over PyTorch's speed.
WANTED = {"vse_infinity": 1.5, "saf": 3.0}
# Of ours; PyTorch's twins are in float32, as the released codes are.
PRECISIONS = ("float32", "bfloat16")
TORCH = "PyTorch"
# SAF's nodes have no gradient through the batch norm's statistics; PyTorch's have.
GRADIENT = {"vse_infinity": 1e-3, "saf": 0.1}
# Processes in which memory is measured: how an allocator's blocks fall differs between them.
PROCESSES = 3


def run(options: Options) -> list[Row]:
    """Rows of the steps and of their memory; of pairwise networks the whole process', too."""
    rows = [row for name in WANTED for row in steps(name, options)]
    for name, precision in itertools.product(("saf", "sgr"), PRECISIONS):
        found = in_process("benchmarks.networks", "ours", name, precision)
        rows.append(within(f"{name} steps, {precision}", "networks", found))
    return rows


def within(what: str, benchmark: str, found: dict[str, Any]) -> Row:
    """The row of a process that should do with 4 GiB."""
    total = found["total"] / 2**30
    return Row(benchmark, f"{what}: peak of the process", total, "GiB",
               wanted="<= 4", met=total <= 4, note=found["how"])  # fmt: skip


def steps(name: str, options: Options) -> list[Row]:
    """The training step at batch 128 in turns with PyTorch's, and the memory of both."""
    conf = _config(name)
    captions = step.captions_of(options, conf)
    given = step.batches(captions, conf.train.batch_size, WIDTH, 4, REGIONS)
    ours = {
        precision: step.OurStep(_config(name, precision), captions.vocabulary)
        for precision in PRECISIONS
    }
    work: dict[str, Callable[[Any], Any]] = {f"ours, {key}": one for key, one in ours.items()}
    # Of each, the program that measures its memory, and in which precision.
    programs = {f"ours, {key}": ("ours", key) for key in ours} | {TORCH: (TORCH, "float32")}
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
    memory = {
        kind: [in_process("benchmarks.networks", program, name, precision)
               for _ in range(PROCESSES)]
        for kind, (program, precision) in programs.items() if kind in timings
    }  # fmt: skip
    what = f"batch {conf.train.batch_size}, {REGIONS} regions; {captions.source}"
    rows = []
    for kind, timing in timings.items():
        found = [one["peak"] / 2**20 for one in memory[kind]]
        rows += [
            rate("networks", f"{name} step, {kind}", timing, 1, "steps/s", what),
            median_row("networks", f"{name} step, {kind}: peak above its start", found, "MiB",
                       note=f"{memory[kind][0]['how']}, {PROCESSES} of them"),
        ]  # fmt: skip
    peaks = {row.quantity: row.median for row in rows}
    for kind in timings:
        if kind == TORCH or TORCH not in timings:
            continue
        of, over = (peaks[f"{name} step, {one}: peak above its start"] for one in (kind, TORCH))
        rows += [
            ratio("networks", f"{name} step: time of {TORCH} / {kind}", timings[TORCH],
                  timings[kind], at_least=WANTED[name]),
            Row("networks", f"{name} step: memory of {kind} / {TORCH}", of / over, "x",
                wanted="< 1", met=of < over),
        ]  # fmt: skip
    return rows


def _config(name: str, precision: str = "float32") -> ConfigDict:
    """The step as released, the same work on both sides: no token altered, nothing averaged."""
    conf = step.config(name, precision)
    conf.model.text.alter = conf.train.ema = 0.0
    return conf


def _of_step(name: str, kind: str, precision: str) -> dict[str, Any]:
    """The memory of two steps above what is in use when they begin, all state being there."""
    conf = _config(name, precision)
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
    return {"peak": most - before, "total": most, "how": how}


if __name__ == "__main__":
    program, network, precision = sys.argv[1:]
    sys.stdout.write(json.dumps(_of_step(network, program, precision)) + "\n")
