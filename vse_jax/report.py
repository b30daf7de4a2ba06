"""The report of a workdir: one HTML file with curves, tables and pictures, nothing outside it.

`python -m vse_jax.report W` renders it again. Reading (`read`), drawing (`render`) and writing
(`write`) are apart, so that a page over several runs needs only another drawing.
"""

import argparse
import base64
import dataclasses
import io
import itertools
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from vse_jax import workdir as workdirs
from vse_jax.charts import Series, chart
from vse_jax.report_queries import retrieved
from vse_jax.report_text import escaped, finite, number, short, whole

WAYS = {"i2t": "Image → text", "t2i": "Text → image"}
# How queries meet codes: as they are, or quantized too.
CODES = ("asymmetric", "symmetric")
MEASURES = ("R@1", "R@5", "R@10", "MedR", "MeanR")
# What a reader asks first, where the config says it.
FACTS = {
    "Backbone": "model.image.backbone",
    "Image features": "model.image.features",
    "Dimension": "model.dimension",
    "Triplet, negatives": "objective.triplet.negatives",
    "Triplet, margin": "objective.triplet.margin",
    "InfoNCE, temperature": "objective.infonce.temperature",
    "Batch size": "train.batch_size",
    "Learning rate": "train.learning_rate",
    "Epochs": "train.epochs",
    "Steps": "train.steps",
    "Precision": "precision",
    "Seed": "seed",
}


class ReportError(Exception):
    """A workdir that has nothing to report yet, or a picture that is none."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir says of its run.

    Attributes:
      workdir: the folder.
      report: `report.json`: `config`, `dataset`, `split`, `protocol`, `step` and `metrics`, and
        where they are known `oracle` (the same names as `metrics`, of the best possible model),
        `scores` (histograms, `edges`, `right`, `wrong` and the name of the `measure`),
        `code_usage` (of each rank, 1 is even),
        `skipped` (reason -> names), `warnings` (sentences), `timing` (what -> value), `name` (of
        the system) and `command` (what reproduces the run).
      history: one dict a line of `metrics.jsonl`; a training row has `step`, `epoch`, `loss`, ...,
        an evaluation row `step`, `epoch`, `validation/rsum`, `validation/i2t/R@1`, ...
      queries: what was retrieved, see `write`; empty where nothing was kept.
    """

    workdir: Path
    report: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    queries: Mapping[str, Any]


