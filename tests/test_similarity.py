import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.similarity import dot, negative_euclidean

SIMILARITIES = {
    "dot": (dot, lambda x, y: x @ y),
    "euclidean": (negative_euclidean, lambda x, y: -np.linalg.norm(x - y)),
}


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_both_forms_equal_a_loop(vectors, name):
    similarity, one = SIMILARITIES[name]
    a, b = vectors
    matrix = similarity.matrix(jnp.asarray(a), jnp.asarray(b[:4]))
    np.testing.assert_allclose(matrix, [[one(x, y) for y in b[:4]] for x in a], atol=1e-5)
    rows = similarity.rows(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(rows, [one(x, y) for x, y in zip(a, b, strict=True)], atol=1e-5)


@pytest.mark.parametrize("form", ["matrix", "rows"])
def test_the_distance_of_equal_vectors_has_a_finite_gradient(vectors, form):
    a = jnp.asarray(vectors[0])
    measure = getattr(negative_euclidean, form)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(measure(x, a)))(a)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("form", ["matrix", "rows"])
def test_what_is_no_number_is_no_distance(vectors, form):
    """Least of all 0, which would be the nearest."""
    a, b = vectors.copy()
    a[2, 3] = np.nan
    found = getattr(negative_euclidean, form)(jnp.asarray(a), jnp.asarray(b))
    assert np.isnan(found[2]).all()
    assert np.isfinite(np.delete(found, 2, axis=0)).all()


def test_a_distance_below_rounding_pulls_nowhere(vectors):
    a = jnp.asarray(vectors[0])
    near = jnp.nextafter(a, a + 1.0)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(negative_euclidean.rows(x, near)))(a)
    assert value == 0.0
    assert not np.any(gradient)
    # And one above it has a direction.
    assert np.all(jax.grad(lambda x: jnp.sum(negative_euclidean.rows(x, 1.001 * a)))(a))
