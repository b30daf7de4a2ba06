"""Cells and boxes of a grid, against PyTorch and against sums over fine samples."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from vse_jax.models.regions import box_features, pyramid, pyramid_boxes


def grid(h, w, b=2, c=3):
    return np.random.default_rng(h * w).normal(size=(b, h, w, c)).astype(np.float32)


SIZES = [(7, 7, 4), (7, 7, 1), (7, 7, 7), (8, 12, 4), (5, 3, 2), (2, 3, 4), (1, 1, 3)]


@pytest.mark.torch
@pytest.mark.parametrize(("h", "w", "cells"), SIZES)
def test_cells_are_pooled_as_pytorch_does(h, w, cells):
    torch = parity.torch()
    given = grid(h, w)
    found = pyramid(jnp.asarray(given), cells)
    pooled = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(given.transpose(0, 3, 1, 2)), cells
    )
    expected = pooled.numpy().reshape(2, 3, -1).transpose(0, 2, 1)
    assert found.shape == (2, cells**2 + 1, 3)
    np.testing.assert_allclose(found[:, :-1], expected, atol=1e-5)
    np.testing.assert_allclose(found[:, -1], given.mean((1, 2)), atol=1e-5)


def test_half_precision_is_pooled_in_single():
    given = jnp.asarray(grid(7, 7), jnp.bfloat16)
    found = pyramid(given, 4)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, pyramid(given.astype(jnp.float32), 4))


@pytest.mark.parametrize(("h", "w", "cells"), SIZES)
def test_boxes_of_cells_are_what_they_pool(h, w, cells):
    """A grid of row numbers and column numbers says where each cell's centre is."""
    rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    places = np.stack([(rows + 0.5) / h, (columns + 0.5) / w], axis=-1).astype(np.float32)
    found = np.asarray(pyramid(jnp.asarray(places)[None], cells)[0])
    boxes = pyramid_boxes(h, w, cells)
    np.testing.assert_allclose(found, (boxes[:, :2] + boxes[:, 2:]) / 2, atol=1e-6)
    assert boxes[-1].tolist() == [0, 0, 1, 1]
    assert np.all(boxes[:, :2] < boxes[:, 2:])


def sampled(grid, box, samples=400):
    """The mean of `samples` x `samples` bilinear reads of [h, w, c] inside the box."""
    h, w, _ = grid.shape

    def weights(low, high, size):
        share = (np.arange(samples) + 0.5) / samples
        place = np.clip((low + (high - low) * share) * size - 0.5, 0, size - 1)
        lower = np.minimum(np.floor(place).astype(int), max(size - 2, 0))
        found = np.zeros(size)
        for number, fraction in zip(lower, place - lower, strict=True):
            found[number] += (1 - fraction) / samples
            if size > 1:
                found[number + 1] += fraction / samples
        return found

    y, x = weights(box[0], box[2], h), weights(box[1], box[3], w)
    return np.einsum("h,w,hwc->c", y, x, grid.astype(np.float64))


BOXES = [
    (0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.15, 0.9), (0.0, 0.95, 0.02, 1.0), (0.33, 0.41, 0.77, 0.78),
    (0.5, 0.5, 0.501, 0.501),
]  # fmt: skip


@pytest.mark.parametrize(("h", "w"), [(7, 7), (4, 9), (1, 3), (1, 1), (2, 2)])
def test_a_box_is_the_mean_of_what_lies_under_it(h, w):
    given = grid(h, w)
    boxes = np.broadcast_to(np.array(BOXES, np.float32), (2, len(BOXES), 4))
    found = box_features(*map(jnp.asarray, (given, boxes, np.ones((2, len(BOXES)), bool))))
    for picture in range(2):
        for number, box in enumerate(BOXES):
            expected = sampled(given[picture], box)
            np.testing.assert_allclose(found[picture, number], expected, atol=1e-4)
    np.testing.assert_allclose(found[:, 0], given.mean((1, 2)), atol=1e-5)


def test_padding_and_boxes_without_area_are_zero_with_finite_gradients():
    given = jnp.asarray(grid(7, 7, b=1))
    boxes = jnp.asarray([[[0.1, 0.1, 0.4, 0.6], [0, 0, 0, 0], [0.5, 0.2, 0.5, 0.8]]])
    mask = jnp.asarray([[False, True, True]])
    np.testing.assert_array_equal(box_features(given, boxes, mask), 0.0)

    def total(given, boxes):
        return jnp.sum(box_features(given, boxes, ~mask | mask) ** 2)

    gradients = jax.grad(total, (0, 1))(given, boxes)
    assert all(np.isfinite(leaf).all() for leaf in gradients)
    assert np.any(gradients[0] != 0)
