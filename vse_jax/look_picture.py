"""Where a model looks as a picture: a map as heat over the photo, and two of them side by side."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from vse_jax.alignment_picture import LEAST_WIDTH, LINE, RIM, font, resized
from vse_jax.boxes import pixels
from vse_jax.look import Look

# Of the hottest pixel the share that is heat; the photo shows through.
HEAT = 0.65
COLOURS = "turbo"
# White between panels, in pixels.
GAP = 12


class Panel(NamedTuple):
    """One of the pictures side by side.

    Attributes:
      heat: the map.
      words: below it.
    """

    heat: Float[np.ndarray, "h w"]
    words: str


def overlay(
    picture: Image.Image,
    heat: Float[np.ndarray, "h w"],
    boxes: Sequence[Sequence[float]] | np.ndarray = (),
) -> Image.Image:
    """The picture, RGB and in its own size, with a map laid over it.

    The map, of cells over the whole picture, is interpolated bilinearly and scaled to its highest
    value; where it is 0 the photo is seen as it is, and so it is all of a map of zeros.

    Args:
      picture: of any mode.
      heat: values of 0 or more.
      boxes: to draw, (y0, x0, y1, x1) as shares of height and width.

    Raises:
      ValueError: the map has no cells, or values that are negative or not finite.
    """
    if not heat.size or not np.isfinite(heat).all() or heat.min() < 0:
        raise ValueError(f"a map {list(heat.shape)} must have cells, all finite and 0 or more")
    drawn = picture.convert("RGB")
    highest = float(heat.max())
    if highest > 0:
        scaled = Image.fromarray((heat.astype(np.float64) / highest).astype(np.float32))
        share = np.asarray(scaled.resize(drawn.size, Image.Resampling.BILINEAR)).clip(0, 1)
        colours = 255 * matplotlib.colormaps[COLOURS](share)[..., :3]
        weight = HEAT * share[..., None]
        mixed = (1 - weight) * np.asarray(drawn) + weight * colours
        drawn = Image.fromarray(mixed.round().astype(np.uint8))
    line = max(max(drawn.size) // LINE, 2)
    canvas = ImageDraw.Draw(drawn)
    for box in boxes:
        corners = pixels([float(side) for side in box], drawn.size)
        canvas.rectangle(corners, outline="black", width=line + RIM)
        canvas.rectangle(corners, outline="white", width=line)
    return drawn


def side_by_side(picture: Image.Image, panels: Sequence[Panel]) -> Image.Image:
    """The picture once for each map with the map laid over it, and below each its words.

    Small pictures are enlarged and large ones made smaller, as of `alignment_picture.overlay`.
    Without a map it is the picture alone.
    """
    photo = resized(picture.convert("RGB"))
    if not panels:
        return photo
    width = max(photo.width, LEAST_WIDTH)
    strips = [_written(panel.words, width) for panel in panels]
    height = photo.height + max(strip.height for strip in strips)
    page = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height), "white")
    for number, (panel, strip) in enumerate(zip(panels, strips, strict=True)):
        left = number * (width + GAP)
        page.paste(overlay(photo, panel.heat), (left + (width - photo.width) // 2, 0))
        page.paste(strip, (left, photo.height))
    return page


def panels(found: Look) -> list[Panel]:
    """The maps of a picture that there are, and below each what it is of."""
    shown = []
    if found.class_map is not None and found.told is not None:
        name, probability = found.told
        shown.append(Panel(found.class_map, f"{name}, {100 * probability:.1f}%"))
    if found.caption_map is not None:
        shown.append(Panel(found.caption_map, f"“{found.caption}”"))
    return shown


def _written(words: str, width: int) -> Image.Image:
    """Words in black on white, in as many lines as they need."""
    size = max(width // 28, 18)
    type_, margin = font(size), size // 2
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if type_.getlength(longer) <= width - 2 * margin or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    strip = Image.new("RGB", (width, 2 * margin + len(lines) * size * 4 // 3), "white")
    canvas = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        canvas.text((margin, margin + number * size * 4 // 3), line, fill="black", font=type_)
    return strip
