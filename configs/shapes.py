"""The embedded data set, from scratch, in minutes on two cores.

configs/shapes.py[:system[,objective=NAME][,text=bert]], with the systems and objectives of
configs/flickr8k.py. "vsepp" (one vector a picture, one a sentence) has "infonce" as its default
here, for it learns fastest from nothing; "lmh", "lseh" and "lsh" are the hinge with the hardest
negatives, with the hardest by what captions mean too, and with all; "sigmoid" tells right pairs
from wrong ones. Networks of regions look at the whole grid of the backbone, "dvsa" at the boxes of
the objects. "multimodal_rnn" writes captions, "cam" tells the shape of the largest object too.
"""

from ml_collections import ConfigDict

from vse_jax import presets
from vse_jax.config import default_config


def get_config(choice: str = "vsepp") -> ConfigDict:
    """The config of one system and objective on `shapes`."""
    config = default_config()
    config.data.dataset = "shapes"
    config.data.image_size = 96
    config.model.dimension = 256
    config.model.image.features = "grid"
    config.model.image.pooling = "mean_max"
    config.model.text.words = 64
    config.model.text.bidirectional = True
    config.model.text.features = "words"
    config.model.text.pooling = "max"
    config.train.epochs = 2.5
    config.train.batch_size = 64
    config.train.learning_rate = 1e-3
    config.train.warmup_epochs = 0.1
    config.train.clip_norm = 2.0
    config.train.validate_every = 0.5
    presets.system(config, choice, "configs/shapes.py", vsepp="infonce")
    if config.model.network == "dvsa":
        _boxes_by_adam(config)
    if config.model.network == "multimodal_rnn":
        _few_words_by_adam(config)
    if config.model.network == "cam":
        _few_words_by_adam(config)
        config.model.dimension = 256
        config.train.learning_rate = 1e-3
    return config


def _boxes_by_adam(config: ConfigDict) -> None:
    """The boxes of the objects as regions, for a backbone that starts from nothing.

    By the published rule, descent with momentum, it collapsed within 160 steps: 2 x margin a pair.
    """
    config.model.image.features = "boxes"
    config.train.optimizer = "adam"
    config.train.learning_rate = 1e-3
    config.train.clip_value = None
    config.train.clip_norm = 2.0
    config.train.epochs = 4.0


def _few_words_by_adam(config: ConfigDict) -> None:
    """A small captioner without dropout.

    As wide as published and with dropout, an LSTM learned to write one caption for all pictures.
    """
    config.model.hidden = 128
    config.model.text.words = 64
    config.model.captioner.dropout = 0.0
    config.train.optimizer = "adam"
    config.train.learning_rate = 3e-3
    config.train.epochs = 4.0
