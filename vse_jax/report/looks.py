"""The section of a report that shows where a model looks while it tells classes and writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from vse_jax.report.queries import pictured
from vse_jax.report.text import escaped, finite, number, three


def looked(looks: Sequence[Mapping[str, Any]]) -> str:
    """Pictures with the maps of the class told and of the caption written; nothing of none.

    Args:
      looks: each {"name": str, "agreement": float or None}, and where the model tells classes
        {"class": {"name": str, "probability": float, "true"?: str}, "class_image": data URI}, where
        it writes {"written": str, "caption_image"?: data URI, none of a caption without a map}.
    """
    cards = "".join(map(_card, looks))
    if not cards:
        return ""
    both = any("class" in item for item in looks) and any("written" in item for item in looks)
    what = "the class told (left) and the caption written (right)" if both else "what it tells"
    return (
        "<section><h2>Where the model looks</h2><p class=muted>The warmer the colour, the more of "
        f"what speaks for {what} comes from there, from none to the most in that picture; a white "
        "box is drawn around what the true class names, where that is known."
        f"</p><div class=cards>{cards}</div></section>"
    )


def _card(item: Mapping[str, Any]) -> str:
    name, pictures, lines = str(item.get("name", "")), [], []
    if told := item.get("class"):
        alt = f"{name}: where the model looks for the class {told['name']}"
        pictures.append(pictured({"image": item.get("class_image", ""), "name": alt}))
        lines.append(f"<p>{_told(told)}</p>")
    if "written" in item:
        alt = f"{name}: where the model looks for the caption {item['written']}"
        lines.append(f"<p class=query>“{escaped(item['written'])}”</p>")
        if "caption_image" in item:
            pictures.append(pictured({"image": item["caption_image"], "name": alt}))
        else:
            lines.append("<p class=muted>no content word in it, so no map</p>")
    if finite(agreement := item.get("agreement")):
        lines.append(f"<p class=muted>maps agree {three(agreement)}</p>")
    pair, below = "".join(pictures), "".join(lines)
    return f"<article class=look><div class=pair>{pair}</div>{below}</article>"


def _told(told: Mapping[str, Any]) -> str:
    """The class, how likely the model finds it, and whether it is right."""
    chance: Any = told.get("probability")
    percent = number(100 * chance, "%") if finite(chance) else "–"
    shown = f"<b>{escaped(told['name'])}</b> <span class=score>{percent}</span>"
    if "true" not in told:
        return shown
    if told["true"] == told["name"]:
        return '<span class=tick role=img aria-label="right">✓</span>' + shown
    return (
        '<span class=cross role=img aria-label="wrong">✗</span>'
        f"{shown} <span class=muted>it is {escaped(told['true'])}</span>"
    )
