"""Where a model looks: whether two of its maps agree, and whether they point at the thing.

The pointing game is that of Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV
2016, without its tolerance of some pixels.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from vse_jax.evaluators.blocks import EvaluationError


def agreement(a: Float[np.ndarray, "n c"], b: Float[np.ndarray, "m d"]) -> float:
    """The mean cosine of the maps (0 or more) of each picture; 0 of a map that is zero.

    Raises:
      EvaluationError: no maps, not as many of both, or some that are not finite.
    """
    if a.shape != b.shape or not len(a):
        raise EvaluationError(
            f"maps {list(a.shape)} and {list(b.shape)}; there must be as many, one at least"
        )
    _check_finite(a)
    _check_finite(b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = (a * b).sum(axis=1)
    return float(np.mean(np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)))


def peaks(maps: Float[np.ndarray, "n c"]) -> Int[np.ndarray, " n"]:
    """The number of each map's highest cell, the first of equals; -1 of a map without any above 0.

    Raises:
      EvaluationError: maps that are not finite.
    """
    _check_finite(maps)
    return np.where(maps.max(axis=1) > 0, maps.argmax(axis=1), -1)


def cells_inside(
    cells: Float[np.ndarray, "c 4"], boxes: Float[np.ndarray, "r 4"]
) -> Bool[np.ndarray, " c"]:
    """Which cells have their middle in one of the boxes; both (y0, x0, y1, x1)."""
    middle = (cells[:, None, :2] + cells[:, None, 2:]) / 2
    inside = (middle >= boxes[None, :, :2]) & (middle <= boxes[None, :, 2:])
    return inside.all(axis=2).any(axis=1)


def pointing(
    maps: Float[np.ndarray, "n c"],
    cells: Float[np.ndarray, "c 4"],
    truth: Sequence[Float[np.ndarray, "_ 4"]],
) -> tuple[float, float]:
    """Percent of maps whose highest cell has its middle in a true box; and of cells that have.

    The second is what a map would reach whose highest cell is drawn at random.

    Args:
      maps: of each picture a value for each cell.
      cells: the cells' boxes.
      truth: of each picture the boxes of the thing, one at least.

    Raises:
      EvaluationError: no maps, not as many truths, a picture without a box, or maps that are not
        finite.
    """
    if not len(maps) or len(maps) != len(truth):
        raise EvaluationError(
            f"{len(maps)} maps and the boxes of {len(truth)} pictures; there must be as many, one "
            "at least"
        )
    if not all(map(len, truth)):
        bare = next(number for number, boxes in enumerate(truth) if not len(boxes))
        raise EvaluationError(f"picture {bare} has no box; such pictures are not judged")
    inside = np.stack([cells_inside(cells, boxes) for boxes in truth])
    highest = peaks(maps)
    right = (highest >= 0) & inside[np.arange(len(maps)), highest]
    return 100 * float(np.mean(right)), 100 * float(np.mean(inside))


def _check_finite(maps: Float[np.ndarray, "n c"]) -> None:
    if not np.isfinite(maps).all():
        bad = int(np.argmin(np.isfinite(maps).all(axis=1)))
        raise EvaluationError(f"the map of picture {bad} is not finite")
