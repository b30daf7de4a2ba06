"""The best of all items are those that NumPy finds."""

import numpy as np
import pytest

from vse_jax.index import exact
from vse_jax.similarity import dot, negative_euclidean


def expected(similarity, queries, items, k):
    a, b = queries.astype(np.float64), items.astype(np.float64)
    scores = a @ b.T
    if similarity is negative_euclidean:
        scores = -np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("similarity", [dot, negative_euclidean])
@pytest.mark.parametrize("sizes", [(40,), (7, 30, 1), (16, 16)])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_it_finds_what_numpy_finds(monkeypatch, similarity, sizes, k):
    """In shards of any sizes, larger and smaller than what is compared at a time."""
    monkeypatch.setattr(exact, "ITEMS", 16)
    monkeypatch.setattr(exact, "QUERIES", 4)
    rng = np.random.default_rng(0)
    shards = [rng.normal(size=(size, 8)).astype(np.float32) for size in sizes]
    starts = np.cumsum([0, *sizes[:-1]])
    queries = rng.normal(size=(11, 8)).astype(np.float32)
    found = exact.search(similarity, queries, zip(starts.tolist(), shards, strict=True), k)
    numbers, scores = expected(similarity, queries, np.concatenate(shards), k)
    real = numbers.shape[1]
    np.testing.assert_array_equal(found.numbers[:, :real], numbers)
    np.testing.assert_allclose(found.scores[:, :real], scores, rtol=1e-5, atol=1e-5)
    # There are not as many as are asked for.
    assert (found.numbers[:, real:] == -1).all()
    assert np.isneginf(found.scores[:, real:]).all()


def test_of_equals_the_first_comes_first():
    rows = np.ones((5, 2), np.float32)
    found = exact.search(dot, rows[:1], [(0, rows[:2]), (2, rows[2:])], 4)
    assert found.numbers.tolist() == [[0, 1, 2, 3]]


def test_few_programs_serve_any_number_of_queries():
    """And above some no more than an eighth of what they compute is padding."""
    shapes = {len(exact._padded(np.zeros((count, 1)))) for count in range(1, exact.QUERIES + 1)}
    assert len(shapes) <= 24
    for count in range(225, exact.QUERIES + 1):
        assert count <= len(exact._padded(np.zeros((count, 1)))) <= count * 8 / 7
    assert len(exact._padded(np.zeros((200, 1)))) == 224


def test_no_queries():
    found = exact.search(dot, np.zeros((0, 2), np.float32), [(0, np.ones((5, 2), np.float32))], 3)
    assert found.numbers.shape == found.scores.shape == (0, 3)
