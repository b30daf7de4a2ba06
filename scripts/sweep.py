"""Trains a list of configs over seeds and writes one table with means and deviations.

    python scripts/sweep.py configs/sweeps/leap.toml --workdir=runs/leap [--seeds=0,1,2] \
        [--only=ROW,...] [-- --config.data.manual_dir=... and other flags for every run]

A sweep is a TOML file: `[[row]]` tables with a `name` and the `flags` of vse_jax.main, and
`flags` for all of them. Each run has its own workdir, WORKDIR/ROW/SEED. Stopped at any moment,
the same command goes on: finished runs are left out, an unfinished one is resumed. They are known
by their flags: where the files of configs/ have changed since, take another workdir. The table is
written anew after every run, as table.md and table.json.
"""

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vse_jax import workdir as workdirs
from vse_jax.errors import USER_ERRORS

PROGRAM = "vse_jax.main"
FINISHED = "finished.json"
COLUMNS = {
    "dev rsum": "dev/rsum",
    "test rsum": "rsum",
    "i2t R@1": "i2t/R@1",
    "i2t R@5": "i2t/R@5",
    "i2t R@10": "i2t/R@10",
    "t2i R@1": "t2i/R@1",
    "t2i R@5": "t2i/R@5",
    "t2i R@10": "t2i/R@10",
    "rsum of the codes": "codes/asymmetric/rsum",
    "dev accuracy": "dev/classify/accuracy",
    "dev perplexity": "dev/caption/perplexity",
    "dev cost": "dev/cost",
    "accuracy": "classify/accuracy",
    "perplexity": "caption/perplexity",
    "BLEU-4": "caption/BLEU-4",
    "CIDEr": "caption/CIDEr",
    "maps agree": "maps/agreement",
    "with another's": "maps/agreement_chance",
    "class points at it": "maps/class_pointing",
    "caption points at it": "maps/caption_pointing",
    "a random cell does": "maps/chance_pointing",
    "epochs to best": "dev/epoch",
    "seconds an epoch": "epoch_seconds",
    "Spearman": "scenes/spearman",
    "Spearman, experts": "expert/spearman",
    "Spearman, crowd": "crowdflower/spearman",
}


class SweepError(Exception):
    """A sweep file that cannot be used, or a run that failed; the message says which."""


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      name: as the sweep calls it.
      flags: of vse_jax.main, without workdir and seed.
    """

    name: str
    flags: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


def read(path: Path) -> list[Row]:
    """The rows of a sweep file.

    Raises:
      SweepError: no rows, or one that is not as it should be.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SweepError(f"{path}: {error}") from error
    if unknown := content.keys() - {"flags", "row"}:
        raise SweepError(f"{path}: {min(unknown)!r} is unknown; it takes flags and [[row]] tables")
    common, tables, rows = content.get("flags", []), content.get("row"), []
    if not _are_flags(common) or not isinstance(tables, list):
        raise SweepError(f"{path}: expected flags, a list of texts, and [[row]] tables")
    for number, row in enumerate(tables, 1):
        if not isinstance(row, dict):
            raise SweepError(f"{path}: row {number} is {row!r}; expected a table, [[row]]")
        if unknown := row.keys() - {"name", "flags"}:
            raise SweepError(f"{path}: row {number} has {min(unknown)!r}; it takes name and flags")
        name, flags = row.get("name"), row.get("flags")
        if not isinstance(name, str) or not name:
            raise SweepError(f"{path}: row {number} needs a name")
        if not _are_flags(flags):
            raise SweepError(f"{path}: row {name!r} needs flags, a list of texts")
        if "," in name:
            raise SweepError(f"{path}: row {name!r} has a comma, which parts the rows of --only")
        _check_flags((*common, *flags), f"{path}: row {name!r}")
        # vse_jax.main reads the file of a config before the fields that change it.
        ordered = sorted((*common, *flags), key=lambda flag: not flag.startswith("--config="))
        rows.append(Row(name, tuple(ordered)))
    for row in rows:
        if not row.folder or [other.folder for other in rows].count(row.folder) > 1:
            raise SweepError(f"{path}: row {row.name!r} needs a name of its own")
    return rows


def _check_flags(flags: Sequence[str], where: str) -> None:
    """Raises SweepError for what the sweep sets itself."""
    for flag in flags:
        if flag.lstrip("-").split("=")[0] in ("workdir", "config.seed", "mode"):
            raise SweepError(f"{where} has {flag}; each run of a sweep gets its own from it")


def _are_flags(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(flag, str) for flag in value)


def run(command: Sequence[str], folder: Path) -> bool:
    """Runs a training to its end, unless it has been; False if it was stopped.

    Raises:
      SweepError: the training failed.
    """
    if _is_finished(command, folder):
        return True
    process = subprocess.Popen([sys.executable, "-m", *command])
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        asked.append(number)
        if number != signal.SIGINT:  # a terminal sends Ctrl-C to both
            process.send_signal(number)

    # The training saves at SIGTERM and SIGINT; the sweep waits for that.
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code != 0 and asked:
        return False  # it was still starting, and had nothing to save
    if code != 0:
        raise SweepError(f"{folder}: the training ended with exit code {code}")
    if not (folder / workdirs.REPORT).exists():
        return False
    workdirs.write_text(folder / FINISHED, json.dumps(list(command)))
    return True


