"""The true training step of a config over drawn features and words, at sizes that soon compile."""

import functools

import jax
import numpy as np

from vse_jax import assembly, parallel, training

ROWS, LENGTH, WIDTH, VOCABULARY, CLASSES = 8, 8, 12, 30, 3
ONE = parallel.Devices("shard_map", tuple(jax.devices()[:1]))


def batch(parts=1):
    """Of pictures that have so many parts."""
    rng = np.random.default_rng(0)
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


def config(preset, system):
    """Of configs/flickr8k.py, without dropout, by plain SGD at rate 1."""
    found = preset("flickr8k", system)
    found.train.update({"freeze": (), "optimizer": "sgd", "schedule": "constant"})
    found.train.update({"learning_rate": 1.0, "weight_decay": 0.0, "clip_norm": None})
    found.train.update({"clip_value": None, "warmup_epochs": 0.0, "ema": 0.0})
    found.model.image.weights = None
    found.model.update({"dimension": 16, "hidden": 16})
    found.model.text.words = 8
    for side in (found.model.image, found.model.text, found.model.captioner):
        side.dropout = 0.0
    found.objective.quantizer.update({"parts": 4, "codes": 8})
    return found


def built(config, batch):
    """The model and the training of a config, and the shapes of the model's variables."""
    words = assembly.Words(VOCABULARY, 0, (), tuple(range(4)), CLASSES)
    model = assembly.make_model(
        config, words, assembly.Sources(None, None), assembly.Frozen(False, False)
    )
    few = {name: rows[:1] for name, rows in batch.items()}
    init = functools.partial(model.init, train=False)
    shapes = {"batch_stats": {}} | jax.eval_shape(init, jax.random.key(0), few)
    whole = training.build(
        config, model, shapes["params"], images=ROWS, steps=10, steps_per_epoch=10.0
    )
    return model, whole, shapes


def drawn(model, batch):
    """Variables that a training of the model starts from."""
    init = jax.jit(functools.partial(model.init, train=False))
    few = {name: rows[:1] for name, rows in batch.items()}
    return {"batch_stats": {}} | jax.tree.map(np.array, init(jax.random.key(0), few))


def stepped(whole, variables, batch):
    """(state, metrics) after one step on one device, on the host."""
    state = jax.tree.map(np.asarray, whole.initial_state(variables))
    after, metrics = whole.on(ONE, state)(ONE.place(state), ONE.split(batch))
    return ONE.fetch(after), ONE.fetch(metrics)
