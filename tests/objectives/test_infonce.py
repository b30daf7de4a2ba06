"""InfoNCE and the sigmoid loss over the global batch: the dense forms, on one and four devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax import parallel
from vse_jax.encoding import Encoding
from vse_jax.models.scale import Scale, Scaling
from vse_jax.objectives.base import Spec
from vse_jax.objectives.infonce import infonce
from vse_jax.objectives.sigmoid import sigmoid
from vse_jax.parallel import Devices, mean

B, D = 8, 4
IDS = np.arange(B, dtype=np.int32) % 6
COUNTS = np.arange(B) != 5
TEMPERATURE, BIAS = 0.3, -1.5


def embeddings():
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=(B, D)).astype(np.float32) for k in ("image", "text")}


def dense(name, given):
    """By the definition, over whole matrices; `given` as what `run` differentiates by."""
    scores = given["image"] @ given["text"].T / given["temperature"]
    own = jnp.diagonal(scores)
    others = jnp.asarray((IDS[:, None] != IDS[None]) & COUNTS[None] & COUNTS[:, None])
    if name == "sigmoid":
        scores, own = scores + given["bias"], own + given["bias"]
        right = jnp.where(COUNTS, jnp.log1p(jnp.exp(-own)), 0.0).sum()
        wrong = jnp.where(others, jnp.log1p(jnp.exp(scores)), 0.0).sum()
        return (right + wrong) / COUNTS.sum()
    rows = [
        jnp.log(jnp.exp(own) + jnp.where(others, jnp.exp(each), 0.0).sum(axis=1)) - own
        for each in (scores, scores.T)
    ]
    return jnp.where(COUNTS, sum(rows), 0.0).sum() / (2 * COUNTS.sum())


def run(name, exchange, count, mode):
    """Loss and gradients by embeddings and scaling, of the whole batch."""
    devices = Devices(mode, tuple(jax.devices()[:count]))
    if name == "sigmoid":
        objective = sigmoid(chunk=3, exchange=exchange)
    else:
        objective = infonce(temperature=9.0, chunk=3, exchange=exchange)
    state = objective.init(jax.random.key(0), Spec(D, 10, 5, 10))

    def step(batch, numbers):
        def loss(rows, numbers):
            outputs = {
                side: Encoding(e[:, None], jnp.ones((e.shape[0], 1), bool), e)
                for side, e in rows.items()
            }
            outputs["scales"] = {name: Scaling(numbers["temperature"], numbers["bias"])}
            return objective.apply(state, outputs, batch)[0]

        rows = {k: batch[k] for k in ("image", "text")}
        value, (of_rows, of_numbers) = jax.value_and_grad(loss, (0, 1))(rows, numbers)
        return mean(value), of_rows, mean(of_numbers)

    batch = embeddings() | {"image_id": IDS, "weight": COUNTS.astype(np.float32)}
    numbers = {"temperature": np.float32(TEMPERATURE), "bias": np.float32(BIAS)}
    split, same = parallel.SPLIT, parallel.REPLICATED
    mapped = devices.map(step, (split, same), (same, split, same))
    value, of_rows, of_numbers = mapped(devices.split(batch), devices.place(numbers))
    rows = {k: np.asarray(v).reshape(B, D) / count for k, v in of_rows.items()}
    return devices.fetch(value), rows | devices.fetch(of_numbers)


@pytest.mark.parametrize("name", ["infonce", "sigmoid"])
@pytest.mark.parametrize(
    ("exchange", "count", "mode"),
    [("gather", 1, "shard_map"), ("gather", 4, "pmap"), ("ring", 1, "shard_map"),
     ("ring", 4, "shard_map"), ("ring", 4, "pmap")],
)  # fmt: skip
def test_loss_and_gradients_are_those_of_the_dense_form(name, exchange, count, mode):
    value, gradients = run(name, exchange, count, mode)
    numbers = {"temperature": jnp.float32(TEMPERATURE), "bias": jnp.float32(BIAS)}
    given = jax.tree.map(jnp.asarray, embeddings()) | numbers
    expected, right = jax.value_and_grad(lambda given: dense(name, given))(given)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert expected > 0.5
    for part, gradient in right.items():
        np.testing.assert_allclose(gradients[part], gradient, atol=1e-5, err_msg=part)
    assert abs(right["temperature"]) > 0.1
    assert (abs(right["bias"]) > 0.1) == (name == "sigmoid")


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("name", ["infonce", "sigmoid"])
def test_a_pair_without_negatives_has_a_finite_gradient(name, exchange, monkeypatch):
    monkeypatch.setattr(f"{__name__}.IDS", np.zeros(B, np.int32))
    value, gradients = run(name, exchange, 4, "shard_map")
    assert value == pytest.approx(0.0 if name == "infonce" else float(dense(name, as_given())))
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def as_given():
    return embeddings() | {"temperature": TEMPERATURE, "bias": BIAS}


def test_the_ring_holds_the_keys_of_one_device():
    """Where embeddings are gathered those of the whole batch are in memory, in the ring never."""
    devices = Devices("shard_map", tuple(jax.devices()[:4]))
    rows = 4096
    spec = Spec(64, 10, 5, 10)

    def memory(exchange):
        objective = infonce(0.1, chunk=64, exchange=exchange)

        def step(batch):
            def loss(sides):
                outputs = {
                    side: Encoding(e[:, None], jnp.ones((e.shape[0], 1), bool), e)
                    for side, e in sides.items()
                }
                return objective.apply(objective.init(jax.random.key(0), spec), outputs, batch)[0]

            return jax.grad(loss)({k: batch[k] for k in ("image", "text")})

        shapes = {k: jax.ShapeDtypeStruct((rows, 64), jnp.float32) for k in ("image", "text")}
        shapes |= {"image_id": jax.ShapeDtypeStruct((rows,), jnp.int32),
                   "weight": jax.ShapeDtypeStruct((rows,), jnp.float32)}  # fmt: skip
        mapped = devices.map(step, (parallel.SPLIT,), parallel.SPLIT)
        return mapped.lower(shapes).compile().memory_analysis().temp_size_in_bytes

    whole = rows * 64 * 4
    assert memory("gather") - memory("ring") > whole


def test_a_scale_is_learned_and_counts_for_no_more_than_a_hundred():
    scale = Scale(0.07, -3.0)
    variables = scale.init(jax.random.key(0))
    temperature, bias = scale.apply(variables)
    assert temperature == pytest.approx(0.07)
    assert bias == -3.0
    assert scale.apply({"params": {"log_scale": jnp.log(500.0), "bias": 0.0}})[0] == pytest.approx(
        0.01
    )

    def of(log_scale):
        return scale.apply({"params": {"log_scale": log_scale, "bias": 0.0}})[0]

    # Beyond, it can come back.
    assert jax.grad(of)(jnp.log(500.0)) == pytest.approx(-0.01)
    assert set(Scale(0.07).init(jax.random.key(0))["params"]) == {"log_scale"}
