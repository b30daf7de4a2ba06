"""Training steps of every network beside PyTorch's, on features of 1,280 channels.

Memory is measured in processes of their own, which are this module:
python -m benchmarks.networks {ours,PyTorch} NETWORK PRECISION.
"""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from benchmarks import peak, step
from benchmarks.maps import CLASSES, FUNCTION_WORDS
from benchmarks.memory import in_process, start_peak
from benchmarks.memory import peak as memory_peak
from benchmarks.step import COMPILED, TORCH
from benchmarks.timing import Options, Row, Timing, alternately, median_row, rate, ratio

REGIONS, WIDTH = 49, 1280
# Of MiniLM's vectors of sentences.
SENTENCE = 384
# Of ours; PyTorch's twins are in float32, as the released codes are.
PRECISIONS = ("float32", "bfloat16")
# Of the measured matrix product's speed: what is this fast need not be faster than PyTorch.
SHARE = 0.85
# Processes in which memory is measured: how an allocator's blocks fall differs between them.
PROCESSES = 3


class Case(NamedTuple):
    """A network's step beside its twin's.

    Attributes:
      choice: of the config.
      values: of the config's fields, by dotted name.
      regions: of a picture.
      faster: how many times as fast as PyTorch ours should be.
      counted: of the config's fields for the count of what no program can do without: terms of the
        loss that the twin, written as usual, computes with many times the products.
      backward: whether the gradient's products count: of pairs, ours has that of a few.
      gradient: what the twin's gradient may differ by, see `step.agree`.
      memory: whether it is measured too, which takes processes of its own.
    """

    choice: str
    values: Mapping[str, Any] = MappingProxyType({})
    regions: int = 1
    faster: float = 1.2
    counted: Mapping[str, Any] = MappingProxyType({})
    backward: bool = True
    gradient: float = 1e-3
    memory: bool = False


CASES: Mapping[str, Case] = {
    "vse_infinity": Case("vse_infinity", regions=REGIONS, faster=1.5, memory=True),
    # What is nothing but rounding has a sign, which is all that Adam's first updates look at.
    "saf": Case("saf", regions=REGIONS, faster=3.0, backward=False, gradient=5e-3, memory=True),
    "sgr": Case("sgr", regions=REGIONS, backward=False),
    # Its attention takes the products of regions anew at each word.
    "vsrn": Case("vsrn", regions=REGIONS, counted={"objective.generation.weight": 0.0}),
    "dvsa": Case("dvsa", regions=REGIONS),
    "multimodal_rnn": Case("multimodal_rnn"),
    "multimodal_lstm": Case("multimodal_rnn", {"model.captioner.cell": "lstm"}),
    "cam_joint": Case("cam,objective=joint", regions=REGIONS),
    # Each place's words take a way back of their own, through captions that have none there too.
    "cam": Case("cam", regions=REGIONS, counted={"objective.disagreement.weight": 0.0}),
    "leap": Case("leap"),
    "frozen": Case("frozen"),
    "frozen_sigmoid": Case("frozen,objective=sigmoid"),
}
WANTED = {name: case.faster for name, case in CASES.items()}


def run(options: Options) -> Iterator[Row]:
    """Rows of the steps, of some their memory; of pairwise networks the whole process', too.

    Raises:
      RuntimeError: after all others were measured: what went wrong with some.
    """
    failed = []
    for name in options.networks or tuple(CASES):
        try:
            yield from steps(name, options)
            for precision in PRECISIONS if name in ("saf", "sgr") else ():
                found = in_process("benchmarks.networks", "ours", name, precision)
                yield within(f"{name} steps, {precision}", "networks", found)
        except Exception as error:  # the other networks still count
            failed.append(f"{name}: {type(error).__name__}: {error}")
    if failed:
        raise RuntimeError("; ".join(failed))


def within(what: str, benchmark: str, found: dict[str, Any]) -> Row:
    """The row of a process that should do with 4 GiB."""
    total = found["total"] / 2**30
    return Row(benchmark, f"{what}: peak of the process", total, "GiB",
               wanted="<= 4", met=total <= 4, note=found["how"])  # fmt: skip


