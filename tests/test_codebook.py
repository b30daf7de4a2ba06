"""The product quantizer against loops, and its gradient against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax import codebook as codebooks
from vse_jax.codebook import Codebook

M, K, P = 3, 5, 2


def data(seed=0, rows=6):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, M * P)).astype(np.float32)
    return z, rng.normal(size=(M, K, P)).astype(np.float32)


def test_distances_and_codes_are_those_of_a_loop():
    z, codebook = data()
    book = Codebook(jnp.asarray(codebook))
    distances = codebooks.code_distances(jnp.asarray(z), book)
    codes = codebooks.encode(jnp.asarray(z), book)
    for i, row in enumerate(z):
        for m in range(M):
            part = row[m * P : (m + 1) * P]
            expected = [np.sum((part - codebook[m, k]) ** 2) for k in range(K)]
            np.testing.assert_allclose(distances[m, i], expected, rtol=1e-4, atol=1e-5)
            assert codes[i, m] == np.argmin(expected)


def test_codes_stand_for_their_entries():
    z, codebook = data()
    book = Codebook(jnp.asarray(codebook))
    codes = codebooks.encode(jnp.asarray(z), book)
    found = codebooks.decode(codes, book)
    for i in range(len(z)):
        expected = np.concatenate([codebook[m, codes[i, m]] for m in range(M)])
        np.testing.assert_array_equal(found[i], expected)
    # What lies on an entry is its own code.
    np.testing.assert_array_equal(codebooks.encode(found, book), codes)


def test_a_rotation_turns_embeddings_before_they_are_cut_and_codes_back():
    z, centroids = data()
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(M * P,) * 2))[0]
    turned = Codebook(jnp.asarray(centroids), jnp.asarray(rotation, jnp.float32))
    plain, axes = Codebook(jnp.asarray(centroids)), (z @ rotation).astype(np.float32)
    codes = codebooks.encode(jnp.asarray(z), turned)
    np.testing.assert_array_equal(codes, codebooks.encode(jnp.asarray(axes), plain))
    found = codebooks.decode(codes, turned)
    expected = np.asarray(codebooks.decode(codes, plain)) @ rotation.T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # Distances to codes are those of the embeddings as they were.
    distances = np.asarray(codebooks.code_distances(jnp.asarray(z), turned))
    chosen = np.take_along_axis(distances, np.asarray(codes).T[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(chosen.sum(0), np.sum((z - expected) ** 2, 1), rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 8])
def test_codes_are_bytes(count, monkeypatch):
    monkeypatch.setattr(codebooks, "CHUNK", 3)
    z, centroids = data(rows=8)
    found = codebooks.quantize(z[:count], Codebook(centroids))
    assert found.dtype == np.uint8
    assert found.shape == (count, M)
    parts = z[:count].reshape(count, M, 1, P)
    expected = np.argmin(np.sum((parts - centroids[None]) ** 2, axis=3), axis=2)
    np.testing.assert_array_equal(found, expected)


def test_of_equal_codes_the_first_is_chosen():
    z = jnp.ones((1, 2))
    codebook = Codebook(jnp.asarray([[[0.0], [1.0], [1.0]], [[1.0], [1.0], [0.0]]]))
    np.testing.assert_array_equal(codebooks.encode(z, codebook), [[1, 0]])


def test_a_part_that_is_no_number_stays_none():
    """So that the loss is none either, and the run stops."""
    _, centroids = data()
    codebook = Codebook(jnp.asarray(centroids))
    z = jnp.zeros((2, M * P)).at[1, P].set(jnp.nan)
    codes = codebooks.encode(z, codebook)
    assert codes[1, 1] == K
    found = np.asarray(codebooks.decode(codes, codebook)).reshape(2, M, P)
    assert np.argwhere(np.isnan(found)).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_the_gradient_is_that_of_the_surrogate():
    """The value is e; the gradient is the derivative of f(z + const) by finite differences."""
    z, centroids = map(jnp.asarray, data(1))
    codebook = Codebook(centroids)
    weights = np.random.default_rng(2).normal(size=z.shape)

    def f(q):
        return jnp.sum(jnp.sin(q) * jnp.asarray(weights, jnp.float32))

    def through(z):
        e = codebooks.decode(codebooks.encode(z, codebook), codebook)
        return f(codebooks.straight_through(z, e))

    value, gradient = jax.value_and_grad(through)(z)
    e = np.asarray(codebooks.decode(codebooks.encode(z, codebook), codebook), np.float64)
    np.testing.assert_allclose(value, np.sum(np.sin(e) * weights), rtol=1e-5)
    step, expected = 1e-5, np.zeros(z.shape)
    for index in np.ndindex(*z.shape):
        moved = np.zeros(z.shape)
        moved[index] = step
        ahead, back = (np.sum(np.sin(e + sign * moved) * weights) for sign in (1, -1))
        expected[index] = (ahead - back) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
