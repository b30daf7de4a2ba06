"""MS-COCO with a frozen MobileNetV2, on cached features.

configs/coco.py[:system[,objective=NAME][,text=bert]], with the systems and objectives of
configs/flickr8k.py. Needs --config.data.manual_dir (the photos with Karpathy's file, or TFDS'
coco_captions) and --config.model.image.weights. The test split is reported whole (coco_5k) and by
five folds (coco_1k_5fold).
"""

from ml_collections import ConfigDict

from vse_jax import presets
from vse_jax.config import default_config


def get_config(choice: str = "vsepp") -> ConfigDict:
    """The config of one system and objective on COCO."""
    config = default_config()
    config.data.dataset = "coco"
    # Grey photos too: a protocol counts every photo of its split.
    config.data.non_rgb = "convert"
    # Of 5,000: a look in between needs no more.
    config.data.validation_limit = 1000
    presets.frozen_mobilenet_v2(config)
    presets.system(config, choice, "configs/coco.py", vsepp="lmh")
    return config
