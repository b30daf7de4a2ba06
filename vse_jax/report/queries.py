"""The sections of a report that show what was retrieved, and what was written."""

from collections.abc import Mapping, Sequence
from typing import Any

from vse_jax.report.text import escaped, finite, whole


def retrieved(queries: Mapping[str, Any]) -> str:
    """Queries of both ways with what was retrieved, the right ones marked."""
    images = "".join(
        f"<article class=i2t>{pictured(query)}<div>{answered(query, 'i2t')}</div></article>"
        for query in queries.get("i2t", ())
    )
    captions = "".join(
        f"<article><p class=query>“{escaped(query['text'])}”</p>{answered(query, 't2i')}</article>"
        for query in queries.get("t2i", ())
    )
    return "".join(
        f"<section><h2>What each {query} retrieved</h2><p class=muted>Its nearest {found}s, "
        f"the best first, with their scores; ✓ marks its own.</p><div class=cards>{cards}</div>"
        "</section>"
        for query, found, cards in (("image", "caption", images), ("caption", "image", captions))
        if cards
    )


def answered(query: Mapping[str, Any], part: str, most: int | None = None) -> str:
    """What a query of a part of `queries.json` retrieved or was told, without the query.

    Args:
      query: as `page.write` has it.
      part: "i2t", "t2i" or "captions".
      most: of those retrieved that are shown; None: all.
    """
    if part == "captions":
        return (
            f"<p class=query>“{escaped(query['written'])}”</p><p class=muted>log probability "
            f"{_score(query.get('log_probability'))}</p>"
        )
    if part == "i2t":
        found = (_item(one, _tick(one) + escaped(one["text"])) for one in query["captions"][:most])
        return f"{_rank(query)}<ol>{''.join(found)}</ol>"
    found = (_item(one, pictured(one) + _tick(one)) for one in query["images"][:most])
    return f"{_rank(query)}<ol class=images>{''.join(found)}</ol>"


def written_items(sentences: Sequence[Any]) -> str:
    """Sentences, a line each."""
    return f"<ul>{''.join(f'<li>{escaped(sentence)}</li>' for sentence in sentences)}</ul>"


def captioned(queries: Mapping[str, Any]) -> str:
    """Pictures with the caption that was written, and those that people wrote."""
    cards = "".join(
        f"<article class=i2t>{pictured(item)}<div>{answered(item, 'captions')}"
        f"{written_items(item['said'])}</div></article>"
        for item in queries.get("captions", ())
    )
    if not cards:
        return ""
    return (
        "<section><h2>What was written of pictures</h2><p class=muted>In quotes the model's "
        f"caption; below, people's.</p><div class=cards>{cards}</div></section>"
    )


def pictured(item: Mapping[str, Any]) -> str:
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
    return f"<li{right}>{shown}<span class=score>{_score(score)}</span></li>"


def _score(value: Any) -> str:
    return f"{value:.3f}" if finite(value) else "–"


def _tick(item: Mapping[str, Any]) -> str:
    return '<span class=tick role=img aria-label="right">✓</span>' if item.get("right") else ""
