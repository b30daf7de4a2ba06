"""Boxes (y0, x0, y1, x1)."""

import numpy as np
from jaxtyping import Float

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


def _area(low: Float[np.ndarray, "*n 2"], high: Float[np.ndarray, "*n 2"]) -> np.ndarray:
    return np.prod(np.maximum(high - low, 0.0), axis=-1)
