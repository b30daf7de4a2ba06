"""The training step of a config as shapes: neither data nor weights nor devices are needed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import step
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vse_jax import assembly, parallel, training
from vse_jax.data import semantics

# The data are not looked at: so many words, and training pictures.
VOCABULARY, IMAGES = 10_000, 30_000


def training_of(
    config: ConfigDict, batch: int
) -> tuple[training.Training, Any, dict[str, jax.ShapeDtypeStruct]]:
    """The training, the shapes of its state, and those of a batch of so many pairs."""
    frozen = assembly.frozen_backbones(config)
    cached = assembly.features_are_cached(config, frozen)
    function_words = tuple(range(4))
    words = assembly.Words(VOCABULARY, 3, (0, 1, 2), function_words, classes=100)
    model = assembly.make_model(config, words, assembly.sources_of(config), frozen)
    rows = _rows(config, model, cached, batch)
    # Of pictures: a state has the frozen backbone's parameters too.
    pictures = _rows(config, model, assembly.Frozen(image=False, text=False), 1)
    variables = jax.eval_shape(
        lambda key, rows: model.init(key, rows, train=False), jax.random.key(0), pictures
    )
    built = training.build(
        config, model, variables["params"],
        images=IMAGES, steps=1000, steps_per_epoch=IMAGES / batch,
    )  # fmt: skip
    return built, jax.eval_shape(built.initial_state, variables), rows


def _rows(
    config: ConfigDict, model: Any, cached: assembly.Frozen, batch: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch; a frozen backbone's features are there already."""
    size, length = config.data.image_size, config.data.max_tokens
    shape = jax.ShapeDtypeStruct
    image = shape((1, size, size, 3), jnp.uint8)
    found = {
        "tokens": shape((batch, length), jnp.int32),
        "token_mask": shape((batch, length), jnp.bool_),
        "image_id": shape((batch,), jnp.int32),
        "caption_id": shape((batch,), jnp.int32),
        "label": shape((batch,), jnp.int32),
        "weight": shape((batch,), jnp.float32),
        "semantics": shape((batch, semantics.WIDTH), jnp.float32),
    }
    if cached.image:
        seen = jax.eval_shape(
            lambda key, image: model.init_with_output(key, image, method=_features)[0],
            jax.random.key(0),
            image,
        )
        parts, width = seen.shape[1:]
        found["features"] = shape((batch, parts, width), jnp.float32)
        found["feature_mask"] = shape((batch, parts), jnp.bool_)
    else:
        found["image"] = shape((batch, *image.shape[1:]), image.dtype)
        found["boxes"] = shape((batch, 20, 4), jnp.float32)
    if cached.text:
        width = model.text.reader.hidden_size
        found["text_features"] = shape((batch, length, width), jnp.float32)
        found["text_feature_mask"] = shape((batch, length), jnp.bool_)
    return found


def _features(model: Any, image: Any) -> Any:
    return model.image.features(image, None)


def placed_on(devices: parallel.Devices, placed: Any, shapes: Any) -> Any:
    """The shapes as they lie on devices, by `parallel.placements` or such."""

    def one(where: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        split = where == parallel.SPLIT
        spec = PartitionSpec(parallel.AXIS) if split else PartitionSpec()
        shape = (devices.shared(x.shape[0]), *x.shape[1:]) if split else x.shape
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(devices.mesh, spec))

    return jax.tree.map(one, placed, shapes)


def token_mask(config: ConfigDict, shape: tuple[int, int]) -> np.ndarray:
    """Which of so many captions' places [b, l] have a token; as long as Flickr8k's are."""
    mask = step.drawn(config).mask
    return mask[np.arange(shape[0]) % len(mask), : shape[1]]
