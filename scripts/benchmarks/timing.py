"""Timing side by side, and the rows of the table."""

import dataclasses
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
      rounds: of every comparison; None: each benchmark's own number.
      manual_dir: Flickr8k's folder; None: generated data of its kind.
      data_dir: where prepared data sets go.
      sizes: batch sizes of the mining.
      compile: whether PyTorch's step is also measured compiled.
      networks: whose steps are measured; None: all.
      folder: of the indices.
      items: in an index.
      slow_items: in one that takes long to build.
      width: of its embeddings.
    """

    rounds: int | None = None
    manual_dir: Path | None = None
    data_dir: str = "~/.cache/vse_jax"
    sizes: tuple[int, ...] = (4096, 16384, 65536)
    compile: bool = False
    networks: tuple[str, ...] | None = None
    folder: Path = Path("runs/index_benchmark")
    items: int = 1_000_000
    slow_items: int = 100_000
    width: int = 1024


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of the same work, one for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      benchmark: which measured it.
      quantity: what was measured.
      median: over the rounds, or the one value there is.
      low: the least of the rounds, or None.
      high: the largest of the rounds, or None.
      unit: of the three numbers.
      wanted: what the median should be, for people; None where nothing is asked.
      met: whether it is.
      note: how it was measured.
    """

    benchmark: str
    quantity: str
    median: float
    unit: str
    low: float | None = None
    high: float | None = None
    wanted: str | None = None
    met: bool | None = None
    note: str = ""


def alternately(
    variants: Mapping[str, Callable[[Any], object]],
    rounds: int,
    warmup: int = 2,
    prepare: Callable[[str, int], Any] = lambda name, number: number,  # noqa: ARG005
) -> dict[str, Timing]:
    """Seconds of each variant: A, B, A, B, ..., after `warmup` rounds that do not count.

    Taking turns, they share whatever else slows the machine down.

    Args:
      variants: each called with what `prepare` made; returns when its work is done.
      rounds: that count.
      warmup: that do not: compilation, allocation, thread pools.
      prepare: (name, number of the round) -> the variant's argument, off the clock; by
        default that number.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + rounds):
        for name, work in variants.items():
            argument = prepare(name, number)
            begun = time.perf_counter()
            work(argument)
            elapsed = time.perf_counter() - begun
            del argument
            if number >= warmup:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def rate(
    benchmark: str, quantity: str, timing: Timing, count: float, unit: str, note: str = ""
) -> Row:
    """`count` units a round as units a second."""
    rates = [count / second for second in timing.seconds]
    return median_row(benchmark, quantity, rates, unit, note)


def median_row(
    benchmark: str, quantity: str, values: Sequence[float], unit: str, note: str = ""
) -> Row:
    """What was measured several times."""
    low, high = min(values), max(values)
    return Row(benchmark, quantity, statistics.median(values), unit, low, high, note=note)


def ratio(
    benchmark: str,
    quantity: str,
    over: Timing,
    under: Timing,
    at_most: float | None = None,
    at_least: float | None = None,
    note: str = "",
) -> Row:
    """The median over the rounds of over / under, each round's two neighbours in time.

    Args:
      benchmark: which measured it.
      quantity: what the ratio is.
      over: measured alternately with `under`.
      under: what to compare with.
      at_most: the largest ratio wanted.
      at_least: the smallest ratio wanted.
      note: for people.
    """
    ratios = [a / b for a, b in zip(over.seconds, under.seconds, strict=True)]
    median = statistics.median(ratios)
    wanted = met = None
    if at_most is not None:
        wanted, met = f"<= {at_most:g}", median <= at_most
    elif at_least is not None:
        wanted, met = f">= {at_least:g}", median >= at_least
    return Row(benchmark, quantity, median, "x", min(ratios), max(ratios), wanted, met, note)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    head = ("benchmark", "quantity", "median", "min", "max", "unit", "wanted", "note")
    lines = [head]
    for row in rows:
        met = {None: "", True: " yes", False: " NO"}[row.met]
        numbers = [_short(value) for value in (row.median, row.low, row.high)]
        wanted = f"{row.wanted or ''}{met}"
        lines.append((row.benchmark, row.quantity, *numbers, row.unit, wanted, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    lines.insert(1, tuple("-" * width for width in [*widths, 4]))
    return "\n".join(
        "  ".join(
            [cell.rjust(w) if 2 <= i <= 4 else cell.ljust(w) for i, (cell, w) in
             enumerate(zip(line, widths, strict=False))] + [line[-1]]
        ).rstrip()
        for line in lines
    )  # fmt: skip


def told(row: Row) -> str:
    """The row in a line, for a log."""
    met = {None: "", True: ", as wanted", False: f", wanted {row.wanted}"}[row.met]
    between = "" if row.low is None else f" ({_short(row.low)}-{_short(row.high)})"
    return f"{row.benchmark}: {row.quantity}: {_short(row.median)}{between} {row.unit}{met}"


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def machine() -> dict[str, str | int | float | None]:
    """Cores, processor, accelerator, memory, load and versions, as far as they are known."""
    import jax

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    packages = (
        "jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "faiss-cpu",
        "tensorflow-cpu", "tensorflow",
    )  # fmt: skip
    found = {package: version(package) for package in packages}
    return {
        "cores": cores(),
        "processor": _processor(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "memory_gib": round(available_memory("MemTotal") / 2**30, 1),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: number for name, number in found.items() if number is not None},
    }


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The processor's name as Linux tells it, else as Python does."""
    info = Path("/proc/cpuinfo")
    names: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        key, _, value = line.partition(":")
        names.setdefault(key.strip(), value.strip())
    flags = names.get("flags", "").split()
    vector = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags), "")
    name = names.get("model name", platform.processor() or "unknown")
    family = f"family {names['cpu family']} model {names['model']}" if "cpu family" in names else ""
    return " ".join(part for part in (name, family, vector) if part)


def available_memory(field: str = "MemAvailable") -> float:
    """Bytes of /proc/meminfo's field; infinite where there is no such file."""
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    return float("inf")
