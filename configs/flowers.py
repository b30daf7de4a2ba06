"""Oxford Flowers-102, kinds of flowers and captions of them, with a frozen MobileNetV2.

configs/flowers.py[:system[,option=value...]], by default "cam", captioning and classification in
one; the other systems are those of configs/flickr8k.py. Needs --config.data.manual_dir (jpg,
imagelabels.mat and setid.mat, or TFDS' data_dir with oxford_flowers102, and beside them text_c10
with the captions) and --config.model.image.weights.
"""

from ml_collections import ConfigDict

from vse_jax import presets
from vse_jax.config import default_config


def get_config(choice: str = "cam") -> ConfigDict:
    """The config of one system and objective on Oxford Flowers-102."""
    config = default_config()
    config.data.dataset = "flowers"
    # Grey photos too: a protocol counts every photo of its split.
    config.data.non_rgb = "convert"
    presets.frozen_mobilenet_v2(config)
    presets.system(config, choice, "configs/flowers.py", vsepp="lmh")
    return config
