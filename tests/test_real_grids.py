"""Every network trains on real photos' grids, some cells of which are zero in every channel."""

import jax
import numpy as np
import pytest
from PIL import Image

from vse_jax import assembly, optimizer, parallel, training
from vse_jax.models.backbones import mobilenet_v2

PHOTOS, BATCH, STEPS = 192, 16, 4


@pytest.fixture(scope="module")
def grids(real_data):
    """float32 [16, 49, 1280] of the photos with the most cells that are zero."""
    weights = real_data("weights/mobilenet_v2_1.0_224")
    photos = sorted(real_data("flickr8k/Flicker8k_Dataset").glob("*.jpg"))[:PHOTOS]
    pixels = np.stack([np.asarray(Image.open(photo).convert("RGB")) for photo in photos])
    module, variables = mobilenet_v2.from_pretrained(weights)
    grid = jax.jit(lambda image: module.apply(variables, image, train=False).grid)
    found = np.concatenate([grid(part) for part in np.split(pixels, 6)]).reshape(PHOTOS, 49, -1)
    zero = np.sum(~found.any(axis=2), axis=1)
    assert np.sum(zero > 0) >= 2, "these photos have no cells that are zero"
    return found[np.argsort(-zero, kind="stable")[:BATCH]]


@pytest.mark.slow
@pytest.mark.flickr8k
@pytest.mark.parametrize("network", ["vsepp", "vsrn", "saf", "sgr", "vse_infinity"])
def test_steps_on_real_grids_stay_finite(preset, grids, network):
    """The published SAF is NaN at its second step on such cells."""
    config = preset("flickr8k", f"{network},objective=lseh")
    config.model.image.features, config.model.image.pooling = "grid", "mean"
    config.model.dimension, config.model.text.words = 32, 8
    config.objective.triplet.warmup_epochs = 0.0
    config.model.image.weights, config.train.freeze = None, ()
    words = assembly.Words(50, 3, ())
    nothing = assembly.Frozen(image=False, text=False)
    built = assembly.build_model(config, words, nothing, grids.shape[2])
    whole = training.build(
        config,
        built.model,
        built.variables["params"],
        images=BATCH,
        steps=STEPS,
        steps_per_epoch=float(STEPS),
    )
    devices = parallel.Devices("shard_map", tuple(jax.devices()[:1]))
    state = devices.place(jax.tree.map(np.asarray, whole.initial_state(built.variables)))
    run = whole.on(devices, state)
    rng = np.random.default_rng(0)
    batch = devices.split(
        {
            "features": grids,
            "feature_mask": np.ones(grids.shape[:2], bool),
            "tokens": rng.integers(4, 50, (BATCH, 8)).astype(np.int32),
            "token_mask": np.arange(8)[None] < rng.integers(2, 9, BATCH)[:, None],
            "image_id": np.arange(BATCH, dtype=np.int32) // 2,
            "semantics": rng.standard_normal((BATCH, 4)).astype(np.float32),
            "weight": np.ones(BATCH, np.float32),
        }
    )
    for _ in range(STEPS):
        state, metrics = run(state, batch)
        assert np.isfinite(devices.fetch(metrics)["gradient_norm"])
    found = devices.fetch((state.params, state.batch_stats))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    start = optimizer.flatten(built.variables["params"])["image/head/project/kernel"]
    moved = optimizer.flatten(found[0])["image/head/project/kernel"]
    assert not np.allclose(start, moved)
