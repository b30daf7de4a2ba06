"""What a report draws: curves of what was logged, and distributions of the measured split."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vse_jax.report.charts import Series, chart
from vse_jax.report.text import WAYS, finite

LOSS = "Loss"


def curves(rows: Sequence[Mapping[str, Any]], step: Any) -> str:
    """Loss, recalls and whatever else was logged, by step; that of the checkpoint marked."""
    logged = series_of(rows)
    grouped = {LOSS: ["loss", "validation/loss"]}
    grouped |= {
        f"Validation recall, {title.lower()}": [f"validation/{way}/R@{k}" for k in (1, 5, 10)]
        for way, title in WAYS.items()
    }
    grouped["Validation rsum"] = ["validation/rsum"]
    told = ("accuracy", "per_class", "top5")
    grouped["Validation, classes told right, %"] = [f"validation/classify/{name}" for name in told]
    entropies = ["classification/loss_per_picture", "validation/classify/cross_entropy"]
    grouped["Cross-entropy of classes, nats a picture"] = entropies
    grouped["Validation perplexity"] = ["validation/caption/perplexity"]
    grouped["Validation cost"] = ["validation/cost"]
    for measure, title in (("MedR", "median rank"), ("MeanR", "mean rank")):
        grouped[f"Validation {title}"] = [f"validation/{way}/{measure}" for way in WAYS]
    distances = ("positive", "negative", "hardest_negative")
    grouped["Distance"] = [f"leap/distance/{name}" for name in distances]
    figures: list[tuple[str, Series, float | None]] = []
    for title, keys in grouped.items():
        shown = {_line(key, title): logged.pop(key) for key in keys if key in logged}
        figures.append((title, shown, None if title == LOSS else 0.0))
    figures += [(_own_title(key), {"last": logged[key]}, None) for key in sorted(logged)]
    marked = float(step) if finite(step) else None
    drawn = [
        chart(title, series, marked, floor, logarithm=title == LOSS)
        for title, series, floor in figures
        if series
    ]
    if not drawn:
        return ""
    lost = f" {count:,} logged values are not finite and left out." if (count := gaps(rows)) else ""
    return (
        f"<section><h2>Curves</h2><div class=charts>{''.join(drawn)}</div><p class=muted>The "
        f"dashed line is the checkpoint that is reported.{lost}</p></section>"
    )


def gaps(history: Iterable[Mapping[str, Any]]) -> int:
    """How many of the numbers that were logged cannot be drawn: NaN and infinities."""
    return sum(
        isinstance(value, float) and not math.isfinite(value)
        for row in history
        for value in row.values()
    )


def distributions(report: Mapping[str, Any]) -> str:
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


def _own_title(key: str) -> str:
    """Of what has no figure with others: infonce/loss_per_pair is "infonce: loss per pair"."""
    return key.replace("/", ": ").replace("_", " ")


def _line(key: str, title: str) -> str:
    """What a line is called under a title that says the rest."""
    if "recall" in title:
        return key.rsplit("/", 1)[1]
    if "rank" in title:
        return WAYS[key.split("/")[1]].lower()
    if "entropy" in title:
        return "validation" if key.startswith("validation/") else "training"
    if title == LOSS:
        return key.replace("validation/", "validation ")
    return key.rsplit("/", 1)[1].replace("_", " ")


def series_of(history: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Name -> (step, value) of the finite numbers logged, by step; of a step run twice the last."""
    found: dict[str, dict[float, float]] = {}
    for row in history:
        if not finite(row.get("step")):
            continue
        for key, value in row.items():
            if key not in ("step", "epoch") and finite(value):
                found.setdefault(key, {})[float(row["step"])] = float(value)
    return {key: sorted(values.items()) for key, values in found.items()}
