"""Flickr30k with a frozen MobileNetV2, on cached features.

configs/flickr30k.py[:system[,objective=NAME][,text=bert]], with the systems and objectives of
configs/flickr8k.py. Needs --config.data.manual_dir (the photos with Karpathy's file, or
with token file and split lists) and --config.model.image.weights.
"""

from ml_collections import ConfigDict

from vse_jax import presets
from vse_jax.config import default_config


def get_config(choice: str = "vsepp") -> ConfigDict:
    """The config of one system and objective on Flickr30k."""
    config = default_config()
    config.data.dataset = "flickr30k"
    # Grey photos too: a protocol counts every photo of its split.
    config.data.non_rgb = "convert"
    presets.frozen_mobilenet_v2(config)
    presets.system(config, choice, "configs/flickr30k.py", vsepp="lmh")
    return config
