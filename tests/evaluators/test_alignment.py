"""Overlaps of boxes and the share of words found, against counted pixels."""

import numpy as np
import pytest

from vse_jax.boxes import intersection_over_union
from vse_jax.evaluators import alignment
from vse_jax.evaluators.retrieval import EvaluationError

SIDE = 16  # A power of two: corners, areas and overlaps are exact.


def drawn_boxes(seed, count):
    """Boxes whose corners lie on a grid of SIDE pixels, in [0, 1]."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, SIDE + 1, (count, 2, 2)), axis=1)
    return (corners.reshape(count, 4) / SIDE).astype(np.float32)


def pixels(box):
    """The box as a mask of whole pixels."""
    y0, x0, y1, x1 = np.round(box * SIDE).astype(int)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def counted(a, b):
    together = (pixels(a) | pixels(b)).sum()
    return (pixels(a) & pixels(b)).sum() / together if together else 0.0


def test_intersection_over_union_is_that_of_counted_pixels():
    a, b = drawn_boxes(0, 60), drawn_boxes(1, 40)
    found = intersection_over_union(a, b)
    expected = [[counted(x, y) for y in b] for x in a]
    assert found.shape == (60, 40)
    np.testing.assert_array_equal(found, expected)
    assert (found == 0).any()
    assert (found > 0.5).any()


def test_of_a_box_with_itself_it_is_1_and_without_area_0():
    boxes = np.array([[0.1, 0.2, 0.6, 0.9], [0.3, 0.3, 0.3, 0.8], [0.8, 0.8, 0.2, 0.2]])
    np.testing.assert_array_equal(np.diag(intersection_over_union(boxes, boxes)), [1, 0, 0])
    assert intersection_over_union(boxes, np.empty((0, 4))).shape == (3, 0)


def test_boxes_that_touch_share_nothing():
    a = np.array([[0.0, 0.0, 0.5, 0.5]])
    assert intersection_over_union(a, np.array([[0.5, 0.0, 1.0, 0.5]])).item() == 0


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.75])
def test_accuracy_and_overlaps_are_those_of_a_loop(threshold):
    rng = np.random.default_rng(2)
    boxes = drawn_boxes(3, 200)
    truth = [
        drawn_boxes(int(seed), int(rng.integers(1, 5))) for seed in rng.integers(1e6, size=200)
    ]
    for word in range(0, 200, 4):  # Some are exactly right.
        truth[word][-1] = boxes[word] = [0.25, 0.25, 0.75, 1.0]
    best, nearest = [], []
    for box, meant in zip(boxes, truth, strict=True):
        each = [counted(box, other) for other in meant]
        best.append(max(each))
        nearest.append(each.index(max(each)))
    found = alignment.overlaps(boxes, truth, threshold)
    np.testing.assert_array_equal(found.overlap, best)
    np.testing.assert_array_equal(found.nearest, nearest)
    right = np.array(best) >= threshold
    np.testing.assert_array_equal(found.right, right)
    accuracy = alignment.accuracy(boxes, truth, threshold)
    assert accuracy == pytest.approx(100 * right.sum() / 200)
    assert 25 <= accuracy < 100


def test_chance_is_the_mean_over_words_of_the_share_of_their_regions():
    rng = np.random.default_rng(4)
    regions, truth = ([drawn_boxes(int(seed), int(rng.integers(1, 6))) for seed in seeds]
                      for seeds in rng.integers(1e6, size=(2, 50)))  # fmt: skip
    shares = [
        np.mean([max(counted(box, other) for other in meant) >= 0.2 for box in own])
        for own, meant in zip(regions, truth, strict=True)
    ]
    found = alignment.chance(regions, truth, 0.2)
    assert found == pytest.approx(100 * np.mean(shares))
    assert 20 < found < 80
    # Not that of all regions together.
    assert found != pytest.approx(100 * np.average(shares, weights=list(map(len, regions))))


def test_exactly_the_threshold_is_right():
    box = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)
    assert alignment.accuracy(box, [np.array([[0, 0, 1, 0.5]], np.float32)]) == 100.0
    assert alignment.accuracy(box, [np.array([[0, 0, 1, 0.49]], np.float32)]) == 0.0


BOX = np.array([[0.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    ("boxes", "truth", "threshold", "message"),
    [
        (BOX, [], 0.5, "1 boxes of words and the truth of 0"),
        (BOX[:0], [], 0.5, "one at least"),
        (BOX, [BOX[:0]], 0.5, "word 0 may mean no box"),
        (BOX, [BOX * np.nan], 0.5, "boxes of word 0 are not finite"),
        (BOX + np.inf, [BOX], 0.5, "boxes of word 0 are not finite"),
        (BOX, [BOX], 0.0, "threshold is 0.0"),
        (BOX, [BOX], 50.0, "threshold is 50.0"),
    ],
)
def test_what_has_no_honest_number_is_refused(boxes, truth, threshold, message):
    with pytest.raises(EvaluationError, match=message):
        alignment.accuracy(boxes, truth, threshold)


def test_words_without_regions_have_no_chance():
    for regions, truth in (([BOX[:0], BOX], [BOX] * 2), ([BOX], [BOX] * 2), ([], [])):
        with pytest.raises(EvaluationError, match="must be as many of both"):
            alignment.chance(regions, truth)
