"""What objectives hold grows with the batch, not its square. Of SAF see models/test_sgraf.py."""

import jax
import jax.numpy as jnp
import pytest

from vse_jax import parallel
from vse_jax.encoding import Encoding
from vse_jax.models.scale import Scaling
from vse_jax.objectives.base import Spec
from vse_jax.objectives.infonce import infonce
from vse_jax.objectives.sigmoid import sigmoid
from vse_jax.objectives.triplet import triplet

WIDTH, MEANING, CHUNK, SIZE = 8, 4, 32, 256
OBJECTIVES = {
    "LMH": lambda chunk: triplet(0.2, "hardest", warmup_epochs=0.0, chunk=chunk),
    "LSEH": lambda chunk: triplet(0.2, "hardest", warmup_epochs=0.0, chunk=chunk, semantic=0.025),
    "InfoNCE": lambda chunk: infonce(0.05, chunk),
    "sigmoid": lambda chunk: sigmoid(chunk),
}


def held(objective, rows):
    """Bytes on the way to the gradients of so many pairs' embeddings."""
    state = objective.init(jax.random.key(0), Spec(WIDTH, 10, 5, 10))

    def step(batch):
        def loss(sides):
            mask = jnp.ones((rows, 1), bool)
            outputs = {side: Encoding(e[:, None], mask, e) for side, e in sides.items()}
            scaling = Scaling(jnp.float32(0.1), jnp.float32(-1.0))
            outputs["scales"] = {"infonce": scaling, "sigmoid": scaling}
            return objective.apply(state, outputs, batch)[0]

        return jax.grad(loss)({side: batch[side] for side in ("image", "text")})

    sizes = {"image": (rows, WIDTH), "text": (rows, WIDTH), "semantics": (rows, MEANING)}
    sizes |= {"image_id": (rows,), "weight": (rows,)}
    shapes = {
        name: jax.ShapeDtypeStruct(size, jnp.int32 if name == "image_id" else jnp.float32)
        for name, size in sizes.items()
    }
    devices = parallel.Devices("shard_map", tuple(jax.devices()[:1]))
    compiled = devices.map(step, (parallel.SPLIT,), parallel.SPLIT).lower(shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def of_two_pairs(objective):
    """Bytes for every two pairs of the batch: the second difference over three sizes."""
    small, middle, large = (held(objective, rows) for rows in (SIZE, 2 * SIZE, 3 * SIZE))
    return (large - 2 * middle + small) / (2 * SIZE**2)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_memory_is_linear_in_the_batch(name):
    """A float32 of each would be 4; each chunk may keep a few numbers of a row."""
    assert of_two_pairs(OBJECTIVES[name](CHUNK)) < 1


def test_what_is_not_chunked_is_noticed():
    assert of_two_pairs(infonce(0.05, chunk=10_000)) > 4
