"""Flickr8k with a frozen MobileNetV2, on cached features.

configs/flickr8k.py[:system[,objective=NAME][,text=bert]], where system is a network, "vsepp" (the
default), "vse_infinity", "vsrn", "saf" or "sgr", or both sides pretrained, "frozen", "clip" or
"siglip", each with the objective "lmh", "lseh", "lsh", "infonce" or "sigmoid" (networks with the
first unless told otherwise, the others with "infonce"); or "leap" with "full" (the default) or one
of its parts, each with those before: "fixed" (margin), "adaptive", "centers", "quantizer",
"multitask". text=bert reads sentences by a BERT, trained further, in place of a GRU. "dvsa" ties
words to regions, with "lsh" unless told otherwise; "multimodal_rnn" writes captions. "cam" tells
classes too, those of --config.data.labels, with the objective "disagreement" (both tasks, and what
their maps disagree by), "joint", "classifier" or "captioner". Needs --config.data.manual_dir (the
photos and captions) and --config.model.image.weights.
"""

from ml_collections import ConfigDict

from vse_jax import presets
from vse_jax.config import default_config


def get_config(choice: str = "vsepp") -> ConfigDict:
    """The config of one system and objective on Flickr8k."""
    config = default_config()
    config.data.dataset = "flickr8k"
    presets.frozen_mobilenet_v2(config)
    presets.system(config, choice, "configs/flickr8k.py", vsepp="lmh")
    return config
