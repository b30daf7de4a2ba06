"""Boxes (y0, x0, y1, x1)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

# The box of a whole picture, as shares of its height and width.
WHOLE = np.asarray([[0.0, 0.0, 1.0, 1.0]], np.float32)


def intersection_over_union(
    a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]
) -> Float[np.ndarray, "n m"]:
    """Area that two boxes share over the area that they cover together, float64 in [0, 1].

    Of each box of `a` with each of `b`. A box without area, or whose corners are the wrong way
    round, overlaps nothing, not even itself.

    Args:
      a: n boxes (y0, x0, y1, x1), in any unit.
      b: m boxes, in the same unit.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = _area(low, high)
    together = _area(a[:, :2], a[:, 2:])[:, None] + _area(b[:, :2], b[:, 2:])[None] - shared
    return np.divide(shared, together, out=np.zeros_like(shared), where=together > 0)


def pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The first and the last pixel that a box covers, (x0, y0, x1, y1), in a picture of that size.

    Args:
      box: (y0, x0, y1, x1) as shares of height and width.
      size: width and height.
    """
    width, height = size
    y0, x0, y1, x1 = (
        round(side * length)
        for side, length in zip(box, (height, width, height, width), strict=True)
    )
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)


def cropped(picture: Image.Image, box: Sequence[float]) -> Image.Image:
    """The part of a picture under a box of shares of its height and width; a pixel at least."""
    x0, y0, x1, y1 = pixels(box, picture.size)
    return picture.crop((x0, y0, x1 + 1, y1 + 1))


def _area(low: Float[np.ndarray, "*n 2"], high: Float[np.ndarray, "*n 2"]) -> np.ndarray:
    return np.prod(np.maximum(high - low, 0.0), axis=-1)
