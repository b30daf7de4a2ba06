"""Steps in bfloat16 do what steps in float32 do, and keep in float32 all that adds up."""

import jax
import numpy as np
import pytest

from vse_jax import assembly, parallel, training
from vse_jax.optimizer import flatten

ROWS, LENGTH, PARTS, WIDTH, VOCABULARY, CLASSES = 8, 8, 5, 12, 30, 3
# One of each kind, and how near the gradient must be: embeddings, scores of pairs (of which the
# hardest are near each other before any training), words and classes.
SYSTEMS = {"leap": 0.99, "saf": 0.95, "cam": 0.99}


@pytest.fixture(params=SYSTEMS)
def system(request):
    return request.param


@pytest.fixture
def batch(system):
    rng = np.random.default_rng(0)
    parts = 1 if system == "leap" else PARTS
    lengths = rng.integers(4, LENGTH + 1, ROWS)
    return {
        "features": rng.gamma(0.5, 1.0, (ROWS, parts, WIDTH)).astype(np.float32),
        "feature_mask": np.ones((ROWS, parts), bool),
        "tokens": rng.integers(4, VOCABULARY, (ROWS, LENGTH)).astype(np.int32),
        "token_mask": np.arange(LENGTH) < lengths[:, None],
        "image_id": np.arange(ROWS, dtype=np.int32),
        "caption_id": np.arange(ROWS, dtype=np.int32),
        "label": rng.integers(0, CLASSES, ROWS).astype(np.int32),
        "weight": np.ones(ROWS, np.float32),
    }


def stepped(preset, system, batch, precision):
    """(parameters before, state after, metrics) of one step of SGD at rate 1."""
    config = preset("flickr8k", system)
    config.precision = precision
    config.train.update({"freeze": (), "optimizer": "sgd", "schedule": "constant"})
    config.train.update({"learning_rate": 1.0, "weight_decay": 0.0, "clip_norm": None})
    config.train.update({"clip_value": None, "warmup_epochs": 0.0, "ema": 0.0})
    config.model.image.weights = None
    config.model.update({"dimension": 16, "hidden": 16})
    config.model.text.words = 8
    for side in (config.model.image, config.model.text, config.model.captioner):
        side.dropout = 0.0
    config.objective.quantizer.update({"parts": 4, "codes": 8})
    words = assembly.Words(VOCABULARY, 0, (), tuple(range(4)), CLASSES)
    model = assembly.make_model(
        config, words, assembly.Sources(None, None), assembly.Frozen(False, False)
    )
    few = {name: rows[:1] for name, rows in batch.items()}
    drawn = jax.jit(lambda key, few: model.init(key, few, train=False))(jax.random.key(0), few)
    variables = {"batch_stats": {}} | drawn
    whole = training.build(
        config, model, variables["params"], images=ROWS, steps=10, steps_per_epoch=10.0
    )
    devices = parallel.Devices("shard_map", tuple(jax.devices()[:1]))
    state = devices.place(jax.tree.map(np.asarray, whole.initial_state(variables)))
    before = jax.tree.map(np.array, variables["params"])
    state, metrics = whole.on(devices, state)(state, devices.split(batch))
    return before, devices.fetch(state), devices.fetch(metrics)


@pytest.mark.slow
def test_bfloat16_goes_the_way_of_float32(preset, system, batch):
    (_, full, losses), (start, half, rough) = (
        stepped(preset, system, batch, precision) for precision in ("float32", "bfloat16")
    )
    for leaf in jax.tree.leaves(half):
        assert leaf.dtype in (np.float32, np.int32, np.uint32), leaf.dtype
    assert rough["loss"].dtype == np.float32
    np.testing.assert_allclose(rough["loss"], losses["loss"], rtol=0.02)
    start, full, half = (flatten(params) for params in (start, full.params, half.params))
    exact, found = (
        np.concatenate([np.ravel(params[name] - start[name]) for name in start])
        for params in (full, half)
    )
    assert not np.array_equal(exact, found)
    cosine = exact @ found / (np.linalg.norm(exact) * np.linalg.norm(found))
    assert cosine > SYSTEMS[system]
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(exact), rtol=0.05)
