"""Flickr8k with a frozen MobileNetV2: VSE++ on cached features.

configs/flickr8k.py[:system], where system is "vsepp". Needs
--config.data.manual_dir (the photos and captions) and --config.model.image.weights.
"""

from ml_collections import ConfigDict

from vse_jax.config import ConfigError, default_config


def get_config(system: str = "vsepp") -> ConfigDict:
    """The config of one system on Flickr8k."""
    if system != "vsepp":
        raise ConfigError(f"configs/flickr8k.py has no system {system!r}; it has 'vsepp'")
    config = default_config()
    config.data.dataset = "flickr8k"
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
