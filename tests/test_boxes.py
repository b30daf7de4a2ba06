import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vse_jax.boxes import intersection_over_union


def corners(count):
    """Boxes with sides from 0 up, on a coarse grid so that they often touch or are the same."""
    sides = arrays.arrays(np.int64, (count, 2, 2), elements=st.integers(0, 4))
    return sides.map(lambda pair: np.sort(pair, axis=1).reshape(-1, 4) / 4)


def by_counting(a, b):
    """The cells of a grid of quarters that both cover, over those that either covers."""

    def covered(box):
        y0, x0, y1, x1 = (round(4 * side) for side in box)
        return {(y, x) for y in range(y0, y1) for x in range(x0, x1)}

    both, either = covered(a) & covered(b), covered(a) | covered(b)
    return len(both) / len(either) if either else 0.0


@given(st.integers(0, 4).flatmap(corners), st.integers(0, 4).flatmap(corners))
def test_it_is_that_of_the_cells_that_are_covered(a, b):
    found = intersection_over_union(a, b)
    assert found.shape == (len(a), len(b))
    expected = np.array([[by_counting(x, y) for y in b] for x in a]).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0, 0, 10, 10], 1.0),
        ([0, 10, 10, 20], 0.0),  # touches
        ([10, 10, 20, 20], 0.0),  # touches in a corner
        ([0, 5, 10, 15], 1 / 3),
        ([2, 2, 4, 4], 0.04),
    ],
)
def test_worked_examples_in_pixels(other, expected):
    box = np.array([[0, 0, 10, 10]], np.float32)
    found = intersection_over_union(box, np.array([other], np.float32))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[expected]], rtol=1e-6)


def test_of_a_box_with_itself_it_is_1_and_without_area_0():
    boxes = np.array([[0.1, 0.2, 0.6, 0.9], [0.3, 0.3, 0.3, 0.8], [0.8, 0.8, 0.2, 0.2]])
    np.testing.assert_array_equal(np.diag(intersection_over_union(boxes, boxes)), [1, 0, 0])
