"""The report of a workdir: one HTML file with curves, tables and pictures, nothing outside it.

`python -m vse_jax.report W` renders it again. Reading (`read`), drawing (`render`) and writing
(`write`) are apart, so that a page over several runs needs only another drawing.
"""

import argparse
import base64
import dataclasses
import html
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, ImageOps

Series: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]

WAYS = {"i2t": "Image → text", "t2i": "Text → image"}
MEASURES = ("R@1", "R@5", "R@10", "MedR", "MeanR")
# What a reader asks first, where the config says it.
FACTS = {
    "Image encoder": "model.image.name",
    "Text encoder": "model.text.name",
    "Similarity": "model.similarity",
    "Batch size": "train.batch_size",
    "Learning rate": "train.learning_rate",
    "Epochs": "train.epochs",
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
    """
    if queries is not None:
        _replace(Path(workdir) / "queries.json", json.dumps(queries, default=_plain))
    run = read(workdir)
    path = run.workdir / "report.html"
    _replace(path, render(run))
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
    history, unreadable = _lines(workdir / "metrics.jsonl")
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
        _results(run.report.get("metrics", {}), run.report.get("oracle", {})),
        _curves(run),
        _retrieved(run.queries),
        _notes(run.report),
        _reproduction(run),
    )
    return _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(filter(None, sections)))


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
        except ReportError as error:
            sys.exit(f"error: {error}")


def chart(
    title: str, series: Series, marked: float | None = None, floor: float | None = None
) -> str:
    """A figure with one line a series and a legend that gives their last values, as inline SVG.

    Args:
      title: what is drawn.
      series: name -> (step, value) in ascending steps, all finite; at least one point in all.
      marked: a step to mark, that of the reported checkpoint.
      floor: the least value of the y axis; the least one drawn where None.
    """
    points = [point for line in series.values() for point in line]
    lows, highs = map(min, zip(*points, strict=True)), map(max, zip(*points, strict=True))
    (x_low, y_low), (x_high, y_high) = lows, highs
    y_ticks = _ticks(y_low if floor is None else min(floor, y_low), y_high)
    x_ticks = [tick for tick in _ticks(x_low, x_high) if x_low <= tick <= x_high]
    left, right, top, bottom = 42, 348, 8, 178

    def across(x: float) -> float:
        return left + (right - left) * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5)

    def up(y: float) -> float:
        return bottom - (bottom - top) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    drawn = []
    for tick in y_ticks:
        drawn.append(f'<path class="grid" d="M{left} {up(tick):.1f}H{right}"/>')
        drawn.append(f'<text x="{left - 7}" y="{up(tick) + 4:.1f}" class="y">{_short(tick)}</text>')
    for tick in x_ticks:
        drawn.append(f'<text x="{across(tick):.1f}" y="{bottom + 18}">{_short(tick)}</text>')
    if marked is not None and x_low <= marked <= x_high:
        drawn.append(f'<path class="mark" d="M{across(marked):.1f} {top}V{bottom}"/>')
    legend = []
    for number, (name, line) in enumerate(series.items()):
        hue = f"c{number % 4}"
        path = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in _thinned(line))
        drawn.append(f'<path class="line {hue}" d="M{path}"/>')
        if len(line) <= 60:
            drawn += [
                f'<circle class="{hue}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6">'
                f"<title>{_text(name)} at step {x:,.0f}: {y:.5g}</title></circle>"
                for x, y in line
            ]
        legend.append(
            f'<span><i class="{hue}"></i>{_text(name)} <b>{_short(line[-1][1], 3)}</b></span>'
        )
    return (
        f"<figure><figcaption>{_text(title)}</figcaption><div class=legend>{''.join(legend)}</div>"
        f'<svg viewBox="0 0 360 200" role="img" aria-label="{_text(title)} by step">'
        f"{''.join(drawn)}</svg></figure>"
    )


def _header(run: Run, title: str) -> str:
    """Title, what was trained, and the three numbers that sum it up."""
    report = run.report
    metrics = report.get("metrics", {})
    line = [
        f"{report.get('split', '?')} split",
        f"protocol {report.get('protocol', '?')}",
        f"checkpoint of step {_whole(report.get('step'))}",
    ]
    facts = {name: _at(report.get("config"), path) for name, path in FACTS.items()}
    tiles = {
        "rsum of 600": _number(metrics.get("rsum")),
        "image → text, R@1": _number(metrics.get("i2t/R@1"), "%"),
        "text → image, R@1": _number(metrics.get("t2i/R@1"), "%"),
    }
    shown = "".join(
        f"<div><b>{value}</b><span>{name}</span></div>"
        for name, value in tiles.items()
        if value != "–"
    )
    return (
        f"<header><p class=kicker>vse_jax report</p><h1>{_text(title)}</h1>"
        f"<p class=sub>{_text(' · '.join(line))}</p>"
        f"{_pairs({name: value for name, value in facts.items() if value is not None})}"
        f"{f'<div class=tiles>{shown}</div>' if shown else ''}</header>"
    )


def _results(metrics: Mapping[str, Any], oracle: Mapping[str, Any]) -> str:
    """The table of recalls and ranks, the oracle's and the share of it below; other measures."""
    rows = []
    for way, title in WAYS.items():
        keys = [f"{way}/{measure}" for measure in MEASURES]
        if keys[0] not in metrics:
            continue
        rows.append(_row(title, [_measure(metrics, key) for key in keys], "ours"))
        if keys[0] in oracle:
            rows.append(_row("oracle", [_measure(oracle, key) for key in keys], "oracle"))
            share = [_share(metrics, oracle, key) if "R@" in key else "" for key in keys]
            rows.append(_row("share of it", share, "oracle"))
    table = ""
    if rows:
        heads = "".join(f"<th scope=col>{measure}</th>" for measure in MEASURES)
        rows.append(_rsum(metrics, oracle))
        table = (
            f"<div class=scroll><table><thead><tr><th></th>{heads}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div><p class=muted>Recalls in percent; MedR "
            "and MeanR: median and mean rank, 1 is best; ties count against the model.</p>"
        )
    other = {
        key: _number(value)
        for key, value in metrics.items()
        if key != "rsum" and not key.startswith(tuple(WAYS))
    }
    return f"<section><h2>Results</h2>{table}{_pairs(other)}</section>" if metrics else ""


def _rsum(metrics: Mapping[str, Any], oracle: Mapping[str, Any]) -> str:
    """The table's last row: the sum of the six recalls."""
    beside = ""
    if "rsum" in oracle:
        beside = (
            f" <span class=muted>· oracle {_number(oracle['rsum'])}, "
            f"share {_share(metrics, oracle, 'rsum')}</span>"
        )
    return (
        f"<tr class=sum><th scope=row>rsum</th><td colspan={len(MEASURES)}>"
        f"{_number(metrics.get('rsum'))}{beside}</td></tr>"
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
    figures: list[tuple[str, Series, float | None]] = []
    for title, keys in grouped.items():
        shown = {_line(key, title): logged.pop(key) for key in keys if key in logged}
        figures.append((title, shown, None if title == "Loss" else 0.0))
    figures += [(key.replace("_", " "), {"last": logged[key]}, None) for key in sorted(logged)]
    step = run.report.get("step", math.nan)
    marked = float(step) if _finite(step) else None
    drawn = [chart(title, series, marked, floor) for title, series, floor in figures if series]
    if not drawn:
        return ""
    return (
        f"<section><h2>Curves</h2><div class=charts>{''.join(drawn)}</div><p class=muted>By step; "
        "the dashed line is the checkpoint that is reported.</p></section>"
    )


def _line(key: str, title: str) -> str:
    """What a line is called under a title that says the rest."""
    if "recall" in title:
        return key.rsplit("/", 1)[1]
    if "rank" in title:
        return WAYS[key.split("/")[1]].lower()
    return key.replace("validation/", "validation ") if title == "Loss" else key.rsplit("/", 1)[1]


def _retrieved(queries: Mapping[str, Any]) -> str:
    """Queries of both ways with what was retrieved, the right ones marked."""
    images = "".join(
        f"<article class=i2t>{_picture(query)}<div>{_rank(query)}<ol>"
        + "".join(
            f"<li{_right(caption)}>{_tick(caption)}{_text(caption['text'])}"
            f"<span class=score>{_score(caption)}</span></li>"
            for caption in query["captions"]
        )
        + "</ol></div></article>"
        for query in queries.get("i2t", ())
    )
    captions = "".join(
        f"<article><p class=query>“{_text(query['text'])}”</p>{_rank(query)}<ol class=images>"
        + "".join(
            f"<li{_right(image)}>{_picture(image)}{_tick(image)}"
            f"<span class=score>{_score(image)}</span></li>"
            for image in query["images"]
        )
        + "</ol></article>"
        for query in queries.get("t2i", ())
    )
    return "".join(
        f"<section><h2>What each {query} retrieved</h2><p class=muted>Its nearest {found}s, "
        f"the best first; ✓ marks its own.</p><div class=cards>{cards}</div></section>"
        for query, found, cards in (("image", "caption", images), ("caption", "image", captions))
        if cards
    )


def _notes(report: Mapping[str, Any]) -> str:
    """Warnings, what was left out, how long things took."""
    warnings = "".join(f"<li>{_text(warning)}</li>" for warning in report.get("warnings", ()))
    parts = [f"<h2>Warnings</h2><ul class=warnings>{warnings}</ul>" if warnings else ""]
    skipped = {reason: names for reason, names in report.get("skipped", {}).items() if names}
    if skipped:
        parts.append("<h2>Left out</h2>")
    for reason, names in skipped.items():
        more = f" and {len(names) - 50:,} more" if len(names) > 50 else ""
        parts.append(
            f"<details><summary>{_text(reason)}: {len(names):,}</summary>"
            f"<p class=names>{_text(', '.join(map(str, names[:50])))}{more}</p></details>"
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
        f"<section><h2>Reproduce</h2><pre><code>{_text(command)}</code></pre>"
        f"<details><summary>Config</summary><pre><code>{_text(config)}</code></pre></details>"
        "</section>"
    )


def _series(history: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Name -> (step, value) of the finite numbers logged, by step; of a step run twice the last."""
    found: dict[str, dict[float, float]] = {}
    for row in history:
        if not _finite(row.get("step")):
            continue
        for key, value in row.items():
            if key not in ("step", "epoch") and _finite(value):
                found.setdefault(key, {})[float(row["step"])] = float(value)
    return {key: sorted(values.items()) for key, values in found.items()}


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSONL file, and how many lines failed, not counting the last."""
    if not path.exists():
        return [], 0
    rows, failed = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line or "{}")
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            failed.append(number)
    return rows, sum(number < len(lines) for number in failed)


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a character reference.
    temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    """The Python number of a NumPy one, for JSON."""
    return value.item()


def _thinned(line: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """The line by means of equal shares of it, where it has more points than a chart can show."""
    if len(line) <= most:
        return list(line)
    size = -(-len(line) // most)
    shares = [line[first : first + size] for first in range(0, len(line), size)]
    return [(sum(x) / len(x), sum(y) / len(y)) for x, y in (zip(*s, strict=True) for s in shares)]


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from at most `low` to at least `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * nice for nice in (1, 2, 5, 10) if size * nice * 5 >= high - low)
    return [step * n for n in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _finite(value: Any) -> bool:
    """Whether it is a number that can be drawn."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _text(value: Any) -> str:
    """Anything as text that HTML takes for text, in attributes too: names are untrusted."""
    return html.escape(str(value), quote=True)


def _short(value: float, digits: int = 4) -> str:
    """A number in few characters: 12k, 0.25, 2e-4."""
    if abs(value) >= 1000:
        size, unit = (1e3, "k") if abs(value) < 1e6 else (1e6, "M")
        return f"{value / size:.{digits}g}{unit}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{digits}g}"


def _number(value: Any, unit: str = "") -> str:
    """A measure with one decimal, or a dash where there is none."""
    return f"{value:,.1f}{unit}" if _finite(value) else "–"


def _measure(metrics: Mapping[str, Any], key: str) -> str:
    """A measure as the table shows it: a median rank is a whole number."""
    return _whole(metrics.get(key)) if key.endswith("MedR") else _number(metrics.get(key))


def _whole(value: Any) -> str:
    """A whole number, or a dash."""
    return f"{value:,.0f}" if _finite(value) else "–"


def _share(metrics: Mapping[str, Any], oracle: Mapping[str, Any], key: str) -> str:
    """Percent of the oracle's value that was reached, or a dash."""
    ours, best = metrics.get(key), oracle.get(key)
    if ours is None or best is None or not (_finite(ours) and _finite(best) and best):
        return "–"
    return _number(100 * ours / best, "%")


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
        name: _short(value) if isinstance(value, float) and math.isfinite(value) else value
        for name, value in values.items()
    }
    items = (
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in shown.items()
    )
    return f"<dl>{''.join(items)}</dl>"


def _picture(item: Mapping[str, Any]) -> str:
    """The thumbnail; only data URIs, so that no report ever loads anything."""
    name, source = _text(item.get("name", "")), str(item.get("image", ""))
    if not source.startswith("data:image/"):
        return f"<span class=missing>{name}</span>"
    return f'<img src="{_text(source)}" alt="{name}" title="{name}" loading="lazy">'


def _rank(query: Mapping[str, Any]) -> str:
    """Where the (best) right one came, green when first."""
    rank = query.get("rank")
    kind = "first" if rank == 1 else "later"
    return f"<p class='rank {kind}'>right one at rank {_whole(rank)}</p>"


def _right(item: Mapping[str, Any]) -> str:
    return " class=right" if item.get("right") else ""


def _tick(item: Mapping[str, Any]) -> str:
    return '<span class=tick role=img aria-label="right">✓</span>' if item.get("right") else ""


def _score(item: Mapping[str, Any]) -> str:
    score = item.get("score")
    return f"{score:.3f}" if _finite(score) else "–"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { --page:#f6f7f9; --card:#fff; --ink:#16202c; --muted:#5d6b7a; --line:#e1e6ec; --good:#15803d;
 --good-soft:#eaf7ee; --warn:#b45309; --c0:#2563eb; --c1:#0d9488; --c2:#d97706; --c3:#9333ea; }
@media (prefers-color-scheme: dark) { :root { --page:#0e141b; --card:#161e27; --ink:#e6ebf1;
 --muted:#94a3b3; --line:#293440; --good:#4ade80; --good-soft:#12291c; --warn:#fbbf24;
 --c0:#6ea8fe; --c1:#2dd4bf; --c2:#fbbf24; --c3:#c084fc; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--page); color:var(--ink); -webkit-text-size-adjust:100%;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:1080px; margin:0 auto; padding:40px 20px 72px; }
h1 { font-size:clamp(1.6rem,4vw,2.25rem); line-height:1.15; letter-spacing:-.02em;
 margin:.1em 0 .2em; overflow-wrap:anywhere; }
h2 { font-size:1.2rem; letter-spacing:-.01em; margin:0 0 .6rem; }
section { margin-top:44px; } section > * + h2 { margin-top:32px; }
p { margin:.4rem 0; }
.kicker { font-size:.78rem; letter-spacing:.09em; text-transform:uppercase; color:var(--c0);
 font-weight:650; margin:0; }
.sub, .muted { color:var(--muted); } .muted { font-size:.875rem; }
dl { display:flex; flex-wrap:wrap; gap:10px 30px; margin:18px 0; } dl > div { min-width:0; }
dt { font-size:.78rem; color:var(--muted); }
dd { margin:0; font-weight:550; overflow-wrap:anywhere; }
.tiles { display:grid; grid-template-columns:repeat(3,1fr); gap:12px; margin-top:22px; }
.tiles > div, figure, article, .scroll, details, pre, .warnings { background:var(--card);
 border:1px solid var(--line); border-radius:12px; }
.tiles > div { padding:14px 18px; }
.tiles b { display:block; font-size:clamp(1.35rem,5vw,2.1rem); line-height:1.2;
 letter-spacing:-.02em; font-variant-numeric:tabular-nums; }
.tiles span { color:var(--muted); font-size:.84rem; }
.scroll { overflow-x:auto; } table { border-collapse:collapse; width:100%; }
th, td { padding:10px 14px; text-align:right; white-space:nowrap;
 font-variant-numeric:tabular-nums; }
th:first-child { text-align:left; }
thead th { color:var(--muted); font-size:.82rem; font-weight:550; }
tbody tr { border-top:1px solid var(--line); } .ours td { font-weight:600; }
tbody th { font-weight:600; } .oracle { border-top:0; }
.oracle th, .oracle td { color:var(--muted); font-weight:400; padding-top:0; font-size:.9rem; }
.oracle th { padding-left:28px; } .sum td { font-weight:650; text-align:left; }
.sum .muted { font-weight:400; }
.charts, .cards { display:grid; gap:14px;
 grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr)); }
.charts { grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr)); }
figure { margin:0; padding:14px 16px 8px; } figcaption { font-weight:600; }
figcaption::first-letter { text-transform:uppercase; }
svg { display:block; width:100%; height:auto; }
svg text { font-size:11px; fill:var(--muted); text-anchor:middle; } svg .y { text-anchor:end; }
.grid { stroke:var(--line); } .mark { stroke:var(--muted); stroke-dasharray:3 4; fill:none; }
.line { fill:none; stroke-width:2; stroke-linejoin:round; stroke-linecap:round; }
.line.c0 { stroke:var(--c0); } .line.c1 { stroke:var(--c1); } .line.c2 { stroke:var(--c2); }
.line.c3 { stroke:var(--c3); } circle.c0 { fill:var(--c0); } circle.c1 { fill:var(--c1); }
circle.c2 { fill:var(--c2); } circle.c3 { fill:var(--c3); }
.legend { display:flex; flex-wrap:wrap; gap:2px 12px; font-size:.8rem; color:var(--muted);
 margin:2px 0 8px; } .legend b { color:var(--ink); font-variant-numeric:tabular-nums; }
.legend i { display:inline-block; width:14px; height:3px; border-radius:2px; margin-right:6px;
 vertical-align:middle; } i.c0 { background:var(--c0); } i.c1 { background:var(--c1); }
i.c2 { background:var(--c2); } i.c3 { background:var(--c3); }
article { padding:14px; min-width:0; } .i2t { display:flex; gap:14px; }
.i2t > img, .i2t > .missing { width:104px; height:104px; flex:none; }
.i2t > div { min-width:0; flex:1; }
img { display:block; object-fit:contain; background:var(--page); border-radius:7px; }
ol { list-style:none; margin:6px 0 0; padding:0; }
.i2t li { font-size:.875rem; line-height:1.35; padding:4px 8px; border:2px solid transparent;
 border-radius:7px; overflow-wrap:anywhere; }
.i2t .score { margin-left:8px; } .score { color:var(--muted); font-size:.75rem;
 font-variant-numeric:tabular-nums; }
li.right { border-color:var(--good) !important; background:var(--good-soft); }
.tick { color:var(--good); font-weight:700; margin-right:6px; }
.query { font-weight:550; margin:0; overflow-wrap:anywhere; }
.rank { font-size:.78rem; margin:2px 0; color:var(--muted); } .rank.first { color:var(--good); }
.images { display:grid; grid-template-columns:repeat(5,1fr); gap:6px; }
.images li { border:2px solid transparent; border-radius:9px; padding:2px; position:relative;
 text-align:center; line-height:1.3; min-width:0; }
.images img, .images .missing { width:100%; aspect-ratio:1; }
.images .tick { position:absolute; top:5px; left:5px; margin:0; width:20px; height:20px;
 border-radius:50%; background:var(--good); color:var(--card); font-size:.8rem; line-height:20px; }
.missing { display:grid; place-items:center; background:var(--line); border-radius:7px; padding:4px;
 font-size:.7rem; color:var(--muted); overflow:hidden; overflow-wrap:anywhere; }
details { padding:10px 16px; margin-top:10px; } summary { cursor:pointer; font-weight:550; }
details pre { border:0; padding:8px 0 0; } .names { color:var(--muted); font-size:.85rem;
 overflow-wrap:anywhere; }
pre { margin:0; padding:14px 16px; overflow-x:auto; } code { font:.84rem/1.5 ui-monospace,
 SFMono-Regular,Menlo,Consolas,monospace; }
.warnings { border-left:4px solid var(--warn); margin:0; padding:12px 16px 12px 34px; }
@media (max-width:560px) { main { padding:24px 14px 48px; } .tiles > div { padding:10px 12px; }
 .tiles { gap:8px; } th, td { padding:9px 8px; font-size:.88rem; } .oracle th { padding-left:16px; }
 .i2t > img, .i2t > .missing { width:76px; height:76px; } }
@media print { body { background:#fff; } section, figure, article { break-inside:avoid; } }
"""

if __name__ == "__main__":
    main()
