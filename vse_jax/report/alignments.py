"""The section of a report that shows which words go with which region."""

from collections.abc import Mapping, Sequence
from typing import Any

from vse_jax.alignment_picture import colours
from vse_jax.report.queries import pictured
from vse_jax.report.text import escaped, finite


def aligned(alignments: Sequence[Mapping[str, Any]]) -> str:
    """Captions in the colours of the boxes that their words go with; nothing of none.

    Args:
      alignments: each {"image": data URI, "name": str, "segments": [{"text": str, "score": float,
        "box": [y0, x0, y1, x1] as shares of height and width}, ...]}.
    """
    cards = "".join(map(_card, alignments))
    if not cards:
        return ""
    return (
        "<section><h2>Which words go with which region</h2><p class=muted>Each part of a caption "
        "has the colour of the box that it was tied to; beside it the sum of its words’ products "
        f"with that region.</p><div class=cards>{cards}</div></section>"
    )


def _card(alignment: Mapping[str, Any]) -> str:
    segments = alignment["segments"]
    hues = colours([segment["box"] for segment in segments])
    # Large ones first, so that small ones are not hidden.
    order = sorted(range(len(segments)), key=lambda number: -_area(segments[number]["box"]))
    boxes = "".join(_rectangle(segments[number], hues[number]) for number in order)
    words = " ".join(
        f'<span class=words style="--hue:{hue}">{escaped(segment["text"])}</span>'
        f"<span class=score>{_score(segment)}</span>"
        for segment, hue in zip(segments, hues, strict=True)
    )
    return (
        f"<article class=aligned><div class=boxed>{pictured(alignment)}"
        f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{boxes}</svg></div>'
        f"<p>{words}</p></article>"
    )


def _rectangle(segment: Mapping[str, Any], hue: str) -> str:
    y0, x0, y1, x1 = segment["box"]
    place = f'x="{x0:.4f}" y="{y0:.4f}" width="{x1 - x0:.4f}" height="{y1 - y0:.4f}"'
    return f'<rect class=halo {place}></rect><rect {place} style="--hue:{hue}"></rect>'


def _area(box: Sequence[float]) -> float:
    y0, x0, y1, x1 = box
    return (y1 - y0) * (x1 - x0)


def _score(segment: Mapping[str, Any]) -> str:
    score = segment.get("score")
    return f"{score:.1f}" if finite(score) else "–"
