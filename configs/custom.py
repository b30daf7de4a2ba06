"""Your own pictures and captions: VSE++ on a frozen MobileNetV2.

configs/custom.py:PATH, where PATH is a JSONL ({"image": ..., "captions": [...]}), a CSV
(image,caption), a COCO captions JSON or a Karpathy JSON. Needs --config.model.image.weights,
a folder or a hub name; the pictures are read where they are.
"""

from ml_collections import ConfigDict

from vse_jax import presets
from vse_jax.config import default_config


def get_config(path: str | None = None) -> ConfigDict:
    """The config for the file at `path`."""
    config = default_config()
    config.data.dataset = "custom"
    config.data.path = path
    presets.frozen_mobilenet_v2(config)
    presets.vsepp(config)
    return config
