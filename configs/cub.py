"""CUB-200-2011, kinds of birds and captions of them, with a frozen MobileNetV2.

configs/cub.py[:system[,option=value...]], by default "cam", captioning and classification in one;
the other systems are those of configs/flickr8k.py. Needs --config.data.manual_dir (the folder
CUB_200_2011, or TFDS' data_dir with caltech_birds2011, and beside it text_c10 with the captions)
and --config.model.image.weights.
"""

from ml_collections import ConfigDict

from vse_jax import presets
from vse_jax.config import default_config


def get_config(choice: str = "cam") -> ConfigDict:
    """The config of one system and objective on CUB-200-2011."""
    config = default_config()
    config.data.dataset = "cub"
    # Grey photos too: a protocol counts every photo of its split.
    config.data.non_rgb = "convert"
    presets.frozen_mobilenet_v2(config)
    presets.system(config, choice, "configs/cub.py", vsepp="lmh")
    return config
