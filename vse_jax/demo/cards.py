"""What the tabs found, as HTML: pictures within it as data, every text escaped."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from vse_jax import alignment_picture
from vse_jax.alignment import Alignment
from vse_jax.api import Caption
from vse_jax.demo.tabs import Drawn, Photos, Unserved
from vse_jax.look import Look

QUALITY = 88
# Classes that are told of a picture.
TOLD = 5
UNKNOWN = "words that the model does not know:"


def data_url(picture: Image.Image) -> str:
    """A picture as a JPEG within a URL."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def gallery(found: Photos) -> str:
    """Photos with their scores, the best first; each opens larger."""
    if not found.photos and not found.left_out:
        return hint("There is nothing in the index.")
    cards = []
    for number, photo in enumerate(found.photos, 1):
        told = escape(photo.name)
        cards.append(
            f'<figure tabindex="0" title="{told}"><img src="{data_url(photo.picture)}" '
            f'alt="{told}"><figcaption><b>{number}</b>'
            f"<span>{told}</span><i>{photo.score:.3f}</i></figcaption></figure>"
        )
    heading = _heading(f"{len(cards)} of {found.among:,} photos", found.seconds)
    left_out = _note(
        f"left out, as gone or broken since indexed, {len(found.left_out)}:", found.left_out
    )
    return f'{heading}{left_out}<div class="photos">{"".join(cards)}</div>'


def captions(found: Sequence[Caption], seconds: float) -> str:
    """Captions, the likeliest first, and their log-probabilities."""
    rows = "".join(
        f"<tr><td>{number}</td><td>{escape(caption.text) or '<i>no words</i>'}</td>"
        f"<td>{caption.log_probability:.2f}</td></tr>"
        for number, caption in enumerate(found, 1)
    )
    head = "<tr><th></th><th>caption</th><th>log-probability</th></tr>"
    return f'{_heading("Captions", seconds)}<table class="told">{head}{rows}</table>'


def aligned(drawn: Drawn, seconds: float) -> str:
    """The picture with its boxes, and of each part of the sentence how strong the tie is."""
    found: Alignment = drawn.found
    hues = alignment_picture.colours([segment.box for segment in found.segments])
    rows = "".join(
        f'<tr><td><span class="words" style="background:{hue}">{escape(segment.text)}</span></td>'
        f"<td>{segment.score:.2f}</td></tr>"
        for segment, hue in zip(found.segments, hues, strict=True)
    )
    head = "<tr><th>words</th><th>score</th></tr>"
    return (
        f"{_heading('Words and their regions', seconds)}{_picture(drawn.picture)}"
        f'{_note(UNKNOWN, found.unknown)}<table class="told">{head}{rows}</table>'
    )


def looked(drawn: Drawn, seconds: float) -> str:
    """Both maps over the picture, the likeliest classes and how well the maps agree."""
    found: Look = drawn.found
    rows = [(told.name, f"{100 * told.probability:.1f}%") for told in found.classes[:TOLD]]
    if found.agreement is not None:
        rows.append(("agreement of the two maps (cosine)", f"{found.agreement:.2f}"))
    told = "".join(f"<tr><td>{escape(name)}</td><td>{value}</td></tr>" for name, value in rows)
    return (
        f"{_heading('Where the model looks', seconds)}{_picture(drawn.picture)}"
        f'{_note(UNKNOWN, found.unknown)}<table class="told">{told}</table>'
    )


def unserved(title: str, task: Unserved) -> str:
    """Why a task is not done, and what to do about it."""
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in task.reasons)
    return (
        f'<div class="unserved"><b>{escape(title)}</b><ul>{reasons}</ul>'
        f"<p>{escape(task.advice)}</p></div>"
    )


def hint(text: str) -> str:
    """What stands where nothing was found yet."""
    return f'<div class="hint">{escape(text)}</div>'


def _heading(text: str, seconds: float) -> str:
    return f'<h3 class="heading">{escape(text)} <span>{seconds:.2f} s</span></h3>'


def _picture(picture: Image.Image) -> str:
    return f'<img class="drawn" src="{data_url(picture)}" alt="">'


def _note(text: str, names: Iterable[str]) -> str:
    """A line that lists names; nothing where there are none."""
    listed = escape(", ".join(names))
    return f'<p class="note">{text} {listed}</p>' if listed else ""
