"""The section of a report that shows how well the classes of pictures are told."""

from collections.abc import Mapping, Sequence
from typing import Any

from vse_jax.report.text import escaped, number, three, whole

# Of metrics in percent, what a reader calls them.
PERCENT = {
    "classify/accuracy": "Classes told right",
    "classify/per_class": "Mean over the classes",
    "classify/top5": "Right class among the first five",
    "maps/class_pointing": "Map of the true class is highest on the thing",
    "maps/caption_pointing": "Map of the caption written is highest on the thing",
    "maps/chance_pointing": "A cell drawn at random is on the thing",
}
# Of those with three decimals.
PLAIN = {
    "classify/cross_entropy": "Cross-entropy, nats a picture",
    "maps/agreement": "Agreement of the maps of the class told and the caption written",
    "maps/agreement_chance": "Agreement with the map of another picture’s caption",
    "maps/agreement_truth": "Agreement of those of the true class and people’s first caption",
}
# Metrics that `measures` shows.
SHOWN = (*PERCENT, *PLAIN)
# Classes up to which confusion is a table, and confusions that are listed of more.
TABLED, LISTED = 20, 30
# The colour of a cell of all pictures of its class, of 1.
STRONGEST = 0.6


def measures(metrics: Mapping[str, Any]) -> str:
    """The table of what is known of classes and maps; nothing where nothing is."""
    order = sorted(SHOWN, key=lambda key: key.startswith("maps/"))
    rows = "".join(
        f"<tr class=ours><th scope=row>{(PERCENT | PLAIN)[key]}</th>"
        f"<td>{_measure(key, metrics[key])}</td></tr>"
        for key in order
        if key in metrics
    )
    if not rows:
        return ""
    notes = "<p class=muted>Agreement is the mean cosine of two maps of a picture, 1 at most.</p>"
    table = f"<div class='scroll fit'><table><tbody>{rows}</tbody></table></div>"
    return table + (notes if "maps/agreement" in metrics else "")


def classes(found: Mapping[str, Any]) -> str:
    """How well each class is told, and what is taken for what; nothing where nobody measured it.

    Args:
      found: as `seen.of_classes` gives it; empty where there is none.
    """
    if not found:
        return ""
    return (
        f"<section><h2>Classes</h2>{_accuracies(found)}"
        f"<h2>What is taken for what</h2>{_confusion(found)}</section>"
    )


def _measure(key: str, value: Any) -> str:
    if key in PERCENT:
        return number(value, "%")
    return three(value)


def _accuracies(found: Mapping[str, Any]) -> str:
    """A row for each class that has pictures; folded where they are many."""
    names, pictures, right = found["names"], found["pictures"], found["right"]
    occurring = [c for c, count in enumerate(pictures) if count]
    rows = "".join(
        f"<tr><th scope=row>{escaped(names[c])}</th><td>{whole(pictures[c])}</td>"
        f"<td>{number(100 * right[c] / pictures[c], '%')}</td></tr>"
        for c in occurring
    )
    table = (
        "<div class='scroll fit'><table><thead><tr><th></th><th scope=col>pictures</th>"
        f"<th scope=col>told right</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
    if missing := len(names) - len(occurring):
        table += f"<p class=muted>{missing:,} more classes have no picture in this split.</p>"
    if len(occurring) <= TABLED:
        return table
    return f"<details><summary>Each of the {len(occurring):,} classes</summary>{table}</details>"


def _confusion(found: Mapping[str, Any]) -> str:
    """A coloured table of few classes; of many the most frequent confusions."""
    names, confused = found["names"], found["confused"]
    if not confused:
        return "<p class=muted>Every picture was told right.</p>"
    if len(names) <= TABLED:
        return _table(found)
    items = "".join(
        f"<li>{escaped(names[true])} → {escaped(names[told])} "
        f"<span class=score>{whole(count)} of {whole(found['pictures'][true])}</span></li>"
        for true, told, count in confused[:LISTED]
    )
    rest = len(confused) - LISTED
    more = f"<p class=muted>And {rest:,} pairs more.</p>" if rest > 0 else ""
    return (
        "<p class=muted>The true class → what it was taken for, the most pictures first."
        f"</p><ul class=confused>{items}</ul>{more}"
    )


def _table(found: Mapping[str, Any]) -> str:
    names: Sequence[str] = found["names"]
    counts = {(true, told): count for true, told, count in found["confused"]}
    counts |= {(c, c): count for c, count in enumerate(found["right"]) if count}
    heads = "".join(f"<th scope=col><span>{escaped(name)}</span></th>" for name in names)
    rows = "".join(
        f"<tr><th scope=row>{escaped(name)}</th>"
        + "".join(
            _cell(counts.get((true, told), 0), found["pictures"][true], true == told)
            for told in range(len(names))
        )
        + "</tr>"
        for true, name in enumerate(names)
    )
    return (
        "<div class=scroll><table class=confusion><thead><tr><th></th>"
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div><p class=muted>Pictures of the "
        "class of the row that were taken for that of the column; the stronger the colour, the "
        "larger the share of the row.</p>"
    )


def _cell(count: int, of: int, right: bool) -> str:
    kind = "right" if right else "wrong"
    if not count:
        return f"<td class={kind}></td>"
    return f'<td class={kind} style="--share:{STRONGEST * count / of:.3f}">{whole(count)}</td>'
