"""From a grid map to the vectors of regions: a pyramid of cells, or any boxes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def pyramid(grid: Float[Array, "b h w c"], cells: int) -> Float[Array, "b n c"]:
    """The grid pooled to cells x cells, row by row, and at last the whole: n = cells^2 + 1.

    Each cell is the mean over its window, rows floor(i h / cells) to ceil((i + 1) h / cells) - 1
    and columns likewise, so that windows overlap where h is no multiple; the whole is the mean over
    the grid. Computed in float32. Windows as of PyTorch's `adaptive_avg_pool2d`.
    """
    grid = grid.astype(jnp.float32)
    down, across = (_means(size, cells) for size in grid.shape[1:3])
    pooled = jnp.einsum("ih,jw,bhwc->bijc", down, across, grid)
    whole = jnp.mean(grid, axis=(1, 2))[:, None]
    return jnp.concatenate([pooled.reshape(grid.shape[0], cells**2, grid.shape[-1]), whole], axis=1)


def pyramid_boxes(height: int, width: int, cells: int) -> Float[np.ndarray, "n 4"]:
    """The boxes (y0, x0, y1, x1) in [0, 1] of what `pyramid` pools of a grid of that size."""
    down, across = (
        [(start / size, end / size) for start, end in _windows(size, cells)]
        for size in (height, width)
    )
    boxes = [(y0, x0, y1, x1) for y0, y1 in down for x0, x1 in across]
    return np.array([*boxes, (0.0, 0.0, 1.0, 1.0)], np.float32)


def grid_boxes(height: int, width: int) -> Float[np.ndarray, "n 4"]:
    """The boxes (y0, x0, y1, x1) in [0, 1] of the cells of a grid of that size, row by row."""
    y, x = (step.ravel() for step in np.mgrid[:height, :width])
    corners = [y / height, x / width, (y + 1) / height, (x + 1) / width]
    return np.stack(corners, axis=1).astype(np.float32)


def box_features(
    grid: Float[Array, "b h w c"], boxes: Float[Array, "b r 4"], mask: Bool[Array, "b r"]
) -> Float[Array, "b r c"]:
    """The mean of the grid under each box; 0 where `mask` is False or a box has no area.

    The grid's vectors stand at the centres of its cells, are interpolated bilinearly between them
    and constant beyond the outermost; the mean over the box is exact, the limit of RoIAlign (He et
    al., Mask R-CNN, ICCV 2017, section 3, one bin, `aligned`) with ever more samples. So the box of
    the whole picture has the mean of all cells. Computed in float32.

    Args:
      grid: of pictures.
      boxes: (y0, x0, y1, x1) as shares of the picture's height and width.
      mask: which boxes are real.
    """
    down = _under(boxes[..., 0], boxes[..., 2], grid.shape[1])
    across = _under(boxes[..., 1], boxes[..., 3], grid.shape[2])
    found = jnp.einsum("brh,brw,bhwc->brc", down, across, grid.astype(jnp.float32))
    return jnp.where(mask[..., None], found, 0.0)


def _windows(size: int, cells: int) -> list[tuple[int, int]]:
    """Of each cell the first of its rows, and the one after its last."""
    return [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]


def _means(size: int, cells: int) -> Float[Array, "cells size"]:
    """The weights with which rows are averaged to cells."""
    weights = np.zeros((cells, size), np.float32)
    for row, (start, end) in zip(weights, _windows(size, cells), strict=True):
        row[start:end] = 1.0 / (end - start)
    return jnp.asarray(weights)


def _under(
    low: Float[Array, "b r"], high: Float[Array, "b r"], size: int
) -> Float[Array, "b r size"]:
    """The weight of each of `size` rows in the mean of the interpolated ones from low to high.

    Row i stands at (i + 1/2) / size. Its weight at a place is a triangle one row wide to either
    side, cut off at the outermost rows, which hold from there to the edge.
    """
    low, high = (jnp.clip(side, 0.0, 1.0) * size - 0.5 for side in (low, high))
    inside = (jnp.clip(side, 0.0, size - 1.0)[..., None] for side in (low, high))
    row = jnp.arange(size, dtype=jnp.float32)[None, None]
    first, last = (_triangle(side - row) for side in inside)
    before = jnp.maximum(-low, 0.0) - jnp.maximum(-high, 0.0)
    behind = jnp.maximum(high - (size - 1.0), 0.0) - jnp.maximum(low - (size - 1.0), 0.0)
    weights = last - first
    weights = weights.at[..., 0].add(before).at[..., -1].add(behind)
    length = (high - low)[..., None]
    return jnp.where(length > 0, weights / jnp.where(length > 0, length, 1.0), 0.0)


def _triangle(x: Float[Array, "b r n"]) -> Float[Array, "b r n"]:
    """The integral up to x of the triangle max(0, 1 - |t|)."""
    x = jnp.clip(x, -1.0, 1.0)
    return jnp.where(x < 0, (1.0 + x) ** 2 / 2.0, 1.0 - (1.0 - x) ** 2 / 2.0)
