"""Flickr8k of twelve drawn photos in the official layout, and a small MobileNetV2 for them."""

import io
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image

from vse_jax.models.backbones import weights
from vse_jax.models.backbones.mobilenet_v2 import RULES, MobileNetV2

SIZES = {"train": 8, "dev": 2, "test": 2}
SCALE = {"depth_multiplier": 0.1, "finegrained_output": False}


def photo(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_flickr8k(root):
    photos, text = root / "Flicker8k_Dataset", root / "Flickr8k_text"
    photos.mkdir(parents=True)
    text.mkdir()
    lines = []
    for split, size in SIZES.items():
        names = [f"{split}{number}.jpg" for number in range(size)]
        (text / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{n}\n" for n in names))
        for name in names:
            (photos / name).write_bytes(photo(sum(name.encode())))
            lines += [
                f"{name}#{n}\tA dog and a {name[-5]} {'in the snow ' * (n + 1)}." for n in range(5)
            ]
    (text / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")


def write_weights(folder, seed):
    net = MobileNetV2(**SCALE)
    picture = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    shapes = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), picture)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return rng.uniform(0.5, 1.0, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(weights.revert(variables, RULES), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "mobilenet_v2"} | SCALE))
    return variables
