"""IAPR TC-12 with a frozen MobileNetV2, on cached features.

configs/iaprtc12.py[:system[,objective=NAME][,text=bert]], with the systems and objectives of
configs/flickr8k.py. Needs --config.data.manual_dir (the photos and annotations) and
--config.model.image.weights.
"""

from ml_collections import ConfigDict

from vse_jax import presets
from vse_jax.config import default_config


def get_config(choice: str = "vsepp") -> ConfigDict:
    """The config of one system and objective on IAPR TC-12."""
    config = default_config()
    config.data.dataset = "iaprtc12"
    # Grey photos too: a protocol counts every photo of its split.
    config.data.non_rgb = "convert"
    presets.frozen_mobilenet_v2(config)
    # The descriptions are longer than other sets' captions.
    config.data.max_tokens = 80
    presets.system(config, choice, "configs/iaprtc12.py", vsepp="lmh")
    return config