def write(
    workdir: str | os.PathLike[str],
    queries: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """The path of the `report.html` just written into a workdir that holds a `report.json`.

    Args:
      workdir: holds `report.json`, and where it trained `metrics.jsonl`.
      queries: what was retrieved, best first; kept as `queries.json` for later renderings, and
        read from there when not given. Pictures are data URIs as `thumbnail` makes them, ranks
        are 1-based.
          {"i2t": [{"image": str, "name": str, "rank": int,
                    "captions": [{"text": str, "score": float, "right": bool}, ...]}, ...],
           "t2i": [{"text": str, "name": str, "rank": int,
                    "images": [{"image": str, "name": str, "score": float, "right": bool}, ...]},
                   ...]}

    Raises:
      ReportError: there is no readable `report.json`.
      WorkdirError: the workdir cannot be written.
    """
    if queries is not None:
        workdirs.write_text(Path(workdir) / "queries.json", json.dumps(queries, default=_plain))
    run = read(workdir)
    path = run.workdir / "report.html"
    # Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a character reference.
    workdirs.write_text(path, render(run).encode("utf-8", "xmlcharrefreplace").decode("utf-8"))
    return path


def read(workdir: str | os.PathLike[str]) -> Run:
    """What a workdir says of its run; only `report.json` must be there.

    A line of `metrics.jsonl` that a crash cut short is left out, with a warning unless it is the
    last one, which may be in the middle of being written.
    """
    workdir = Path(workdir)
    try:
        report = json.loads((workdir / "report.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(
            f"{workdir / 'report.json'} does not exist: train with --workdir={workdir}, "
            "or evaluate it with --mode=evaluate"
        ) from None
    except json.JSONDecodeError as error:
        raise ReportError(f"{workdir / 'report.json'} is not JSON: {error}") from error
    history, unreadable = workdirs.read_history(workdir)
    if unreadable:
        warning = f"{unreadable} line(s) of metrics.jsonl could not be read and are left out"
        report = {**report, "warnings": [*report.get("warnings", ()), warning]}
    try:
        queries = json.loads((workdir / "queries.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        queries = {}
    return Run(workdir, report, history, queries)


def render(run: Run) -> str:
    """The whole page of one run."""
    title = f"{run.report.get('name', 'vse_jax')} on {run.report.get('dataset', 'unknown data')}"
    sections = (
        _header(run, title),
        _results(
            run.report.get("metrics", {}),
            run.report.get("oracle", {}),
            run.report.get("chance", {}).get("rsum"),
        ),
        _curves(run),
        _distributions(run.report),
        retrieved(run.queries),
        _notes(run.report),
        _reproduction(run),
    )
    templates = resources.files("vse_jax") / "templates"
    page = (templates / "report.html").read_text(encoding="utf-8")
    style = (templates / "report.css").read_text(encoding="utf-8")
    return page.format(title=escaped(title), style=style, body="\n".join(filter(None, sections)))


def thumbnail(data: bytes, size: int = 128) -> str:
    """A picture (JPEG, PNG, ...) as a JPEG data URI, upright, no side above `size` pixels."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            # At most one big decode: JPEG can be read at a fraction of its size.
            opened.draft("RGB", (2 * size, 2 * size))
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except OSError as error:
        raise ReportError(f"not a picture that can be read: {error}") from error
    picture.thumbnail((size, size))
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture)
    encoded = io.BytesIO()
    page.save(encoded, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def main(arguments: Sequence[str] | None = None) -> None:
    """Renders the reports of the workdirs named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m vse_jax.report", description=main.__doc__)
    parser.add_argument("workdir", nargs="+", help="folder of a trained or evaluated run")
    for workdir in parser.parse_args(arguments).workdir:
        try:
            print(write(workdir))
        except (ReportError, workdirs.WorkdirError) as error:
            sys.exit(f"error: {error}")


def _header(run: Run, title: str) -> str:
    """Title, what was trained, and the three numbers that sum it up."""
    report = run.report
    metrics = report.get("metrics", {})
    line = [
        f"{report.get('split', '?')} split",
        f"protocol {report.get('protocol', '?')}",
        f"checkpoint of step {whole(report.get('step'))}",
    ]
    tiles = {
        "rsum of 600": number(metrics.get("rsum")),
        "image → text, R@1": number(metrics.get("i2t/R@1"), "%"),
        "text → image, R@1": number(metrics.get("t2i/R@1"), "%"),
    }
    shown = "".join(
        f"<div><b>{value}</b><span>{name}</span></div>"
        for name, value in tiles.items()
        if value != "–"
    )
    return (
        f"<header><p class=kicker>vse_jax report</p><h1>{escaped(title)}</h1>"
        f"<p class=sub>{escaped(' · '.join(line))}</p>"
        f"{_pairs(_facts(report.get('config')))}"
        f"{f'<div class=tiles>{shown}</div>' if shown else ''}</header>"
    )


def _facts(config: Any) -> dict[str, Any]:
    """What the config says of `FACTS`, without what has no effect."""
    ineffective = {
        "train.epochs" if _at(config, "train.steps") is not None else None,
        *(
            path
            for path in FACTS.values()
            if path.startswith("objective.") and not _at(config, f"{path.rsplit('.', 1)[0]}.weight")
        ),
    }
    facts = {name: _at(config, path) for name, path in FACTS.items() if path not in ineffective}
    return {name: value for name, value in facts.items() if value is not None}


def _results(metrics: Mapping[str, Any], oracle: Mapping[str, Any], chance: Any) -> str:
    """The table of recalls and ranks, the oracle's and the share of it below; other measures."""
    rows = []
    for way, title in WAYS.items():
        keys = [f"{way}/{measure}" for measure in MEASURES]
        if keys[0] not in metrics:
            continue
        rows.append(_row(title, [_measure(metrics, key) for key in keys], "ours"))
        for kind in CODES:
            coded = [f"codes/{kind}/{key}" for key in keys]
            if coded[0] in metrics:
                cells = [_measure(metrics, key) for key in coded]
                rows.append(_row(f"from {kind} codes", cells, "codes"))
        if keys[0] in oracle:
            rows.append(_row("oracle", [_measure(oracle, key) for key in keys], "oracle"))
            share = [_share(metrics, oracle, key) if "R@" in key else "" for key in keys]
            rows.append(_row("share of it", share, "oracle"))
    table = ""
    if rows:
        heads = "".join(f"<th scope=col>{measure}</th>" for measure in MEASURES)
        rows.append(_rsum(metrics, oracle, chance))
        table = (
            f"<div class=scroll><table><thead><tr><th></th>{heads}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div><p class=muted>Recalls in percent; MedR "
            "and MeanR: median and mean rank, 1 is best; ties count against the model.</p>"
        )
    tabulated = (*WAYS, *(f"{kind}/{way}" for kind in CODES for way in WAYS))
    other = {
        key: number(value)
        for key, value in metrics.items()
        if key != "rsum" and not key.removeprefix("codes/").startswith(tabulated)
    }
    return f"<section><h2>Results</h2>{table}{_pairs(other)}</section>" if metrics else ""


def _rsum(metrics: Mapping[str, Any], oracle: Mapping[str, Any], chance: Any) -> str:
    """The table's last row: the sum of the six recalls."""
    beside = ""
    if finite(chance):
        beside = f" <span class=muted>· chance {number(chance)}</span>"
    if "rsum" in oracle:
        beside += (
            f" <span class=muted>· oracle {number(oracle['rsum'])}, "
            f"share {_share(metrics, oracle, 'rsum')}</span>"
        )
    return (
        f"<tr class=sum><th scope=row>rsum</th><td colspan={len(MEASURES)}>"
        f"{number(metrics.get('rsum'))}{beside}</td></tr>"
    )


def _curves(run: Run) -> str:
    """Loss, recalls and whatever else was logged, by step."""
    logged = _series(run.history)
    grouped = {"Loss": ["loss", "validation/loss"]}
    grouped |= {
        f"Validation recall, {title.lower()}": [f"validation/{way}/R@{k}" for k in (1, 5, 10)]
        for way, title in WAYS.items()
    }
    grouped["Validation rsum"] = ["validation/rsum"]
    for measure, title in (("MedR", "median rank"), ("MeanR", "mean rank")):
        grouped[f"Validation {title}"] = [f"validation/{way}/{measure}" for way in WAYS]
    distances = ("positive", "negative", "hardest_negative")
    grouped["Distance"] = [f"leap/distance/{name}" for name in distances]
    figures: list[tuple[str, Series, float | None]] = []
    for title, keys in grouped.items():
        shown = {_line(key, title): logged.pop(key) for key in keys if key in logged}
        figures.append((title, shown, None if title == "Loss" else 0.0))
    figures += [(key.replace("_", " "), {"last": logged[key]}, None) for key in sorted(logged)]
    step = run.report.get("step", math.nan)
    marked = float(step) if finite(step) else None
    drawn = [chart(title, series, marked, floor) for title, series, floor in figures if series]
    if not drawn:
        return ""
    return (
        f"<section><h2>Curves</h2><div class=charts>{''.join(drawn)}</div><p class=muted>By step; "
        "the dashed line is the checkpoint that is reported.</p></section>"
    )


def _distributions(report: Mapping[str, Any]) -> str:
    """Histograms of the pairs' scores, and how evenly the codes of a quantizer are used."""
    drawn = []
    if scores := report.get("scores"):
        middles = [(low + high) / 2 for low, high in itertools.pairwise(scores["edges"])]
        pairs = {kind: list(zip(middles, scores[kind], strict=True)) for kind in ("right", "wrong")}
        name = scores["measure"]
        title = f"{name.capitalize()} of right and wrong pairs, % of them"
        drawn.append(chart(title, pairs, floor=0.0, along=name))
    if usage := report.get("code_usage"):
        ranked = {"use": [(float(rank), share) for rank, share in enumerate(usage, 1)]}
        title = "Use of the codes, 1 is even, by rank"
        drawn.append(chart(title, ranked, floor=0.0, along="rank"))
    if not drawn:
        return ""
    return f"<section><h2>Distributions</h2><div class=charts>{''.join(drawn)}</div></section>"


def _line(key: str, title: str) -> str:
    """What a line is called under a title that says the rest."""
    if "recall" in title:
        return key.rsplit("/", 1)[1]
    if "rank" in title:
        return WAYS[key.split("/")[1]].lower()
    return key.replace("validation/", "validation ") if title == "Loss" else key.rsplit("/", 1)[1]


def _notes(report: Mapping[str, Any]) -> str:
    """Warnings, what was left out, how long things took."""
    warnings = "".join(f"<li>{escaped(warning)}</li>" for warning in report.get("warnings", ()))
    parts = [f"<h2>Warnings</h2><ul class=warnings>{warnings}</ul>" if warnings else ""]
    skipped = {reason: names for reason, names in report.get("skipped", {}).items() if names}
    if skipped:
        parts.append("<h2>Left out</h2>")
    for reason, names in skipped.items():
        more = f" and {len(names) - 50:,} more" if len(names) > 50 else ""
        parts.append(
            f"<details><summary>{escaped(reason)}: {len(names):,}</summary>"
            f"<p class=names>{escaped(', '.join(map(str, names[:50])))}{more}</p></details>"
        )
    if report.get("timing"):
        parts.append("<h2>Timing</h2>" + _pairs(report["timing"]))
    return f"<section>{''.join(parts)}</section>" if any(parts) else ""


def _reproduction(run: Run) -> str:
    """The command that gives these numbers again, and the whole config."""
    evaluation = f"python -m vse_jax.main --mode=evaluate --workdir={shlex.quote(str(run.workdir))}"
    command = run.report.get("command", evaluation)
    config = json.dumps(run.report.get("config", {}), indent=2, ensure_ascii=False, default=str)
    return (
        f"<section><h2>Reproduce</h2><pre><code>{escaped(command)}</code></pre>"
        f"<details><summary>Config</summary><pre><code>{escaped(config)}</code></pre></details>"
        "</section>"
    )


def _series(history: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Name -> (step, value) of the finite numbers logged, by step; of a step run twice the last."""
    found: dict[str, dict[float, float]] = {}
    for row in history:
        if not finite(row.get("step")):
            continue
        for key, value in row.items():
            if key not in ("step", "epoch") and finite(value):
                found.setdefault(key, {})[float(row["step"])] = float(value)
    return {key: sorted(values.items()) for key, values in found.items()}


def _plain(value: Any) -> Any:
    """The Python number of a NumPy one, for JSON."""
    return value.item()


def _measure(metrics: Mapping[str, Any], key: str) -> str:
    """A measure as the table shows it: a median rank is a whole number."""
    return whole(metrics.get(key)) if key.endswith("MedR") else number(metrics.get(key))


def _share(metrics: Mapping[str, Any], oracle: Mapping[str, Any], key: str) -> str:
    """Percent of the oracle's value that was reached, or a dash."""
    ours, best = metrics.get(key), oracle.get(key)
    if ours is None or best is None or not (finite(ours) and finite(best) and best):
        return "–"
    return number(100 * ours / best, "%")


def _at(config: Any, path: str) -> Any:
    """The config's value at a dotted path, None where there is none or it is no plain value."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return None if isinstance(config, Mapping) else config


def _row(title: str, cells: Sequence[str], kind: str) -> str:
    """A table row."""
    tail = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr class={kind}><th scope=row>{title}</th>{tail}</tr>"


def _pairs(values: Mapping[str, Any]) -> str:
    """Names and values side by side."""
    if not values:
        return ""
    shown = {
        name: short(value) if isinstance(value, float) and math.isfinite(value) else value
        for name, value in values.items()
    }
    items = (
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>"
        for name, value in shown.items()
    )
    return f"<dl>{''.join(items)}</dl>"


if __name__ == "__main__":
    main()
