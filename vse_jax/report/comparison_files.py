"""A comparison for other programs (JSON) and for other pages (Markdown)."""

import json
from collections.abc import Sequence
from typing import Any

from vse_jax.report import measures
from vse_jax.report.comparison import Compared, Group, Table, differences, tables
from vse_jax.report.text import bytes_of, seconds_of, whole


def apart(groups: Sequence[Group]) -> str:
    """A sentence that says which runs are not compared with which."""
    listed = "; ".join(
        f"{', '.join(run.name for run in group.runs)} ({_measured_on(group)})" for group in groups
    )
    return f"not all of one data set, split and protocol, so shown apart: {listed}"


def as_json(groups: Sequence[Group]) -> str:
    """The groups as JSON text: every measure of every run, the best ones, what differs.

    What is no finite number is null: JSON has no NaN.
    """
    return json.dumps(_finite({"groups": [_group(group) for group in groups]}), indent=2)


def as_markdown(groups: Sequence[Group]) -> str:
    """The tables of the groups as Markdown, the best figures in bold."""
    parts = []
    for group in groups:
        parts.append(f"## {_measured_on(group)}")
        parts.append(_runs(group))
        parts += [f"### {table.title}\n\n{_measures(table)}" for table in tables(group)]
        if found := [one for one in differences(group) if one.matters]:
            heads = ["field", *(run.name for run in group.runs)]
            rows = [[f"`{one.field}`", *map(_escaped, one.values)] for one in found]
            parts.append(f"### What differs in their configs\n\n{_rows(heads, rows)}")
    return "\n\n".join(parts) + "\n"


def _measured_on(group: Group) -> str:
    return f"{group.dataset}, {group.split} split, protocol {group.protocol}"


def _group(group: Group) -> dict[str, Any]:
    return {
        "dataset": group.dataset,
        "split": group.split,
        "protocol": group.protocol,
        "runs": [_run(run) for run in group.runs],
        "best": {
            table.title: {key: sorted(table.best(key)) for key in table.keys if table.best(key)}
            for table in tables(group)
        },
        "differences": {
            one.field: dict(zip((run.name for run in group.runs), one.values, strict=True))
            for one in differences(group)
        },
    }


def _run(run: Compared) -> dict[str, Any]:
    report = run.run.report
    return {
        "name": run.name,
        "workdir": str(run.run.workdir),
        "step": report.get("step"),
        "metrics": report.get("metrics", {}),
        "protocols": report.get("protocols", {}),
        "data": run.data,
        "parameters": run.parameters,
        "checkpoint_bytes": run.checkpoint_bytes,
        "step_seconds": run.seconds,
        "warnings": list(run.warnings),
    }


def _finite(value: Any) -> Any:
    """The same without NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_finite(own) for own in value]
    return value if not isinstance(value, float) or abs(value) < float("inf") else None


def _runs(group: Group) -> str:
    heads = ["run", "reported step", "time of steps", "parameters", "checkpoint"]
    rows = [
        [
            _escaped(run.name),
            whole(run.run.report.get("step")),
            seconds_of(run.seconds),
            whole(run.parameters),
            bytes_of(run.checkpoint_bytes),
        ]
        for run in group.runs
    ]
    return _rows(heads, rows)


def _measures(table: Table) -> str:
    shown = {key: measures.measure(key) for key in table.keys}
    best = {key: table.best(key) for key in table.keys}
    rows = []
    for name, found in table.rows.items():
        cells = [
            f"**{how.written(found[key])}**" if name in best[key] else how.written(found.get(key))
            for key, how in shown.items()
        ]
        rows.append([_escaped(name), *cells])
    for name, found in table.beside.items():
        rows.append([f"*{name}*", *(how.written(found.get(key)) for key, how in shown.items())])
    return _rows(["", *(f"{how.group} {how.name}".strip() for how in shown.values())], rows)


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Text that ends neither its cell nor its row."""
    return " ".join(text.replace("|", "\\|").split())
