"""The systems, as settings of a config: what the files of `configs/` share."""

from ml_collections import ConfigDict


def frozen_mobilenet_v2(config: ConfigDict) -> None:
    """Pictures as the public MobileNetV2 sees them: features of length 1, computed once."""
    config.model.image.backbone = "mobilenet_v2"
    config.model.image.weights = "google/mobilenet_v2_1.0_224"
    config.model.image.normalize_features = True
    config.train.freeze = (("image/backbone/.*", None),)


def vsepp(config: ConfigDict) -> None:
    """VSE++ on features, with the training that Flickr8k's validation split preferred.

    Width, batch size, margin and hardest negatives are the defaults, as published; what
    differs keeps it from collapsing at first and from overfitting later. Source: Faghri et
    al., VSE++, BMVC 2018.
    """
    config.data.max_tokens = 32
    config.model.image.dropout = 0.1
    config.model.text.dropout = 0.2
    config.objective.triplet.warmup_epochs = 2.0
    config.objective.triplet.warmup = "infonce"
    config.train.epochs = 12.0
    config.train.learning_rate = 5e-4
    config.train.clip_norm = 2.0
    config.train.ema = 0.998
