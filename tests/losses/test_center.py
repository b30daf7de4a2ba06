"""Centers against loops written from Wen et al.'s equations 2 and 4."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.losses import center
from vse_jax.losses.blocks import Rows

IDS = np.array([3, 0, 3, 1, 0, 3, 2], np.int32)
WHERE = np.array([True] * 6 + [False])


def vectors(seed, rows=7):
    return np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)


def test_the_loss_and_its_gradient():
    e, c = vectors(0), vectors(1)

    def loss(e, c):
        return center.center_loss(e, c, jnp.asarray(WHERE))

    value, (to_e, to_c) = jax.value_and_grad(loss, (0, 1))(jnp.asarray(e), jnp.asarray(c))
    expected = sum(0.5 * np.sum((e[i] - c[i]) ** 2) for i in range(7) if WHERE[i])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(to_e, np.where(WHERE[:, None], e - c, 0.0), rtol=1e-6)
    assert not np.any(to_c)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_the_sums_of_a_concept(chunk):
    e = vectors(0)
    queries = jnp.asarray([3, 0, 2, 9], jnp.int32)
    rows = Rows(jnp.asarray(e), jnp.asarray(IDS), jnp.asarray(WHERE))
    sums, counts = jax.jit(center.concept_sums, static_argnums=2)(queries, rows, chunk)
    for row, concept in enumerate(queries):
        mine = [e[i] for i in range(7) if WHERE[i] and IDS[i] == concept]
        assert counts[row] == len(mine)
        np.testing.assert_allclose(sums[row], np.sum([np.zeros(4), *mine], axis=0), atol=1e-6)


def test_centers_move_as_the_equation_says():
    c, e, alpha = vectors(2, 2), vectors(3, 3), 0.5
    counts = jnp.asarray([3.0, 0.0])
    sums = jnp.stack([jnp.sum(e, axis=0), jnp.zeros(4)])
    found = center.moved_centers(jnp.asarray(c), sums, counts, alpha)
    step = sum(c[0] - row for row in e) / (1 + 3)
    np.testing.assert_allclose(found[0], c[0] - alpha * step, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], c[1])
