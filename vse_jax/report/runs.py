"""What the files of a workdir say of its run, read for reports."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vse_jax import workdir as workdirs

QUERIES = "queries.json"
# Of the parts of `queries.json`, what each of their items has at least: name -> type.
_ITEMS: Mapping[str, Mapping[str, type]] = {
    "i2t": {"captions": list},
    "t2i": {"text": str, "images": list},
    "captions": {"written": str, "said": list},
    "alignments": {"segments": list},
    "looks": {},
}
# And what is retrieved has, and a part of a sentence.
_INNER: Mapping[str, Mapping[str, type]] = {
    "captions": {"text": str},
    "images": {},
    "segments": {"text": str, "box": list},
}
_OBJECTS = (
    "config", "metrics", "chance", "oracle", "protocols", "scores", "classification", "skipped",
    "timing",
)  # fmt: skip
_LISTS = ("warnings", "ensemble", "code_usage")


class ReportError(Exception):
    """A workdir that has nothing to report yet, or a picture that is none."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir says of its run.

    Attributes:
      workdir: the folder.
      report: `report.json`: `dataset`, `split`, `protocol` and `metrics`; `config` and `step`, or
        of several workdirs measured together their names as `ensemble`; and where they are
        known `protocols` (name -> the same measures by a further protocol), `oracle` (the same
        names as `metrics`, of the best possible model),
        `scores` (histograms, `edges`, `right`, `wrong` and the name of the `measure`),
        `code_usage` (of each rank, 1 is even), `classification` (see `seen.of_classes`),
        `skipped` (reason -> names), `warnings` (sentences), `timing` (what -> value), `name` (of
        the system) and `command` (what reproduces the run).
      history: one dict a line of `metrics.jsonl`; a training row has `step`, `epoch`, `loss`, ...,
        an evaluation row `step`, `epoch`, `validation/rsum`, `validation/i2t/R@1`, ...
      queries: what was retrieved, see `page.write`; empty where nothing was kept.
    """

    workdir: Path
    report: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    queries: Mapping[str, Any]


def read(workdir: str | os.PathLike[str]) -> Run:
    """What a workdir says of its run; only `report.json` must be there.

    A line of `metrics.jsonl` that a crash cut short is left out, with a warning unless it is the
    last one, which may be in the middle of being written; so is what cannot be read of
    `queries.json`, which shows examples and holds no figure.

    Raises:
      ReportError: `report.json` is missing, or no report; says which and why.
      WorkdirError: `metrics.jsonl` cannot be read.
    """
    workdir = Path(workdir)
    report = _report(workdir)
    history, unreadable = workdirs.read_history(workdir)
    told = list(report.get("warnings", ()))
    if unreadable:
        told.append(f"{unreadable} line(s) of metrics.jsonl could not be read and are left out")
    queries, unshown = _queries(workdir / QUERIES)
    if unshown:
        told.append(f"{unshown} of {QUERIES} could not be read and are left out")
    return Run(workdir, {**report, "warnings": told} if told else report, history, queries)


def _report(workdir: Path) -> dict[str, Any]:
    """The object of `report.json`, with the types that pages rely on."""
    path = workdir / workdirs.REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ReportError(
            f"{path} does not exist: train with --workdir={workdir}, "
            "or evaluate it with --mode=evaluate"
        ) from None
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # JSON's and UTF-8's
        raise ReportError(f"{path} is not JSON: {error}") from error
    if not isinstance(report, dict):
        raise ReportError(f"{path} holds a {type(report).__name__}, not an object")
    for name, kind in (*((name, dict) for name in _OBJECTS), *((name, list) for name in _LISTS)):
        if not isinstance(report.get(name, kind()), kind):
            found = type(report[name]).__name__
            raise ReportError(f"{path}: {name!r} is a {found}, not a {kind.__name__}")
    return report


def _queries(path: Path) -> tuple[dict[str, Any], str]:
    """What can be shown of a file of queries, and what cannot, in words."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError):
        return {}, "all"
    if not isinstance(found, dict):
        return {}, "all"
    kept = {
        part: [item for item in items if _is_whole(item, _ITEMS[part])]
        for part, items in found.items()
        if part in _ITEMS and isinstance(items, list)
    }
    total = sum(len(items) if isinstance(items, list) else 1 for items in found.values())
    lost = total - sum(map(len, kept.values()))
    return kept, f"{lost} of {total} items" if lost else ""


def _is_whole(item: Any, wanted: Mapping[str, type]) -> bool:
    if not isinstance(item, dict):
        return False
    for name, kind in wanted.items():
        if not isinstance(item.get(name), kind):
            return False
        if name in _INNER and not all(_is_whole(inner, _INNER[name]) for inner in item[name]):
            return False
    return True
