"""Dropout against what it says of itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.models.dropout import Dropout


def dropped(rate, shape, seed=0, dtype=jnp.float32, train=True):
    x = jnp.full(shape, 3.0, dtype)
    return Dropout(rate).apply({}, x, train=train, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize(("rate", "share"), [(0.2, 51 / 256), (0.5, 0.5), (1e-4, 1 / 256)])
def test_share_and_scale(rate, share):
    found = np.asarray(dropped(rate, (999, 1001)))
    zeroed = np.mean(found == 0)
    deviation = np.sqrt(share * (1 - share) / found.size)
    assert abs(zeroed - share) < 5 * deviation
    np.testing.assert_allclose(found[found != 0], 3 / (1 - share), rtol=1e-6)


def test_draws_are_independent_along_every_axis():
    kept = np.asarray(dropped(0.5, (64, 33, 65))) > 0
    for axis in range(3):
        for shift in (1, 2, 4):
            same = np.mean(kept == np.roll(kept, shift, axis))
            assert abs(same - 0.5) < 5 * 0.5 / np.sqrt(kept.size)


def test_a_key_draws_the_same_and_another_does_not():
    one, again, other = (np.asarray(dropped(0.5, (7, 3), seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_two_calls_of_one_module_draw_for_themselves():
    x = jnp.ones((50, 50))
    rngs = {"dropout": jax.random.key(0)}
    one, other = Dropout(0.5).apply(
        {}, x, rngs=rngs, method=lambda drop, x: (drop(x, train=True), drop(x, train=True))
    )
    assert abs(float(jnp.mean((one > 0) == (other > 0))) - 0.5) < 0.05


def test_nothing_happens_out_of_training_or_without_a_rate():
    np.testing.assert_array_equal(dropped(0.5, (4, 4), train=False), 3.0)
    x = jnp.ones((2, 2))
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)


def test_kept_values_have_the_gradient_and_the_type():
    def total(x):
        rngs = {"dropout": jax.random.key(0)}
        return jnp.sum(Dropout(0.25).apply({}, x, train=True, rngs=rngs))

    gradient = np.asarray(jax.grad(total)(jnp.ones((5, 5))))
    np.testing.assert_allclose(gradient, np.asarray(dropped(0.25, (5, 5))) / 3.0, rtol=1e-6)
    assert dropped(0.25, (3,), dtype=jnp.bfloat16).dtype == jnp.bfloat16
