"""The results table of a report, and names beside values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vse_jax.report import classes
from vse_jax.report.text import WAYS, escaped, finite, number, short, three, whole

# How queries meet codes: as they are, or quantized too.
CODES = ("asymmetric", "symmetric")
MEASURES = ("R@1", "R@5", "R@10", "MedR", "MeanR")
CAPTION_MEASURES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "SPICE", "CIDEr")
# Whose captions are measured, and where their measures are.
CAPTIONS = {
    "caption": "the search's",
    "caption/greedy": "one word after the other",
    "caption/nearest": "of the most similar training picture",
}
# Of captions beside that table.
NAMES = {
    "caption/perplexity": "Perplexity",
    "caption/vocabulary": "Vocabulary, words",
    "caption/distinct": "Different captions, %",
}


def results(
    metrics: Mapping[str, Any],
    oracle: Mapping[str, Any],
    chance: Any,
    protocols: Mapping[str, Mapping[str, Any]],
) -> str:
    """The table of recalls and ranks; below, further protocols and the oracle; other measures."""
    rows = []
    for way, title in WAYS.items():
        keys = [f"{way}/{measure}" for measure in MEASURES]
        if keys[0] not in metrics:
            continue
        rows.append(_row(title, [_measure(metrics, key) for key in keys], "ours"))
        for name, found in protocols.items():
            rows.append(_row(escaped(name), [_measure(found, key) for key in keys], "oracle"))
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
        rows.append(_rsum(metrics, oracle, chance, protocols))
        table = _table(MEASURES, rows) + (
            "<p class=muted>Recalls in percent; MedR and MeanR: median and mean rank, 1 is best; "
            "ties count against the model.</p>"
        )
    table += classes.measures(metrics) + _captions(metrics)
    tabulated = (*WAYS, *(f"{kind}/{way}" for kind in CODES for way in WAYS))
    other = {
        NAMES.get(key, key): _other(key, value)
        for key, value in metrics.items()
        if key not in ("rsum", *classes.SHOWN)
        and not key.removeprefix("codes/").startswith(tabulated)
        and key.rpartition("/")[2] not in CAPTION_MEASURES
    }
    return f"<section><h2>Results</h2>{table}{pairs(other)}</section>" if metrics else ""


def _captions(metrics: Mapping[str, Any]) -> str:
    """The table of what captions are worth; nothing where none were measured."""
    shown = [
        measure
        for measure in CAPTION_MEASURES
        if any(f"{kind}/{measure}" in metrics for kind in CAPTIONS)
    ]
    rows = [
        _row(title, [number(metrics.get(f"{kind}/{measure}")) for measure in shown], css)
        for (kind, title), css in zip(CAPTIONS.items(), ("ours", "codes", "oracle"), strict=True)
        if any(f"{kind}/{measure}" in metrics for measure in shown)
    ]
    if not rows:
        return ""
    return _table(shown, rows) + (
        "<p class=muted>Captions, in percent (CIDEr: at most 1,000); the vocabulary is what can be "
        "written.</p>"
    )


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    """Rows below the names of their columns."""
    columns = "".join(f"<th scope=col>{head}</th>" for head in heads)
    return (
        f"<div class=scroll><table><thead><tr><th></th>{columns}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _rsum(
    metrics: Mapping[str, Any],
    oracle: Mapping[str, Any],
    chance: Any,
    protocols: Mapping[str, Mapping[str, Any]],
) -> str:
    """The table's last row: the sum of the six recalls."""
    beside = "".join(
        f" <span class=muted>· {escaped(name)} {number(found.get('rsum'))}</span>"
        for name, found in protocols.items()
    )
    if finite(chance):
        beside += f" <span class=muted>· chance {number(chance)}</span>"
    if "rsum" in oracle:
        beside += (
            f" <span class=muted>· oracle {number(oracle['rsum'])}, "
            f"share {_share(metrics, oracle, 'rsum')}</span>"
        )
    return (
        f"<tr class=sum><th scope=row>rsum</th><td colspan={len(MEASURES)}>"
        f"{number(metrics.get('rsum'))}{beside}</td></tr>"
    )


def _row(title: str, cells: Sequence[str], kind: str) -> str:
    """A table row."""
    tail = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr class={kind}><th scope=row>{title}</th>{tail}</tr>"


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values side by side; nothing of nothing."""
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


def _other(key: str, value: Any) -> str:
    """A measure beside the table: a correlation with three decimals, a count whole."""
    if "/spearman" in key or "/kendall" in key:
        return three(value)
    return whole(value) if key.endswith(("/pairs", "/vocabulary")) else number(value)


def _measure(metrics: Mapping[str, Any], key: str) -> str:
    """A measure as the table shows it: a median rank is a whole number."""
    return whole(metrics.get(key)) if key.endswith("MedR") else number(metrics.get(key))


def _share(metrics: Mapping[str, Any], oracle: Mapping[str, Any], key: str) -> str:
    """Percent of the oracle's value that was reached, or a dash."""
    ours, best = metrics.get(key), oracle.get(key)
    if ours is None or best is None or not (finite(ours) and finite(best) and best):
        return "–"
    return number(100 * ours / best, "%")
