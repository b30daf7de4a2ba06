"""Candidates of selective search, and what is left of them."""

import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from vse_jax.boxes import intersection_over_union
from vse_jax.data import proposals
from vse_jax.data.captions_files import boxes_of
from vse_jax.data.proposals import (
    WHOLE,
    non_maximum_suppression,
    selective_search,
    top_boxes,
)
from vse_jax.data.split import DataError

# Pixels of two bright rectangles (y0, x0, y1, x1) on a plain ground of 120 x 160.
RECTANGLES = [(15, 20, 60, 70), (60, 95, 110, 140)]
COLOURS = [(250, 230, 40), (40, 220, 250)]


def drawn(scale=1):
    picture = np.full((120 * scale, 160 * scale, 3), 70, np.uint8)
    for (y0, x0, y1, x1), colour in zip(np.array(RECTANGLES) * scale, COLOURS, strict=True):
        picture[y0:y1, x0:x1] = colour
    return picture


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def speckled(height, width):
    """Patches of eight pixels, of which the search makes many boxes."""
    patches = Image.fromarray(noise(height // 8, width // 8))
    return np.asarray(patches.resize((width, height), Image.Resampling.NEAREST))


@pytest.mark.parametrize("scale", [1, 5])
def test_the_search_finds_what_stands_out(scale):
    """Also in a picture that is made smaller first."""
    found = selective_search(drawn(scale))
    wanted = np.array(RECTANGLES, np.float32) / np.float32([120, 160, 120, 160])
    assert intersection_over_union(wanted, found).max(axis=1).min() >= 0.7


@pytest.mark.parametrize("picture", [drawn(), speckled(96, 128)])
def test_boxes_are_as_the_files_of_boxes_have_them(picture):
    found = selective_search(picture)
    assert (found.dtype, len(found) > 3) == (np.float32, True)
    np.testing.assert_array_equal(boxes_of(found.tolist(), "here"), found)
    assert len(np.unique(found, axis=0)) == len(found)
    sides = found[:, 2:] - found[:, :2]
    assert sides.min() >= proposals.SMALLEST - 1e-6
    assert np.all(np.diff(np.prod(sides, axis=1)) <= 1e-6)


def test_the_same_picture_has_the_same_boxes():
    """OpenCV alone gives them in another order each time."""
    first = selective_search(speckled(96, 128))
    for _ in range(2):
        np.testing.assert_array_equal(selective_search(speckled(96, 128)), first)


def test_small_boxes_and_those_beyond_a_number_are_left_out():
    every = selective_search(speckled(96, 128), smallest=0.0)
    sides = (every[:, 2:] - every[:, :2]).min(axis=1)
    assert 0 < np.sum(sides >= 0.4) < len(every)
    np.testing.assert_array_equal(
        selective_search(speckled(96, 128), smallest=0.4), every[sides >= 0.4]
    )
    few = selective_search(speckled(96, 128), smallest=0.0, most=5)
    np.testing.assert_array_equal(few, every[:5])


@pytest.mark.parametrize(("height", "width"), [(64, 80), (1, 1), (1, 600), (3, 2)])
def test_a_grey_picture_has_nothing_but_itself(height, width):
    found = selective_search(np.full((height, width, 3), 128, np.uint8))
    scores = np.ones(len(found), np.float32)
    np.testing.assert_array_equal(top_boxes(found, scores, 19), WHOLE)


@pytest.mark.parametrize("module", [None, types.SimpleNamespace(__version__="4.0")])
def test_without_selective_search_the_extra_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "cv2", module)
    with pytest.raises(DataError, match=r"pip install -e '\.\[regions\]'"):
        selective_search(drawn())


def test_a_search_that_fails_is_told_in_our_words():
    with pytest.raises(DataError, match="OpenCV's selective search failed: "):
        selective_search(np.zeros((0, 4, 3), np.uint8))


@st.composite
def scored(draw):
    """Boxes on a coarse grid with scores of few values: equal, touching, nested, none at all."""
    count = draw(st.integers(0, 8))
    sides = draw(arrays.arrays(np.int64, (count, 2, 2), elements=st.integers(0, 4)))
    low, high = sides.min(axis=1), sides.max(axis=1) + 1
    scores = draw(arrays.arrays(np.int64, (count,), elements=st.integers(0, 2)))
    return np.concatenate([low, high], 1).astype(np.float32) / 5, scores.astype(np.float32)


def overlap(a, b):
    down = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    across = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return down * across / (sum(areas) - down * across)


def by_a_loop(boxes, scores, threshold):
    """Takes the best that is left until none is; Python's sort keeps the order of equal ones."""
    kept = []
    for number in sorted(range(len(boxes)), key=lambda number: -scores[number]):
        if all(overlap(boxes[number], boxes[other]) <= threshold for other in kept):
            kept.append(number)
    return kept


@given(scored(), st.sampled_from([0.05, 0.31, 0.52, 0.97]))
def test_suppression_is_that_of_a_plain_loop(given_, threshold):
    boxes, scores = given_
    found = non_maximum_suppression(boxes, scores, threshold)
    assert found.tolist() == by_a_loop(boxes.tolist(), scores.tolist(), threshold)


@given(scored(), st.integers(0, 5))
def test_the_top_boxes_end_in_the_whole_picture_once(given_, count):
    boxes, scores = given_
    found = top_boxes(boxes, scores, count, 0.31)
    parts = np.any(boxes != WHOLE, axis=1)
    kept = by_a_loop(boxes[parts].tolist(), scores[parts].tolist(), 0.31)[:count]
    assert (found.dtype, found.shape) == (np.float32, (len(kept) + 1, 4))
    np.testing.assert_array_equal(found[:-1], boxes[parts][kept])
    assert np.all(found == WHOLE, axis=1).tolist() == [False] * len(kept) + [True]


def test_of_two_that_overlap_the_better_stays():
    boxes = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.6], [0.5, 0.5, 1, 1]], np.float32)
    scores = np.array([0.2, 0.9, 0.5], np.float32)
    assert non_maximum_suppression(boxes, scores, 0.3).tolist() == [1, 2]
    assert non_maximum_suppression(boxes, scores, 0.9).tolist() == [1, 2, 0]
    np.testing.assert_array_equal(top_boxes(boxes, scores, 1), [boxes[1], WHOLE[0]])
