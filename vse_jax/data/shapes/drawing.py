"""Pictures of scenes: outlines, backgrounds, clutter."""

import functools
import io
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vse_jax.data.shapes.attributes import PICTURE

_PALETTE = {
    "red": (215, 35, 35),
    "orange": (245, 135, 20),
    "yellow": (240, 220, 40),
    "green": (40, 150, 50),
    "cyan": (50, 205, 205),
    "blue": (40, 75, 215),
    "purple": (125, 45, 165),
    "pink": (250, 145, 190),
}
_TONES = {
    "white": (236, 236, 232),
    "grey": (142, 142, 144),
    "black": (34, 34, 38),
    "brown": (118, 92, 70),
}
_SHARPER = 4  # Outlines are drawn this many times larger and averaged.


@functools.lru_cache(maxsize=16)  # A scene's outlines are measured, then painted.
def mask(shape: str, diameter: float, turn: float) -> np.ndarray:
    """Coverage float32 [h, w] in [0, 1] of a shape, cropped to the pixels at least half covered.

    Args:
      shape: a name of `SHAPES`.
      diameter: pixels of the circle that the shape fills.
      turn: degrees, counter-clockwise.
    """
    side = math.ceil(diameter) + 4
    image = Image.new("L", (side * _SHARPER, side * _SHARPER))
    _outline(ImageDraw.Draw(image), shape, side * _SHARPER / 2, diameter * _SHARPER / 2, turn)
    cover = np.asarray(image.reduce(_SHARPER), np.float32) / 255
    cover = np.where(cover >= 0.5, cover, 0)
    rows, columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    cover = cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    cover.flags.writeable = False
    return cover


