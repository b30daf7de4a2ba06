"""The page that compares runs: one HTML file, as that of a single run."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vse_jax.report import measures
from vse_jax.report.charts import Series, chart, hue_of
from vse_jax.report.comparison import (
    Compared,
    Group,
    Table,
    alone,
    differences,
    fields_of,
    shared_queries,
    tables,
    validated_on,
)
from vse_jax.report.curves import LOSS, gaps, series_of
from vse_jax.report.page import filled
from vse_jax.report.queries import answered, pictured, written_items
from vse_jax.report.text import bytes_of, escaped, finite, seconds_of, short, whole

# Validation measures that are drawn first, besides the loss; the others are folded.
FIRST = ("rsum", "caption/perplexity", "classify/accuracy", "cost")
# Of the answers of a run to a query, how many are shown beside those of others.
SHOWN = 3


def render(groups: Sequence[Group]) -> str:
    """The whole page of runs, in groups of those that may be compared."""
    runs = [run for group in groups for run in group.runs]
    counted = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    title = "Comparison of " + ", ".join(run.name for run in runs)
    parts = [_header(groups, counted)]
    for group in groups:
        named = len(groups) > 1
        parts += [
            f"<h2 class=group>{_measured_on(group)}</h2>" if named else "",
            _runs(group),
            _results(group),
            _curves(group),
            _configs(group),
            *_queries(group),
        ]
    parts += [_warnings(runs), _commands(runs)]
    return filled(title, parts)


def _header(groups: Sequence[Group], runs: str) -> str:
    """What is compared; a warning where it is not all of one kind."""
    if len(groups) == 1:
        return (
            f"<header><p class=kicker>vse_jax comparison</p><h1>{runs} on "
            f"{escaped(groups[0].dataset)}</h1><p class=sub>{_measured_on(groups[0])}</p></header>"
        )
    listed = "".join(
        f"<li>{_measured_on(group)}: {escaped(', '.join(run.name for run in group.runs))}</li>"
        for group in groups
    )
    return (
        f"<header><p class=kicker>vse_jax comparison</p><h1>{runs} on "
        f"{len(groups)} kinds of test data</h1><div class=warnings><p>Figures are only compared "
        "between runs that have the same data set, split and protocol, and the same test data; "
        f"these have not, so each kind is shown apart:</p><ul>{listed}</ul></div></header>"
    )


def _measured_on(group: Group) -> str:
    return escaped(f"{group.dataset} · {group.split} split · protocol {group.protocol}")


def _runs(group: Group) -> str:
    """A row for each run: what it is, how long it was trained, how large it is."""
    heads = (
        "network", "reported step", "steps", "epochs", "time of steps", "images/s", "parameters",
        "checkpoint",
    )  # fmt: skip
    rows = "".join(
        f"<tr><th scope=row>{_swatch(number)}{escaped(run.name)}</th>"
        + "".join(f"<td>{cell}</td>" for cell in _facts(run))
        + "</tr>"
        for number, run in enumerate(group.runs)
    )
    return (
        f"<section><h2>Runs</h2>{_table(heads, rows)}<p class=muted>Steps and epochs that were "
        "logged; the time of these steps is by their logged rate, without compiling, validation "
        "and saving; the checkpoint is the best one, on disk, with the state of its "
        "optimizer.</p></section>"
    )


def _facts(run: Compared) -> list[str]:
    report, last = run.run.report, max((row["step"] for row in run.run.history), default=None)
    if "ensemble" in report:
        network = f"mean of {', '.join(Path(str(own)).name for own in report['ensemble'])}"
    else:
        network = str(fields_of(run.run).get("model.network", "–"))
    epochs = [row["epoch"] for row in run.run.history if finite(row.get("epoch"))]
    rates = [rate for _, rate in series_of(run.run.history).get("time/images_per_second", ())]
    return [
        escaped(network),
        whole(report.get("step")),
        whole(last),
        short(max(epochs), 3) if epochs else "–",
        seconds_of(run.seconds),
        whole(statistics.median(rates)) if rates else "–",
        whole(run.parameters),
        bytes_of(run.checkpoint_bytes),
    ]


def _results(group: Group) -> str:
    """The tables of what the runs share, and what one alone has."""
    parts = [_measures(table, group) for table in tables(group)]
    if not parts:
        parts = ["<p class=muted>No measure is known of two of these runs.</p>"]
    others = "".join(
        f"<li>{escaped(name)}: {escaped(', '.join(keys))}</li>"
        for name, keys in alone(group).items()
    )
    if others and len(group.runs) > 1:
        parts.append(f"<p class=muted>Measured of one run alone:</p><ul class=muted>{others}</ul>")
    if len(group.runs) > 1:
        parts.append(
            "<p class=muted><b class=best>Bold green</b>: the best as it is written here. Each is "
            "one run: how much they differ by chance, further seeds say. Recalls in percent; MedR "
            "and MeanR, median and mean rank: 1 is best.</p>"
        )
    return f"<section><h2>Results</h2>{''.join(parts)}</section>"


def _measures(table: Table, group: Group) -> str:
    """A table of measures: a row for each run, below what to hold them against."""
    best = {key: table.best(key) for key in table.keys}
    hues = {run.name: number for number, run in enumerate(group.runs)}
    rows = [
        f"<tr><th scope=row>{_swatch(hues[name])}{escaped(name)}</th>"
        f"{_cells(found, {key: name in best[key] for key in table.keys})}</tr>"
        for name, found in table.rows.items()
    ]
    rows += [
        f"<tr class=oracle><th scope=row>{name}</th>"
        f"{_cells(found, dict.fromkeys(table.keys, False))}</tr>"
        for name, found in table.beside.items()
    ]
    shown = [measures.measure(key) for key in table.keys]
    above = _spans([how.group for how in shown])
    content = _table([how.name for how in shown], "".join(rows), above)
    return f"<h3>{escaped(table.title)}</h3>{content}"


def _cells(found: Mapping[str, Any], is_best: Mapping[str, bool]) -> str:
    """The cells of these measures, the best ones marked."""
    written = {key: measures.measure(key).written(found.get(key)) for key in is_best}
    return "".join(
        f"<td><b class=best>{written[key]}</b></td>" if best else f"<td>{written[key]}</td>"
        for key, best in is_best.items()
    )


def _spans(groups: Sequence[str]) -> str:
    """The row above the names of columns; nothing where no column has a group."""
    if not any(groups):
        return ""
    cells, start = [], 0
    for end in range(1, len(groups) + 1):
        if end == len(groups) or groups[end] != groups[start]:
            cells.append(f"<th colspan={end - start} scope=colgroup>{escaped(groups[start])}</th>")
            start = end
    return f"<tr class=above><th></th>{''.join(cells)}</tr>"


def _table(heads: Sequence[str], rows: str, above: str = "") -> str:
    columns = "".join(f"<th scope=col>{escaped(head)}</th>" for head in heads)
    return (
        f"<div class='scroll fixed'><table><thead>{above}<tr><th></th>{columns}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _configs(group: Group) -> str:
    """The fields of the configs that differ; those that only say where files are folded."""
    if len(group.runs) < 2:
        return ""
    found = differences(group)
    parts = {
        matters: "".join(
            f"<tr><th scope=row><code>{escaped(one.field)}</code></th>"
            + "".join(f"<td>{escaped(value)}</td>" for value in one.values)
            + "</tr>"
            for one in found
            if one.matters == matters
        )
        for matters in (True, False)
    }
    heads = [run.name for run in group.runs]
    shown = _table(heads, parts[True]) if parts[True] else "<p class=muted>Nothing.</p>"
    elsewhere = _table(heads, parts[False]) if parts[False] else ""
    shown += _folded("Where files are, and how much is shown", elsewhere)
    digests = {run.data for run in group.runs if run.data is not None}
    if len(digests) > 1:
        shown += (
            "<p class=muted>Their data are not all the same (the digests differ), though the test "
            "data are chosen alike: see the fields of <code>data</code>.</p>"
        )
    return f"<section class=differences><h2>What differs in their configs</h2>{shown}</section>"


def _curves(group: Group) -> str:
    """Loss and validation of all runs over their steps, one chart a measure."""
    logged = {run.name: series_of(run.run.history) for run in group.runs}
    keys = {key for series in logged.values() for key in series if key.startswith("validation/")}
    bare = measures.order(key.removeprefix("validation/") for key in sorted(keys))
    first = [f"validation/{key}" for key in FIRST if key in bare]
    rest = [f"validation/{key}" for key in bare if key not in FIRST]
    shown = "".join(_charts(group, logged, key) for key in ("loss", *first))
    folded = "".join(_charts(group, logged, key) for key in rest)
    if not shown and not folded:
        return ""
    lost = sum(gaps(run.run.history) for run in group.runs)
    more = f" {lost:,} logged values are not finite and left out." if lost else ""
    others = "Other validation measures"
    return (
        f"<section><h2>Curves</h2><div class=charts>{shown}</div>"
        "<p class=muted>A ring marks the checkpoint that is reported. Losses of different "
        f"objectives are no measure of which run is better.{more}</p>"
        + _folded(others, f"<div class=charts>{folded}</div>" if folded else "")
        + "</section>"
    )


def _charts(group: Group, logged: Mapping[str, Series], key: str) -> str:
    """One chart; of validation one for each number of pictures that runs were validated on."""
    if key == "loss":
        return _chart(LOSS, group, {n: own[key] for n, own in logged.items() if key in own})
    limits = {run.name: validated_on(run) for run in group.runs}
    charts = []
    for limit in dict.fromkeys(limits.values()):
        series = {n: own[key] for n, own in logged.items() if key in own and limits[n] == limit}
        on = f", {limit:,} pictures" if limit is not None else ""
        charts.append(
            _chart(f"Validation {_title(key.removeprefix('validation/'))}{on}", group, series)
        )
    return "".join(charts)


def _chart(title: str, group: Group, series: Series) -> str:
    if not series:
        return ""
    steps: dict[str, Any] = {run.name: run.run.report.get("step") for run in group.runs}
    return chart(
        title,
        series,
        floor=None if title == LOSS else 0.0,
        rings={name: float(step) for name, step in steps.items() if finite(step)},
        hues={run.name: number for number, run in enumerate(group.runs)},
        logarithm=title == LOSS,
    )


def _title(key: str) -> str:
    """The name of a measure within a title."""
    shown = measures.measure(key)
    name = shown.name[0].lower() + shown.name[1:] if " " in shown.name else shown.name
    return f"{name}, {shown.group.lower()}" if shown.group else name


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>" if content else ""


def _queries(group: Group) -> list[str]:
    """What the runs answered to the same queries, side by side."""
    marked = "✓ marks its own"
    sections = (
        ("i2t", "What the same image retrieved", f"Its nearest captions in each run; {marked}."),
        ("t2i", "What the same caption retrieved", f"Its nearest images in each run; {marked}."),
        ("captions", "What was written of the same picture", "Left what people wrote."),
    )
    return [
        f"<section><h2>{title}</h2><p class=muted>{what}</p><div class=compared>{cards}</div>"
        "</section>"
        for part, title, what in sections
        if (cards := "".join(_card(group, part, *one) for one in shared_queries(group, part)))
    ]


def _card(group: Group, part: str, query: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """A query and what each run answered."""
    head = f"<p class=query>“{escaped(query['text'])}”</p>" if part == "t2i" else pictured(query)
    answers = "".join(
        f"<div class=answer><p class=who>{_swatch(number)}{escaped(run.name)}</p>"
        f"{answered(own[run.name], part, SHOWN)}</div>"
        for number, run in enumerate(group.runs)
        if run.name in own
    )
    said = written_items(query["said"]) if part == "captions" else ""
    return (
        f"<article class={part}><div class=asked>{head}{said}</div>"
        f"<div class=answers>{answers}</div></article>"
    )


def _warnings(runs: Sequence[Compared]) -> str:
    told = "".join(
        f"<li>{escaped(run.name)}: {escaped(warning)}</li>"
        for run in runs
        for warning in run.warnings
    )
    return f"<section><h2>Warnings</h2><ul class=warnings>{told}</ul></section>" if told else ""


def _commands(runs: Sequence[Compared]) -> str:
    """What trained or measured each run, and what makes this page."""
    own = "python -m vse_jax.report " + " ".join(shlex.quote(str(r.run.workdir)) for r in runs)
    lines = [
        f"# {run.name}\n{run.run.report['command']}"
        for run in runs
        if run.run.report.get("command") is not None
    ]
    each = f"<pre><code>{escaped(chr(10).join(lines))}</code></pre>" if lines else ""
    return (
        f"<section><h2>Reproduce</h2><pre><code>{escaped(own)}</code></pre>"
        f"{_folded('The command of each run', each)}</section>"
    )


def _swatch(number: int) -> str:
    """The colour of a run, as its lines have it."""
    return f'<i class="swatch {hue_of(number)}"></i>'
