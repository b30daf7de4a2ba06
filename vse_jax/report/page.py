"""The page: one HTML file with curves, tables and pictures, nothing outside it.

Reading (`runs.read`), drawing (`render`) and writing (`write`) are apart; `comparison_page` draws
several runs.
"""

import base64
import io
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from vse_jax import workdir as workdirs
from vse_jax.network_checks import CAPTIONERS
from vse_jax.report.alignments import aligned
from vse_jax.report.classes import classes
from vse_jax.report.curves import curves, distributions
from vse_jax.report.looks import looked
from vse_jax.report.queries import captioned, retrieved
from vse_jax.report.runs import QUERIES, ReportError, Run, read
from vse_jax.report.tables import pairs, results
from vse_jax.report.text import escaped, number, three, whole

# What a reader asks first, where the config says it.
FACTS = {
    "Network": "model.network",
    "Sentences read by": "model.text.backbone",
    "Captions written by": "model.captioner.cell",
    "Backbone": "model.image.backbone",
    "Image features": "model.image.features",
    "Dimension": "model.dimension",
    "Triplet, negatives": "objective.triplet.negatives",
    "Triplet, margin": "objective.triplet.margin",
    "Triplet, wider by meaning": "objective.triplet.semantic",
    "InfoNCE, temperature": "objective.infonce.temperature",
    "LEAP, margin's rule": "objective.leap.rule",
    "Centers, weight": "objective.center.weight",
    "Quantizer, bytes": "objective.quantizer.parts",
    "Quantizer, codes a byte": "objective.quantizer.codes",
    "Multitask, weight": "objective.multitask.weight",
    "Classes, weight": "objective.classification.weight",
    "Captions, weight": "objective.generation.weight",
    "Embedding, weight": "objective.embedding.weight",
    "Disagreement, weight": "objective.disagreement.weight",
    "Disagreement, by": "objective.disagreement.kind",
    "Started from": "train.start_from",
    "Batch size": "train.batch_size",
    "Optimizer": "train.optimizer",
    "Learning rate": "train.learning_rate",
    "Epochs": "train.epochs",
    "Steps": "train.steps",
    "Precision": "precision",
    "Seed": "seed",
}


