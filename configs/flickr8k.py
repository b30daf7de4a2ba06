"""Flickr8k with a frozen MobileNetV2: VSE++ on cached features.

configs/flickr8k.py[:system], where system is "vsepp". Needs
--config.data.manual_dir (the photos and captions) and --config.model.image.weights.
"""

from ml_collections import ConfigDict

from vse_jax import presets
from vse_jax.config import ConfigError, default_config


def get_config(system: str = "vsepp") -> ConfigDict:
    """The config of one system on Flickr8k."""
    if system != "vsepp":
        raise ConfigError(f"configs/flickr8k.py has no system {system!r}; it has 'vsepp'")
    config = default_config()
    config.data.dataset = "flickr8k"
    presets.frozen_mobilenet_v2(config)
    presets.vsepp(config)
    return config
