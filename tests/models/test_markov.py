"""Decoding of words to regions against all assignments there are."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vse_jax.models import markov


def brute(scores, beta):
    """The first of the best among all assignments, in the order of their regions, and its energy.

    In float64; beside it what the second best of another energy reaches.
    """
    length, count = scores.shape
    energies = {}
    for chosen in itertools.product(range(count), repeat=length):
        energy = sum(float(scores[word, region]) for word, region in enumerate(chosen))
        energy += beta * sum(a == b for a, b in itertools.pairwise(chosen))
        energies[chosen] = energy
    best = max(energies.values())
    return next(chosen for chosen, energy in energies.items() if energy == best), best


def drawn(seed, lengths, counts, *, levels=None):
    """Scores and masks of a padded batch, with NaN wherever there is nothing to read.

    With `levels` they are halves, which add up without rounding and tie often.
    """
    rng = np.random.default_rng(seed)
    words = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    regions = np.zeros((len(counts), max(counts) + 1), bool)
    for row, count in enumerate(counts):
        regions[row, rng.choice(max(counts) + 1, count, replace=False)] = True
    scores = rng.standard_normal((*words.shape, regions.shape[1])).astype(np.float32)
    if levels:
        scores = rng.integers(-levels, levels + 1, scores.shape).astype(np.float32) / 2
    scores[~(words[:, :, None] & regions[:, None])] = np.nan
    return scores, words, regions


sizes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    sizes,
    st.sampled_from([0.0, 0.5, 1.0, 2.5, 1024.0]),
    st.sampled_from([None, 1, 3]),
)
@example(0, [(5, 4), (1, 1), (4, 3)], 1.0, 1)
def test_it_is_the_first_of_the_best_of_all_assignments(seed, size, beta, levels):
    scores, words, regions = drawn(seed, *zip(*size, strict=True), levels=levels)
    found = markov.assign(scores, words, regions, beta=beta)
    for row, (length, _) in enumerate(size):
        there = np.flatnonzero(regions[row])
        chosen, energy = brute(scores[row, :length, there].T, beta)
        assert np.asarray(found.regions)[row, :length].tolist() == there[list(chosen)].tolist()
        assert (np.asarray(found.regions)[row, length:] == -1).all()
        np.testing.assert_allclose(found.energy[row], energy, rtol=1e-5, atol=1e-5)


def test_ties_go_to_the_lowest_regions_from_the_first_word_on():
    everything = np.ones((1, 3), bool)
    found = markov.assign(np.zeros((1, 3, 3), np.float32), everything, everything, beta=0.0)
    assert found.regions.tolist() == [[0, 0, 0]]
    # Staying in 1 and going from 0 to 1 reach the same: the first word decides.
    scores = np.array([[[1, 0], [0, 0], [0, 2]]], np.float32)
    both = np.ones((1, 2), bool)
    assert markov.assign(scores, everything, both, beta=1.0).regions.tolist() == [[0, 0, 1]]


def test_padded_is_alone():
    lengths, counts = (7, 1, 4), (6, 3, 1)
    scores, words, regions = drawn(2, lengths, counts)
    together = markov.assign(scores, words, regions, beta=0.4)
    for row, (length, there) in enumerate(zip(lengths, regions, strict=True)):
        alone = markov.assign(
            scores[row : row + 1, :length][:, :, there],
            np.ones((1, length), bool),
            np.ones((1, there.sum()), bool),
            beta=0.4,
        )
        numbers = np.flatnonzero(there)[np.asarray(alone.regions[0])]
        np.testing.assert_array_equal(together.regions[row, :length], numbers)
        assert together.energy[row] == alone.energy[0]


def test_without_beta_each_word_has_its_best_region():
    scores, words, regions = drawn(3, (30, 12), (9, 5))
    found = markov.assign(scores, words, regions, beta=0.0)
    best = np.argmax(np.where(regions[:, None], scores, -np.inf), axis=2)
    np.testing.assert_array_equal(found.regions, np.where(words, best, -1))
    assert len({*best[0].tolist()}) > 1


@pytest.mark.parametrize("beta", [1e3, 1e6, 1e30])
def test_a_large_beta_gives_the_one_region_best_for_all_words(beta):
    scores, words, regions = drawn(4, (30, 12), (9, 5))
    found = markov.assign(scores, words, regions, beta=beta)
    for row, length in enumerate((30, 12)):
        sums = np.where(regions[row], scores[row, :length].astype(np.float64).sum(0), -np.inf)
        assert {*found.regions[row, :length].tolist()} == {int(np.argmax(sums))}
        np.testing.assert_allclose(found.energy[row], sums.max() + beta * (length - 1), rtol=1e-5)


def test_no_word_and_no_region_are_nothing():
    words = np.array([[False, False], [True, True], [True, False]])
    regions = np.array([[True, True, True], [False, False, False], [False, True, True]])
    scores = np.ones((3, 2, 3), np.float32)
    found = markov.assign(scores, words, regions, beta=1.0)
    assert found.regions.tolist() == [[-1, -1], [-1, -1], [1, -1]]
    assert found.energy.tolist() == [0.0, 0.0, 1.0]
    assert found.regions.dtype == np.int32
    assert found.energy.dtype == np.float32


@pytest.mark.parametrize("beta", [-0.1, float("inf"), float("nan")])
def test_a_beta_that_makes_no_sense_is_refused(beta):
    everything = np.ones((1, 2), bool)
    with pytest.raises(ValueError, match=r"beta is .*; it must be 0 or more"):
        markov.assign(np.ones((1, 2, 2), np.float32), everything, everything, beta=beta)


def arrays(jaxpr):
    """The shapes of everything that a computation makes, loops included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from arrays(inner)


def test_the_cost_is_linear_in_the_regions():
    batch, length, count = 2, 5, 37
    everything = (np.ones((batch, length), bool), np.ones((batch, count), bool))
    made = jax.make_jaxpr(lambda scores: markov.assign(scores, *everything, beta=1.0))(
        np.ones((batch, length, count), np.float32)
    )
    shapes = list(arrays(made.jaxpr))
    assert (batch, count) in shapes, "the loops were not looked into"
    assert max(shape.count(count) for shape in shapes) == 1
    assert max(map(np.prod, shapes)) <= batch * length * count


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(0, 3))
@settings(deadline=None)
def test_segments_are_the_runs(assigned, padding):
    rows = np.array([*assigned, *[-1] * padding], np.int32)
    expected, start = [], 0
    for region, run in itertools.groupby(assigned):
        end = start + len(list(run))
        expected.append((start, end, region))
        start = end
    assert markov.segments(rows) == expected


def test_segments_of_an_assignment():
    everything = np.ones((1, 4), bool)
    scores = np.array([[[2, 0], [0, 0.5], [2, 0], [0, 3]]], np.float32)
    regions = np.ones((1, 2), bool)
    alone = markov.assign(scores, everything, regions, beta=0.0)
    assert markov.segments(np.asarray(alone.regions[0])) == [
        (0, 1, 0), (1, 2, 1), (2, 3, 0), (3, 4, 1),
    ]  # fmt: skip
    agreeing = markov.assign(scores, everything, regions, beta=1.0)
    assert markov.segments(np.asarray(agreeing.regions[0])) == [(0, 3, 0), (3, 4, 1)]
