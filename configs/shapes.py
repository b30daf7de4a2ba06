"""The embedded data set: VSE++ from scratch, minutes on two cores.

configs/shapes.py[:system], where system is "vsepp".
"""

from ml_collections import ConfigDict

from vse_jax.config import ConfigError, default_config


def get_config(system: str = "vsepp") -> ConfigDict:
    """The config of one system on `shapes`."""
    if system != "vsepp":
        raise ConfigError(f"configs/shapes.py has no system {system!r}; it has 'vsepp'")
    config = default_config()
    config.data.dataset = "shapes"
    config.data.image_size = 96
    config.model.dimension = 256
    config.model.text.words = 64
    config.train.epochs = 4.0
    config.train.learning_rate = 1e-3
    config.train.warmup_epochs = 0.1
    config.train.clip_norm = 2.0
    return config
