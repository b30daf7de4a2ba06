"""Your own pictures and captions: VSE++ on a frozen MobileNetV2.

configs/custom.py:PATH, where PATH is a JSONL ({"image": ..., "captions": [...]}), a CSV
(image,caption), a COCO captions JSON or a Karpathy JSON. Needs --config.model.image.weights,
a folder or a hub name; the pictures are read where they are.
"""

from ml_collections import ConfigDict

from vse_jax.config import default_config


def get_config(path: str | None = None) -> ConfigDict:
    """The config for the file at `path`."""
    config = default_config()
    config.data.dataset = "custom"
    config.data.path = path
    config.model.image.backbone = "mobilenet_v2"
    config.model.image.weights = "google/mobilenet_v2_1.0_224"
    config.model.image.normalize_features = True
    config.data.max_tokens = 32
    config.model.image.dropout = 0.1
    config.model.text.dropout = 0.2
    config.objective.triplet.warmup_epochs = 2.0
    config.objective.triplet.warmup = "infonce"
    config.train.freeze = (("image/backbone/.*", None),)
    config.train.epochs = 12.0
    config.train.learning_rate = 5e-4
    config.train.clip_norm = 2.0
    config.train.ema = 0.998
    return config