def config(name: str, precision: str = "float32") -> ConfigDict:
    """The step of a case; no token is altered, which released codes do beside the step."""
    conf = step.config(CASES[name].choice, precision)
    conf.update_from_flattened_dict(CASES[name].values)
    conf.model.text.alter = 0.0
    if conf.data.tokenizer == "pretrained":
        # Of a frozen reader vectors are cached: any tokenizer will do, without weights.
        conf.data.tokenizer = "vse"
    return conf


def batches(
    case: Case, conf: ConfigDict, captions: step.Captions, count: int, width: int = WIDTH
) -> list[step.Batch]:
    """`count` batches as the network takes them, with classes and vectors of sentences at random.

    Where the config's reader is frozen the network looks at these vectors in place of the tokens.
    """
    given = step.batches(captions, conf.train.batch_size, width, count, case.regions)
    rng = np.random.default_rng(3)
    for batch in given:
        size = len(batch["weight"])
        batch["label"] = rng.integers(0, CLASSES, size).astype(np.int32)
        if conf.model.network == "residual":
            vectors = rng.normal(size=(size, 1, SENTENCE)).astype(np.float32)
            batch["text_features"] = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
            batch["text_feature_mask"] = np.ones((size, 1), bool)
    return given


def ours(
    conf: ConfigDict, vocabulary: int, example: step.Batch, still: bool = False
) -> step.OurStep:
    """The project's step on features such as the example's."""
    return step.OurStep(conf, vocabulary, still, CLASSES, FUNCTION_WORDS, example)


def steps(name: str, options: Options) -> Iterator[Row]:
    """The training step at batch 128 in turns with PyTorch's, and of some the memory of both."""
    case, conf = CASES[name], config(name)
    captions = step.captions_of(options, conf)
    given = batches(case, conf, captions, 4)
    own = {
        precision: ours(config(name, precision), captions.vocabulary, given[0])
        for precision in PRECISIONS
    }
    work: dict[str, Callable[[Any], Any]] = {f"ours, {key}": one for key, one in own.items()}
    # Of each, the program that measures its memory, and in which precision.
    programs = {f"ours, {key}": ("ours", key) for key in own} | {TORCH: (TORCH, "float32")}
    count = None
    if importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_twins import TrainStep

        params, still = own["float32"].params, step.without_dropout(conf)
        twin = TrainStep(params, still, compiled=False, still=True, function_words=FUNCTION_WORDS)
        step.agree(
            ours(still, captions.vocabulary, given[0], still=True), twin, given[:1], case.gradient
        )
        del twin
        work |= dict(step.twins(conf, params, options.compile, given[0], FUNCTION_WORDS))
        count = _gflop(case, conf, params, given)
    timings = alternately(
        {
            kind: lambda number, one=one: one(given[number % len(given)])
            for kind, one in work.items()
        },
        options.rounds or 5,
        warmup=1,
    )
    what = f"batch {conf.train.batch_size}, {case.regions} regions; {captions.source}"
    yield from _speed(name, timings, count, what)
    if case.memory:
        wanted = {kind: program for kind, program in programs.items() if kind in timings}
        yield from _memory(name, wanted)


def _gflop(case: Case, conf: ConfigDict, params: Any, given: list[step.Batch]) -> float:
    """The mean over the batches of what `Case.counted` and `Case.backward` say counts."""
    from benchmarks.torch_twins import products

    counted = conf.copy_and_resolve_references()
    counted.update_from_flattened_dict(case.counted)
    found = [
        products(params, counted, batch, FUNCTION_WORDS, backward=case.backward) for batch in given
    ]
    return 1e-9 * float(np.mean(found))