def _is_finished(command: Sequence[str], folder: Path) -> bool:
    """Whether the run of these flags has been to its end."""
    finished = folder / FINISHED
    return finished.exists() and json.loads(finished.read_text()) == list(command)


def measured(command: Sequence[str], folder: Path) -> dict[str, float]:
    """The metrics of a finished run; {} before.

    With the best of the validation as "dev/...", its `epoch` too, and the median time of an epoch
    without validation as `epoch_seconds`.
    """
    if not _is_finished(command, folder):
        return {}
    rows = workdirs.read_metrics(folder)
    report = json.loads((folder / workdirs.REPORT).read_text())
    # The report is of the best checkpoint, which is saved when it is validated.
    validations = [row for row in rows if any(name.startswith("validation/") for name in row)]
    best = next((row for row in validations if row["step"] == report["step"]), None)
    if best is None:
        raise SweepError(f"{folder}: metrics.jsonl has no validation of step {report['step']}")
    dev = {
        f"dev/{name.removeprefix('validation/')}": value
        for name, value in best.items()
        if name.startswith("validation/")
    }
    batch = report["config"]["train"]["batch_size"]
    seconds = [
        row["step"] / row["epoch"] * batch / row["time/images_per_second"]
        for row in rows
        if "time/images_per_second" in row
    ]
    found = dev | {"dev/epoch": best["epoch"], "epoch_seconds": statistics.median(seconds)}
    return found | report["metrics"]


def summarize(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Metric that all runs have -> mean and (sample) deviation, and how many runs there are."""
    found = {}
    for name in runs[0] if runs else ():
        if not all(name in metrics for metrics in runs):
            continue
        values = [metrics[name] for metrics in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        found[name] = {"mean": statistics.fmean(values), "deviation": deviation, "runs": len(runs)}
    return found


def table(summaries: dict[str, dict[str, dict[str, float]]]) -> str:
    """The summaries of the rows as a Markdown table, without columns that no row has."""
    columns = {
        title: name
        for title, name in COLUMNS.items()
        if any(name in summary for summary in summaries.values())
    }
    lines = ["| | runs | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
    for row, summary in summaries.items():
        count = next(iter(summary.values()))["runs"] if summary else 0
        cells = [_cell(summary.get(name)) for name in columns.values()]
        lines.append(f"| {row} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    if found["runs"] == 1:
        return f"{found['mean']:.4g}"
    return f"{found['mean']:.4g} ± {found['deviation']:.2g}"


def main(arguments: Sequence[str]) -> None:
    """Runs what is still to do, seed by seed, and writes the table."""
    flags, common = _parse(arguments)
    rows = read(flags.sweep)
    _check_flags(common, "what follows --")
    chosen = [row for row in rows if not flags.only or row.name in flags.only]
    if missing := set(flags.only) - {row.name for row in rows}:
        raise SweepError(f"{flags.sweep} has no row {', '.join(sorted(missing))}")
    failures = []
    flags.workdir.mkdir(parents=True, exist_ok=True)
    runs = {row.name: [_run_of(row, flags.workdir, seed, common) for seed in flags.seeds]
            for row in rows}  # fmt: skip
    for number, seed in enumerate(flags.seeds):
        for row in chosen:
            _say(f"== {row.name}, seed {seed}")
            try:
                if not run(*runs[row.name][number]):
                    _say("stopped; the same command goes on from here")
                    return
            except SweepError as error:  # the other runs still count
                failures.append(str(error))
            _write(flags.workdir, runs)
    sys.stdout.write((flags.workdir / "table.md").read_text())
    if failures:
        raise SweepError("; ".join(failures))


def _run_of(row: Row, root: Path, seed: int, common: Sequence[str]) -> tuple[list[str], Path]:
    """(command, workdir) of a run."""
    folder = root / row.folder / str(seed)
    return [PROGRAM, f"--workdir={folder}", *row.flags, *common, f"--config.seed={seed}"], folder


def _write(folder: Path, runs: Mapping[str, Sequence[tuple[list[str], Path]]]) -> None:
    found = {
        name: [metrics for one in several if (metrics := measured(*one))]
        for name, several in runs.items()
    }
    summaries = {name: summarize(metrics) for name, metrics in found.items()}
    workdirs.write_text(folder / "table.json", json.dumps({"rows": summaries, "runs": found}))
    workdirs.write_text(folder / "table.md", table(summaries))


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    given = list(arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="a file of configs/sweeps/")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="folder of the runs and the table"
    )
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="default: 0,1,2")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="rows to run")
    return parser.parse_args(given[:cut]), given[cut + 1 :]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no list of numbers, such as 0,1,2") from error
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text} has a seed twice")
    return numbers


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (SweepError, *USER_ERRORS, OSError) as error:
        _say(f"sweep: {error}")
        sys.exit(1)
