"""Your own pictures and captions, with a frozen MobileNetV2; or features of regions instead.

configs/custom.py:PATH[,system[,objective=NAME][,text=bert]], where PATH is a JSONL ({"image": ...,
"captions": [...]}), a CSV (image,caption), a COCO captions JSON or a Karpathy JSON; systems as in
configs/flickr8k.py. Needs --config.model.image.weights, a folder or a hub name; the pictures are
read where they are. No pictures and no weights are needed with --config.data.features, features of
them that a detector or scripts/extract_features.py wrote, nor where PATH is a folder with
{train,dev,test}_ims.npy and {train,dev,test}_caps.txt. --config.data.protocol names what a test
split of COCO's, Flickr30k's or Flickr8k's pictures is reported by, such as coco_5k.
"""

import os

from ml_collections import ConfigDict

from vse_jax import presets
from vse_jax.config import ConfigError, default_config, without_backbone


def get_config(choice: str | None = None) -> ConfigDict:
    """The config for the file that `choice` begins with."""
    path, system = choice or "", "vsepp"
    for place, letter in enumerate(path):
        # The path may have commas of its own.
        if letter == "," and presets.is_choice(path[place + 1 :]):
            path, system = path[:place], path[place + 1 :]
            break
    if presets.is_choice(path) and not os.path.exists(path):
        raise ConfigError(f"configs/custom.py takes the file first: configs/custom.py:PATH,{path}")
    config = default_config()
    config.data.dataset = "custom"
    config.data.path = path or None
    presets.frozen_mobilenet_v2(config)
    presets.system(config, system, "configs/custom.py", vsepp="lmh")
    if os.path.isdir(os.path.expanduser(path)):
        without_backbone(config)
    return config
