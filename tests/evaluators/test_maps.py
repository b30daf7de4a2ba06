"""Whether maps agree and point at things, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import paired_cosine_distances

from vse_jax.evaluators import maps
from vse_jax.evaluators.blocks import EvaluationError
from vse_jax.models.regions import grid_boxes

CELLS = grid_boxes(2, 3)


def test_agreement_is_the_mean_cosine():
    a, b = np.random.default_rng(0).uniform(0, 1, (2, 20, 6)).astype(np.float32)
    expected = 1 - paired_cosine_distances(a, b)
    assert maps.agreement(a, b) == pytest.approx(expected.mean(), rel=1e-6)
    a[:5] = 0
    assert maps.agreement(a, b) == pytest.approx(expected[5:].sum() / 20, rel=1e-6)


def test_a_map_points_at_the_cell_whose_middle_is_in_the_box():
    shown = np.zeros((4, 6), np.float32)
    shown[0, 4] = 1  # Middle (0.75, 0.5).
    shown[1, 2] = 1  # Middle (0.25, 0.83).
    shown[3, [0, 5]] = 2  # The first of equals, (0.25, 0.17).
    corner = np.array([[0.0, 0.0, 0.3, 0.3]], np.float32)
    middle = np.array([[0.7, 0.4, 0.8, 0.6]], np.float32)
    both = np.concatenate([corner, middle])
    # Right, wrong, a map of zeros, right.
    right, chance = maps.pointing(shown, CELLS, [both, both, both, corner])
    assert right == 50
    assert chance == pytest.approx(100 * np.mean([2, 2, 2, 1]) / 6)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda: maps.agreement(np.ones((2, 6)), np.ones((3, 6))), "there must be as many"),
        (lambda: maps.agreement(np.ones((2, 6)), np.full((2, 6), np.nan)), "picture 0"),
        (lambda: maps.pointing(np.ones((1, 6)), CELLS, []), "1 maps and the boxes of 0"),
        (lambda: maps.pointing(np.ones((1, 6)), CELLS, [np.zeros((0, 4))]), "has no box"),
        (lambda: maps.peaks(np.array([[0.0, np.inf]])), "not finite"),
    ],
)
def test_what_is_no_measure_is_an_error(function, told):
    with pytest.raises(EvaluationError, match=told):
        function()