def _speed(name: str, timings: Mapping[str, Timing], gflop: float | None, what: str) -> list[Row]:
    """Steps a second, ratios, and whether the step is fast enough."""
    case, rows = CASES[name], []
    speeds = {}
    if gflop is not None:
        kinds = "" if case.backward else " forward"
        left_out = f", without {', '.join(case.counted)}" if case.counted else ""
        rows.append(
            Row("networks", f"{name} step: products{kinds}", gflop, "GFLOP",
                note=f"of the twin, counted by PyTorch{left_out}")
        )  # fmt: skip
        speeds = {kind: gflop / timing.median / _peak(kind) for kind, timing in timings.items()}
    for kind, timing in timings.items():
        share = f"{100 * speeds[kind]:.0f}% of {_peak(kind):.0f} GFLOP/s; " if speeds else ""
        rows.append(rate("networks", f"{name} step, {kind}", timing, 1, "steps/s", share + what))
    rivals = [kind for kind in (TORCH, COMPILED) if kind in timings]
    for kind in timings:
        rows += [
            ratio("networks", f"{name} step: time of {rival} / {kind}", timings[rival],
                  timings[kind], at_least=case.faster)
            for rival in rivals if kind not in rivals
        ]  # fmt: skip
    if rivals:
        best = min(rivals, key=lambda rival: timings[rival].median)
        mine = f"ours, {PRECISIONS[0]}"
        rows.append(
            verdict(name, ratio("networks", best, timings[best], timings[mine]), speeds[mine])
        )
    return rows


def _peak(kind: str) -> float:
    """GFLOP/s of the measured product in the precision of ours or of PyTorch's step."""
    return peak.gflops(dtype="bfloat16") if "bfloat16" in kind else peak.gflops()


def verdict(name: str, beside: Row, share: float) -> Row:
    """Whether a step in float32 is fast enough, and by which of two: the twin, or the machine.

    Args:
      name: of the case.
      beside: how many times as fast as `beside.quantity` it is.
      share: of the measured matrix product's speed.
    """
    faster = CASES[name].faster
    by = {"speed": beside.median >= faster, "share of the peak": share >= SHARE}
    reasons = " and ".join(reason for reason, met in by.items() if met) or "neither"
    return dataclasses.replace(
        beside,
        quantity=f"{name} step, fast enough: time of {beside.quantity} / ours, {PRECISIONS[0]}",
        wanted=f">= {faster:g}, or {100 * SHARE:.0f}% of the peak",
        met=any(by.values()),
        note=f"by {reasons}: {100 * share:.0f}% of the measured product's speed",
    )


def _memory(name: str, programs: Mapping[str, tuple[str, str]]) -> list[Row]:
    """What each takes above its start, and ours over PyTorch's where that is there."""
    rows, medians = [], {}
    for kind, (program, precision) in programs.items():
        found = [
            in_process("benchmarks.networks", program, name, precision) for _ in range(PROCESSES)
        ]
        peaks = [one["peak"] / 2**20 for one in found]
        note = f"{found[0]['how']}, {PROCESSES} of them"
        quantity = f"{name} step, {kind}: peak above its start"
        rows.append(median_row("networks", quantity, peaks, "MiB", note))
        medians[kind] = rows[-1].median
    for kind in medians if TORCH in medians else ():
        if kind != TORCH:
            of, over = medians[kind], medians[TORCH]
            rows.append(
                Row("networks", f"{name} step: memory of {kind} / {TORCH}", of / over, "x",
                    wanted="< 1", met=of < over)
            )  # fmt: skip
    return rows


def _of_step(name: str, kind: str, precision: str) -> dict[str, Any]:
    """The memory of two steps above what is in use when they begin, all state being there."""
    conf = config(name, precision)
    captions = step.drawn(conf)
    given = batches(CASES[name], conf, captions, 1)
    mine = ours(conf, captions.vocabulary, given[0])
    work: Callable[[Any], Any] = mine
    if kind == TORCH:
        from benchmarks.torch_twins import TrainStep

        work = TrainStep(mine.params, conf, compiled=False, function_words=FUNCTION_WORDS)
    work(given[0])  # compiling, and PyTorch's gradients and moments, take memory of their own
    before = start_peak()
    work(given[0])
    work(given[0])
    most, how = memory_peak()
    return {"peak": most - before, "total": most, "how": how}


if __name__ == "__main__":
    program, network, precision = sys.argv[1:]
    sys.stdout.write(json.dumps(_of_step(network, program, precision)) + "\n")
