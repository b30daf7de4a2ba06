import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from vse_jax.models.normalize import l2_normalize


def test_vectors_become_unit_and_zero_stays_zero():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8], [0, 0], [0, -1]], atol=1e-6)


def test_gradient_at_zero_is_zero():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    gradient = jax.grad(lambda x: jnp.sum(l2_normalize(x)[:, 0]))(x)
    # d(a / |x|) / da = b^2 / |x|^3 and d(a / |x|) / db = -a b / |x|^3.
    np.testing.assert_allclose(gradient, [[16 / 125, -12 / 125], [0, 0]], atol=1e-6)


def test_gradient_agrees_with_finite_differences():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    check_grads(jax.jit(l2_normalize), (x,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
