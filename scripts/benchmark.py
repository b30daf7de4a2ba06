"""Measures speed and memory: python scripts/benchmark.py [--only=step,mining] [--output=FILE].

Comparisons take turns in one process (A, B, A, B, ...); a ratio is the median over the rounds,
with the least and the largest. Prints one table; `--output` writes it as JSON, and `--compare`
tells what has changed since such a run. PyTorch, transformers and FAISS are compared with where
they are installed (the extras [bench] and [parity]); TensorFlow is needed by `pipeline` and
`first_step` alone.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# A GPU is shared with PyTorch: JAX would take three quarters of it when it starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("vse_jax") is None:
    sys.path.insert(0, str(ROOT))

from benchmarks.timing import Options, Row, machine, table, told  # noqa: E402 (after the path)

from vse_jax import workdir  # noqa: E402

# In the order in which they run: TensorFlow's threads come last.
BENCHMARKS = (
    "peak", "step", "leap", "networks", "pixels", "scoring", "captioning", "maps", "mining",
    "batch_memory", "evaluation", "index", "features", "pipeline", "first_step",
)  # fmt: skip
# Hours, and gigabytes on the disk: only where it is named.
LONG = ("index",)


def main(arguments: Sequence[str]) -> None:
    """Runs what the flags name."""
    flags = _parse(arguments)
    options = Options(
        flags.rounds, flags.manual_dir, flags.data_dir, flags.sizes, flags.compile, flags.networks,
        flags.folder, flags.items, flags.slow_items, flags.width,
    )  # fmt: skip
    about = machine()
    _say("machine: " + ", ".join(f"{key} {value}" for key, value in about.items()))
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for name in flags.only:
        _say(f"measuring {name}")
        try:
            for row in importlib.import_module(f"benchmarks.{name}").run(options):
                rows.append(row)  # one by one: what was measured before a failure or a stop counts
                _say(told(row))
                _write(flags, about, rows, failures)
        except Exception as error:  # and so do the other measurements
            failures[name] = f"{type(error).__name__}: {error}"
            _say(f"{name} failed: {failures[name]}")
    _write(flags, about, rows, failures)
    sys.stdout.write(table(rows) + "\n")
    if flags.compare is not None:
        sys.stdout.write(f"\n{changes(flags.compare, about, rows)}\n")
    if failures:
        sys.exit(1)


def changes(
    earlier: tuple[Path, Mapping[str, Any]], about: Mapping[str, Any], rows: Sequence[Row]
) -> str:
    """The medians of what both runs measured, this one's over the earlier one's, as aligned text.

    Runs of different hours differ by more than code: what took turns in one run, the ratios, is
    what to trust.
    """
    path, report = earlier
    known = {(row["benchmark"], row["quantity"]): row for row in report["rows"]}
    found = [
        Row(
            row.benchmark, row.quantity, row.median / before["median"], "x",
            note=f"{row.median:.4g} {row.unit}, before {before['median']:.4g}",
        )
        for row in rows
        if (before := known.get((row.benchmark, row.quantity))) is not None
        and before["unit"] == row.unit and before["median"]
    ]  # fmt: skip
    lines = [f"beside {path}:", table(found)]
    other = [
        f"{key} {report['machine'].get(key)} there, {value} here"
        for key, value in about.items()
        if key != "load_1min" and report["machine"].get(key) != value
    ]
    return "\n".join([*lines, *(f"another machine: {text}" for text in other)])


def _write(
    flags: argparse.Namespace, about: object, rows: Sequence[Row], failures: dict[str, str]
) -> None:
    """Writes machine, flags, rows and failures as JSON, where it is wanted."""
    if flags.output is None:
        return
    report = {
        "machine": about,
        "options": {key: _plain(value) for key, value in vars(flags).items() if key != "compare"},
        "rows": [dataclasses.asdict(row) for row in rows],
        "failures": failures,
    }
    workdir.write_text(flags.output, json.dumps(report, indent=2) + "\n")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", type=partial(_names, BENCHMARKS), help=", ".join(BENCHMARKS),
        default=tuple(name for name in BENCHMARKS if name not in LONG),
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help="of every comparison (each has its default)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--compare", type=_report, help="JSON file of an earlier run")
    parser.add_argument("--manual_dir", type=Path, help="Flickr8k's folder; else generated data")
    parser.add_argument("--data_dir", default="~/.cache/vse_jax", help="for prepared data sets")
    parser.add_argument("--sizes", type=_sizes, default=Options.sizes, help="pairs, for mining")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    cases = tuple(importlib.import_module("benchmarks.networks").CASES)
    parser.add_argument("--networks", type=partial(_names, cases), help=", ".join(cases))
    parser.add_argument("--folder", type=Path, default=Options.folder, help="of the indices")
    parser.add_argument("--items", type=int, default=Options.items, help="in an index")
    parser.add_argument(
        "--slow_items", type=int, default=Options.slow_items, help="of HNSW and Milvus"
    )
    parser.add_argument("--width", type=int, default=Options.width, help="of what is indexed")
    return parser.parse_args(arguments)


def _report(text: str) -> tuple[Path, dict[str, Any]]:
    """The path, and the report that an earlier run wrote there."""
    path = Path(text)
    try:
        report = json.loads(path.read_text())
        report["machine"].keys()
        for row in report["rows"]:
            _ = row["benchmark"], row["quantity"], row["median"], row["unit"]
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        told = getattr(error, "strerror", None) or "not what --output of this program writes"
        raise argparse.ArgumentTypeError(f"{path}: {told}") from error
    return path, report


def _names(known: tuple[str, ...], text: str) -> tuple[str, ...]:
    """Those named of the known ones, in the order in which they run."""
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
