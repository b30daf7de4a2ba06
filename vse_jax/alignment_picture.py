"""An alignment as a picture: coloured boxes, and below them the sentence in the same colours."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vse_jax.alignment import Alignment
from vse_jax.boxes import pixels

# (y0, x0, y1, x1) as shares of height and width.
Box: TypeAlias = Sequence[float] | np.ndarray
# Dark enough for white words on them, and apart from each other.
COLOURS = (
    "#d62728", "#1f6fb4", "#23832f", "#c2570c", "#8a4fbf", "#0b7f83", "#c2318b", "#7a5230",
)  # fmt: skip
# Pixels of the longer side of what is drawn on.
LEAST, MOST = 640, 1280
# Of the strip below narrow pictures.
LEAST_WIDTH = 360
# Thinner lines are lost on a photo.
LINE, RIM = 150, 2


def colours(boxes: Sequence[Box]) -> list[str]:
    """A colour, "#rrggbb", for each box: the same for the same box, in order of appearance."""
    order = {box: number for number, box in enumerate(dict.fromkeys(map(_key, boxes)))}
    return [COLOURS[order[_key(box)] % len(COLOURS)] for box in boxes]


def overlay(picture: Image.Image, alignment: Alignment) -> Image.Image:
    """The picture with the box of each segment, on a strip with the words in the boxes' colours.

    Small pictures are enlarged and large ones made smaller, to a longer side of LEAST to MOST
    pixels. Larger boxes lie below smaller ones; lines are drawn inside the boxes.
    """
    drawn = resized(picture.convert("RGB"))
    segments = alignment.segments
    boxes = [segment.box for segment in segments]
    hues = dict(zip(map(_key, boxes), colours(boxes), strict=True))
    line = max(max(drawn.size) // LINE, 3)
    canvas = ImageDraw.Draw(drawn)
    for box in sorted(hues, key=_area, reverse=True):
        corners = pixels(box, drawn.size)
        canvas.rectangle(corners, outline="white", width=line + RIM)
        canvas.rectangle(corners, outline=hues[box], width=line)
    strip = _strip([(s.text, hues[_key(s.box)]) for s in segments], max(drawn.width, LEAST_WIDTH))
    page = Image.new("RGB", (strip.width, drawn.height + strip.height), "white")
    page.paste(drawn, ((strip.width - drawn.width) // 2, 0))
    page.paste(strip, (0, drawn.height))
    return page


def resized(picture: Image.Image) -> Image.Image:
    """The picture at the size that it is drawn on, its longer side LEAST to MOST pixels."""
    longest = max(picture.size)
    scale = min(max(longest, LEAST), MOST) / longest
    width, height = (max(round(side * scale), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def font(size: int) -> ImageFont.FreeTypeFont:
    """What words are written in, so many pixels high."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", size)


def _strip(segments: Sequence[tuple[str, str]], width: int) -> Image.Image:
    """Words on patches of their segment's colour, in as many lines as they need."""
    size = max(width // 28, 18)
    type_ = font(size)
    margin, inside, gap, height = size // 2, size // 3, size // 3, size * 7 // 4
    x, y, placed = margin, margin, []

    def place(run: str, hue: str) -> int:
        """Puts words where the last ones ended; returns where these end."""
        end = x + round(type_.getlength(run)) + 2 * inside
        placed.append((x, y, end, run, hue))
        return end + gap

    for text, hue in segments:
        run = ""
        for word in text.split():
            longer = f"{run} {word}".strip()
            fits = x + type_.getlength(longer) + 2 * inside <= width - margin
            if fits or (not run and x == margin):
                run = longer
                continue
            if run:
                place(run, hue)
            x, y, run = margin, y + height + gap, word
        x = place(run, hue)
    strip = Image.new("RGB", (width, y + height + margin), "white")
    canvas = ImageDraw.Draw(strip)
    for x, y, end, run, hue in placed:
        canvas.rounded_rectangle((x, y, end - 1, y + height - 1), inside, fill=hue)
        middle = ((x + end) / 2, y + height / 2)
        canvas.text(middle, run, fill="white", font=type_, anchor="mm")
    return strip


def _key(box: Box) -> tuple[float, ...]:
    return tuple(map(float, box))


def _area(box: Sequence[float]) -> float:
    y0, x0, y1, x1 = box
    return (y1 - y0) * (x1 - x0)
