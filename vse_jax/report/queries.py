"""The section of a report that shows what was retrieved."""

from collections.abc import Mapping
from typing import Any

from vse_jax.report.text import escaped, finite, whole


def retrieved(queries: Mapping[str, Any]) -> str:
    """Queries of both ways with what was retrieved, the right ones marked."""
    images = "".join(
        f"<article class=i2t>{_picture(query)}<div>{_rank(query)}<ol>"
        + "".join(
            _item(found, _tick(found) + escaped(found["text"])) for found in query["captions"]
        )
        + "</ol></div></article>"
        for query in queries.get("i2t", ())
    )
    captions = "".join(
        f"<article><p class=query>“{escaped(query['text'])}”</p>{_rank(query)}<ol class=images>"
        + "".join(_item(found, _picture(found) + _tick(found)) for found in query["images"])
        + "</ol></article>"
        for query in queries.get("t2i", ())
    )
    return "".join(
        f"<section><h2>What each {query} retrieved</h2><p class=muted>Its nearest {found}s, "
        f"the best first; ✓ marks its own.</p><div class=cards>{cards}</div></section>"
        for query, found, cards in (("image", "caption", images), ("caption", "image", captions))
        if cards
    )


def _picture(item: Mapping[str, Any]) -> str:
    """The thumbnail; only data URIs, so that no report ever loads anything."""
    name, source = escaped(item.get("name", "")), str(item.get("image", ""))
    if not source.startswith("data:image/"):
        return f"<span class=missing>{name}</span>"
    return f'<img src="{escaped(source)}" alt="{name}" title="{name}" loading="lazy">'


def _rank(query: Mapping[str, Any]) -> str:
    """Where the (best) right one came, green when first."""
    rank = query.get("rank")
    kind = "first" if rank == 1 else "later"
    return f"<p class='rank {kind}'>right one at rank {whole(rank)}</p>"


def _item(found: Mapping[str, Any], shown: str) -> str:
    """Something retrieved, as `shown`, with its score; marked when it is right."""
    right, score = " class=right" if found.get("right") else "", found.get("score")
    value = f"{score:.3f}" if finite(score) else "–"
    return f"<li{right}>{shown}<span class=score>{value}</span></li>"


def _tick(item: Mapping[str, Any]) -> str:
    return '<span class=tick role=img aria-label="right">✓</span>' if item.get("right") else ""