def write(
    workdir: str | os.PathLike[str],
    queries: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """The path of the `report.html` just written into a workdir that holds a `report.json`.

    Args:
      workdir: holds `report.json`, and where it trained `metrics.jsonl`.
      queries: what was retrieved, best first, or written; kept as `queries.json` for later
        renderings, and read from there when not given. Pictures are data URIs as `thumbnail` makes
        them, ranks are 1-based.
          {"i2t": [{"image": str, "name": str, "rank": int,
                    "captions": [{"text": str, "score": float, "right": bool}, ...]}, ...],
           "t2i": [{"text": str, "name": str, "rank": int,
                    "images": [{"image": str, "name": str, "score": float, "right": bool}, ...]},
                   ...],
           "captions": [{"image": str, "name": str, "written": str, "log_probability": float,
                         "said": [str, ...]}, ...],
           "alignments": as `alignments.aligned` has them,
           "looks": as `looks.looked` has them}

    Raises:
      ReportError: there is no readable `report.json`.
      WorkdirError: the workdir cannot be written.
    """
    if queries is not None:
        workdirs.write_text(Path(workdir) / QUERIES, json.dumps(queries, default=_plain))
    run = read(workdir)
    path = run.workdir / "report.html"
    save(path, render(run))
    return path


def render(run: Run) -> str:
    """The whole page of one run."""
    title = f"{_name(run.report)} on {run.report.get('dataset', 'unknown data')}"
    sections = (
        _header(run, title),
        results(
            run.report.get("metrics", {}),
            run.report.get("oracle", {}),
            run.report.get("chance", {}).get("rsum"),
            run.report.get("protocols", {}),
        ),
        classes(run.report.get("classification", {})),
        curves(run.history, run.report.get("step")),
        distributions(run.report),
        retrieved(run.queries),
        aligned(run.queries.get("alignments", ())),
        looked(run.queries.get("looks", ())),
        captioned(run.queries),
        _notes(run.report),
        _reproduction(run),
    )
    return filled(title, sections)


def filled(title: str, sections: Iterable[str]) -> str:
    """A whole page of these sections, those that are empty left out."""
    templates = resources.files("vse_jax.report") / "templates"
    page = (templates / "report.html").read_text(encoding="utf-8")
    style = (templates / "report.css").read_text(encoding="utf-8")
    return page.format(title=escaped(title), style=style, body="\n".join(filter(None, sections)))


def save(path: Path, page: str) -> None:
    """Writes a page; WorkdirError where it cannot be written."""
    # Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a character reference.
    workdirs.write_text(path, page.encode("utf-8", "xmlcharrefreplace").decode("utf-8"))


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
    return as_uri(page)


def as_uri(picture: Image.Image) -> str:
    """An RGB picture as a JPEG data URI, in its own size."""
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def _name(report: Mapping[str, Any]) -> str:
    """What was measured, by its own name, its parts or its network."""
    parts = " + ".join(Path(str(part)).name for part in report.get("ensemble", ()))
    return report.get("name") or parts or _at(report.get("config"), "model.network") or "vse_jax"


def _header(run: Run, title: str) -> str:
    """Title, what was trained, and the numbers that sum it up."""
    report = run.report
    metrics = report.get("metrics", {})
    line = [
        f"{report.get('split', '?')} split",
        f"protocol {report.get('protocol', '?')}",
        f"mean similarity of {', '.join(report['ensemble'])}"
        if "ensemble" in report
        else f"checkpoint of step {whole(report.get('step'))}",
    ]
    tiles = {
        "rsum of 600": number(metrics.get("rsum")),
        "image → text, R@1": number(metrics.get("i2t/R@1"), "%"),
        "text → image, R@1": number(metrics.get("t2i/R@1"), "%"),
        "words found": number(metrics.get("align/accuracy"), "%"),
        "classes told right": number(metrics.get("classify/accuracy"), "%"),
        "maps agree": three(metrics.get("maps/agreement")),
        "BLEU-4": number(metrics.get("caption/BLEU-4")),
        "CIDEr": number(metrics.get("caption/CIDEr")),
        "perplexity": number(metrics.get("caption/perplexity")),
    }
    shown = "".join(
        f"<div><b>{value}</b><span>{name}</span></div>"
        for name, value in tiles.items()
        if value != "–"
    )
    return (
        f"<header><p class=kicker>vse_jax report</p><h1>{escaped(title)}</h1>"
        f"<p class=sub>{escaped(' · '.join(line))}</p>"
        f"{pairs(_facts(report.get('config')))}"
        f"{f'<div class=tiles>{shown}</div>' if shown else ''}</header>"
    )


def _facts(config: Any) -> dict[str, Any]:
    """What the config says of `FACTS`, without what has no effect."""
    network, writes = _at(config, "model.network"), _at(config, "objective.generation.weight") != 0
    ineffective = {
        "train.epochs" if _at(config, "train.steps") is not None else None,
        "model.image.features" if _at(config, "model.image.backbone") == "none" else None,
        None if _at(config, "objective.triplet.semantic") else "objective.triplet.semantic",
        *(
            ("model.text.backbone", None if network == "cam" else "model.dimension")
            if network in CAPTIONERS
            else ()
        ),
        None if network in CAPTIONERS and writes else "model.captioner.cell",
        *(
            path
            for path in FACTS.values()
            if path.startswith("objective.") and not _at(config, f"{path.rsplit('.', 1)[0]}.weight")
        ),
    }
    facts = {name: _at(config, path) for name, path in FACTS.items() if path not in ineffective}
    return {name: value for name, value in facts.items() if value is not None}


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
        parts.append("<h2>Timing</h2>" + pairs(report["timing"]))
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


def _plain(value: Any) -> Any:
    """The Python number of a NumPy one, for JSON."""
    return value.item()


def _at(config: Any, path: str) -> Any:
    """The config's value at a dotted path, None where there is none or it is no plain value."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return None if isinstance(config, Mapping) else config
