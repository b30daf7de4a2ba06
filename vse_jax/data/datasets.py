"""The data sets a config can name: each function loads one, as `config.data` says."""

import os

from ml_collections import ConfigDict

from vse_jax.config import ConfigError
from vse_jax.data.split import Dataset

__all__ = ["custom", "flickr8k", "precomputed", "shapes"]


# Of the data sets that are not drawn here, the field that says where they are.
_PLACES = {"flickr8k": "manual_dir", "custom": "path", "precomputed": "path"}


def are_missing(config: ConfigDict) -> bool:
    """Whether nothing lies where the data should: loading them tells what to do, at once."""
    place = _PLACES.get(config.dataset)
    return place is not None and not os.path.exists(_needed(config, place))


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
        _needed(config, _PLACES["flickr8k"]),
        _prepared(config),
        bad_share=config.bad_share,
        non_rgb=config.non_rgb,
    )


def custom(config: ConfigDict, seed: int) -> Dataset:
    """The pictures and captions that the file `data.path` lists, read in place."""
    from vse_jax.data import custom as module

    return module.load(
        _needed(config, _PLACES["custom"]),
        _prepared(config),
        images=None if config.images is None else os.path.expanduser(config.images),
        seed=seed,
        bad_share=config.bad_share,
        non_rgb=config.non_rgb,
    )


def precomputed(config: ConfigDict, seed: int) -> Dataset:
    """The folder of features `data.path`, or the captions it lists with `data.features`."""
    from vse_jax.data import precomputed as module

    return module.load(
        _needed(config, _PLACES["precomputed"]),
        _prepared(config),
        features=None if config.features is None else os.path.expanduser(config.features),
        seed=seed,
        bad_share=config.bad_share,
    )


def _needed(config: ConfigDict, field: str) -> str:
    if config[field] is None:
        raise ConfigError(f"config field 'data.{field}' is not set; {config.dataset!r} needs it")
    return os.path.expanduser(config[field])


def _prepared(config: ConfigDict) -> str:
    """Where prepared data go."""
    return os.path.expanduser(config.data_dir)