def render(scene: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """The picture uint8 [96, 96, 3] of a scene, the first of its objects farthest back.

    `rng` draws what no caption speaks of: shades, noise, the place of clutter.
    """
    canvas = _background(scene["background"], rng)
    _clutter(canvas, scene["clutter"], rng)
    if "distractors" in scene:
        canvas = distract(canvas, scene["distractors"], rng)
    noise = 5 * rng.standard_normal(canvas.shape, np.float32)
    for thing in scene["objects"]:
        _paint(canvas, thing, rng)
    return np.clip(canvas + noise, 0, 255).astype(np.uint8)


def jpeg(picture: np.ndarray) -> bytes:
    """A picture uint8 [h, w, 3] as JPEG, its colours at full resolution."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()


def _outline(
    draw: ImageDraw.ImageDraw, shape: str, centre: float, radius: float, turn: float
) -> None:
    def at(size: float, angle: int) -> tuple[float, float]:
        """A point by its distance from the centre in radii and its angle, 0 upwards."""
        direction = math.radians(angle - turn)
        return (
            centre + size * radius * math.sin(direction),
            centre - size * radius * math.cos(direction),
        )

    def disc(size: float, value: int, middle: tuple[float, float]) -> None:
        x, y, r = *middle, size * radius
        draw.ellipse((x - r, y - r, x + r, y + r), fill=value)

    here = (centre, centre)
    if shape == "circle":
        disc(1.0, 255, here)
    elif shape == "ring":
        disc(1.0, 255, here)
        disc(0.5, 0, here)
    elif shape == "moon":
        disc(1.0, 255, here)
        disc(0.85, 0, at(0.6, 60))
    elif shape == "heart":
        disc(0.53, 255, at(0.6, -52))
        disc(0.53, 255, at(0.6, 52))
        draw.polygon([at(1.0, 180), at(0.96, -80), at(0.15, 0), at(0.96, 80)], fill=255)
    elif shape == "cross":
        arms = [(1.0, -18), (1.0, 18), (0.44, 45)]
        draw.polygon([at(s, a + quarter) for quarter in (0, 90, 180, 270) for s, a in arms], 255)
    elif shape == "star":
        points = [at(1.05 if k % 2 == 0 else 0.45, 36 * k) for k in range(10)]
        draw.polygon(points, fill=255)
    else:
        corners = {"square": (45, 135, 225, 315), "triangle": (0, 120, 240)}[shape]
        draw.polygon([at(1.05, angle) for angle in corners], fill=255)


def _background(background: dict[str, str], rng: np.random.Generator) -> np.ndarray:
    """Float32 [96, 96, 3]: a tone with a pattern of a lighter or darker shade of it."""
    base = np.array(_TONES[background["tone"]], np.float32) + rng.uniform(-10, 10)
    angle = rng.uniform(0, math.pi)
    y, x = np.mgrid[:PICTURE, :PICTURE].astype(np.float32)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    period = rng.uniform(12, 20)
    light = -1.0 if background["tone"] == "white" else 1.0
    if background["pattern"] == "shaded":
        shade = (along - along.min()) / np.ptp(along) * 60 - 10
    elif background["pattern"] == "lined":
        shade = ((along % period) < 2.5) * 45.0
    elif background["pattern"] == "checked":
        shade = ((along % period < period / 2) != (across % period < period / 2)) * 28.0
    else:
        shade = np.zeros_like(along)
    return (base + light * shade[..., None]).astype(np.float32)


def _clutter(canvas: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Grey specks and scratches, too small to be taken for objects."""
    for _ in range(count):
        height, width = [(2, 2), (3, 3), (1, 7), (7, 1), (2, 4)][rng.integers(5)]
        top = rng.integers(PICTURE - height)
        left = rng.integers(PICTURE - width)
        canvas[top : top + height, left : left + width] = rng.uniform(60, 200)


def distract(canvas: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The canvas float32 [96, 96, 3] with dots and strokes in the colours of objects.

    A dot is 4 to 7 pixels wide, a stroke 6 to 12 long and 2 to 3 wide, turned at random: the
    smallest object, of 16 pixels, is larger. As all clutter they lie behind the objects.
    """
    layer = Image.new("RGBA", (PICTURE * _SHARPER, PICTURE * _SHARPER))
    draw = ImageDraw.Draw(layer)
    for _ in range(count):
        colour = np.array(list(_PALETTE.values())[rng.integers(len(_PALETTE))])
        fill = (*np.clip(colour + rng.uniform(-12, 12, 3), 0, 255).astype(int).tolist(), 255)
        y, x = rng.uniform(0, PICTURE * _SHARPER, 2)
        if rng.random() < 0.5:
            r = rng.uniform(4, 7) * _SHARPER / 2
            draw.ellipse((x - r, y - r, x + r, y + r), fill)
        else:
            length, turn = rng.uniform(6, 12) * _SHARPER, rng.uniform(0, math.pi)
            end = (x + length * math.cos(turn), y + length * math.sin(turn))
            draw.line([(x, y), end], fill, width=round(rng.uniform(2, 3) * _SHARPER))
    # The mean over nothing, which is black, and paint is the paint times its coverage.
    paint = np.asarray(layer, np.float32).reshape(PICTURE, _SHARPER, PICTURE, _SHARPER, 4)
    paint = paint.mean((1, 3))
    return canvas * (1 - paint[..., 3:] / 255) + paint[..., :3]


def _paint(canvas: np.ndarray, thing: dict[str, Any], rng: np.random.Generator) -> None:
    cover = mask(thing["shape"], thing["diameter"], thing["turn"])
    height, width = cover.shape
    top, left = thing["corner"]
    area = canvas[top : top + height, left : left + width]
    colour = np.array(_PALETTE[thing["colour"]], np.float32) + rng.uniform(-12, 12, 3)
    paint = np.broadcast_to(colour, area.shape)
    if thing["fill"] == "striped":
        y, x = np.mgrid[:height, :width]
        slope = math.radians(rng.uniform(0, 180))
        period = 5.0 if thing["size"] == "small" else 7.0
        dark = ((x * math.cos(slope) + y * math.sin(slope)) % period) < period * 0.42
        paint = np.where(dark[..., None], 0.25 * colour, colour)
    area += cover[..., None] * (paint.astype(np.float32) - area)
