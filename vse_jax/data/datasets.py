"""The data sets a config can name: each function loads one, as `config.data` says."""

import os

from ml_collections import ConfigDict

from vse_jax.config import ConfigError
from vse_jax.data.split import Dataset

__all__ = ["custom", "flickr8k", "shapes"]


def shapes(config: ConfigDict, seed: int) -> Dataset:
    """Scenes of coloured shapes, drawn on first use."""
    del seed  # the scenes are the same for every run, so that results compare
    from vse_jax.data import shapes as module

    train, validation, test = config.shapes_sizes
    return module.load(_prepared(config), train=train, validation=validation, test=test)


def flickr8k(config: ConfigDict, seed: int) -> Dataset:
    """Flickr8k from `data.manual_dir`."""
    del seed  # the splits are the official ones
    from vse_jax.data import flickr8k as module

    return module.load(
        _needed(config, "manual_dir"),
        _prepared(config),
        bad_share=config.bad_share,
        non_rgb=config.non_rgb,
    )


def custom(config: ConfigDict, seed: int) -> Dataset:
    """The pictures and captions that the file `data.path` lists, read in place."""
    from vse_jax.data import custom as module

    return module.load(
        _needed(config, "path"),
        _prepared(config),
        seed=seed,
        bad_share=config.bad_share,
        non_rgb=config.non_rgb,
    )


def _needed(config: ConfigDict, field: str) -> str:
    if config[field] is None:
        raise ConfigError(f"config field 'data.{field}' is not set; {config.dataset!r} needs it")
    return os.path.expanduser(config[field])


def _prepared(config: ConfigDict) -> str:
    """Where prepared data go."""
    return os.path.expanduser(config.data_dir)
