from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.models.rows_product import rows_product


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
def test_a_dense_layer_of_it_is_a_dense_layer(shape, dtype, tolerance):
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(size=(*shape[:-1], w)).astype(np.float32) for w in (3, 6))
    plain, ours = nn.Dense(6), nn.Dense(6, dtype=dtype, dot_general=rows_product)
    variables = plain.init(jax.random.key(0), jnp.asarray(x))

    def total(layer, variables, x):
        return jnp.sum(layer.apply(variables, x).astype(jnp.float32) * weight)

    run = [jax.value_and_grad(partial(total, layer), (0, 1)) for layer in (plain, ours)]
    expected, result = (jax.tree.leaves(f(variables, jnp.asarray(x))) for f in run)
    for a, b in zip(result, expected, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(b).max()))
