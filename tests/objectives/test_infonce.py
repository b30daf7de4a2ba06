"""InfoNCE over the global batch is the same on one and on four devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.encoding import Encoding
from vse_jax.objectives.base import Spec
from vse_jax.objectives.infonce import infonce
from vse_jax.parallel import Devices, mean

B, D = 8, 4


def run(count, mode):
    devices = Devices(mode, tuple(jax.devices()[:count]))
    objective = infonce(temperature=0.1, chunk=3)
    state = objective.init(jax.random.key(0), Spec(D, 10, 5, 10))

    def step(batch):
        def loss(embeddings):
            encodings = {
                name: Encoding(e[:, None], jnp.ones((e.shape[0], 1), bool), e)
                for name, e in embeddings.items()
            }
            value, _, _ = objective.apply(state, encodings, batch)
            return value

        value, gradient = jax.value_and_grad(loss)({k: batch[k] for k in ("image", "text")})
        return mean(value), gradient

    rng = np.random.default_rng(0)
    batch = {k: rng.normal(size=(B, D)).astype(np.float32) for k in ("image", "text")}
    batch |= {"image_id": np.arange(B, dtype=np.int32) % 6, "weight": np.ones(B, np.float32)}
    mapped = devices.map(step, ("split",), ("replicated", "split"))
    value, gradient = mapped(devices.split(batch))
    return devices.fetch(value), {
        k: np.asarray(v).reshape(B, D) / count for k, v in gradient.items()
    }


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_devices_do_not_change_loss_or_gradient(mode):
    value, gradient = run(1, "shard_map")
    again, other = run(4, mode)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for side in gradient:
        np.testing.assert_allclose(other[side], gradient[side], atol=1e-5)
