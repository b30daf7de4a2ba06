"""The data sets a config can name: `load` loads it, by the function of its name."""

import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vse_jax.config import ConfigError, blaming, choose
from vse_jax.data import labels, snippets, subset
from vse_jax.data.split import DataError, Dataset, count_and_name, without_training
from vse_jax.protocols import PROTOCOLS

__all__ = [
    "coco",
    "cub",
    "custom",
    "flickr8k",
    "flickr30k",
    "flowers",
    "iaprtc12",
    "precomputed",
    "shapes",
]

log = logging.getLogger(__name__)

# Of the data sets that are not drawn here, the field that says where they are.
_PLACES = {
    "flickr8k": "manual_dir",
    "flickr30k": "manual_dir",
    "coco": "manual_dir",
    "iaprtc12": "manual_dir",
    "cub": "manual_dir",
    "flowers": "manual_dir",
    "custom": "path",
    "precomputed": "path",
}


def are_missing(config: ConfigDict) -> bool:
    """Whether nothing lies where the data should: loading them tells what to do, at once."""
    place = _PLACES.get(config.dataset)
    return place is not None and not os.path.exists(_needed(config, place))


def load(config: ConfigDict, seed: int) -> Dataset:
    """The data set that `data.dataset` names, under `data.protocol`, no split beyond its limit.

    With `data.labels` the classes of that file, with `data.snippets` the regions of its pictures.

    Args:
      config: the section `data`, its protocol one that `config_checks.validate` lets through.
      seed: of the run, for splits that are drawn.

    Raises:
      ConfigError: there is no such data set, or a field that it needs is not set.
      DataError: what lies there cannot be used, or has a test split of another size than the
        protocol.
    """
    dataset = choose(sys.modules[__name__], config.dataset, "data.dataset")(config, seed)
    if config.protocol is not None:
        dataset = _under(config.protocol, dataset)
    for split in ("train", "validation"):
        dataset = subset.with_limit(dataset, split, config[f"{split}_limit"])
    if config.labels is not None:
        with blaming("data.labels", DataError):
            dataset = labels.with_labels(dataset, Path(config.labels).expanduser())
    if config.snippets is not None:
        with blaming("data.snippets", DataError):
            dataset = snippets.regions(dataset, Path(config.snippets))
    if unknown := without_training(dataset):
        log.warning(
            "%s: classes without a training picture: %s", dataset.name, count_and_name(unknown)
        )
    return dataset


def shapes(config: ConfigDict, seed: int) -> Dataset:
    """Scenes of coloured shapes, drawn on first use."""
    del seed  # the scenes are the same for every run, so that results compare
    from vse_jax.data import shapes as module

    train, validation, test = config.shapes_sizes
    difficulty = module.Difficulty(
        clutter=float(config.shapes_clutter),
        hidden=float(config.shapes_hidden),
        objects=config.shapes_objects,
    )
    return module.load(
        _prepared(config),
        train=train,
        validation=validation,
        test=test,
        difficulty=difficulty,
        captions=config.shapes_captions,
    )


def flickr8k(config: ConfigDict, seed: int) -> Dataset:
    """Flickr8k from `data.manual_dir`."""
    del seed  # the splits are the official ones
    from vse_jax.data import flickr8k as module

    return _photos(config, module)


def flickr30k(config: ConfigDict, seed: int) -> Dataset:
    """Flickr30k from `data.manual_dir`."""
    del seed  # the splits are those of the files
    from vse_jax.data import flickr30k as module

    return _photos(config, module)


def coco(config: ConfigDict, seed: int) -> Dataset:
    """COCO from `data.manual_dir`."""
    del seed  # the splits are Karpathy's
    from vse_jax.data import coco as module

    return _photos(config, module, restval=config.restval)


def iaprtc12(config: ConfigDict, seed: int) -> Dataset:
    """IAPR TC-12 from `data.manual_dir`."""
    del seed  # the splits are the same for every run, so that results compare
    from vse_jax.data import iaprtc12 as module

    return _photos(config, module)


def cub(config: ConfigDict, seed: int) -> Dataset:
    """CUB-200-2011 from `data.manual_dir`."""
    del seed  # the validation split is the same for every run, so that results compare
    from vse_jax.data import cub as module

    return _photos(config, module)


def flowers(config: ConfigDict, seed: int) -> Dataset:
    """Oxford Flowers-102 from `data.manual_dir`."""
    del seed  # the splits are the official ones
    from vse_jax.data import flowers as module

    return _photos(config, module)


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
        restval=config.restval,
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
        restval=config.restval,
    )


def _under(protocol: str, dataset: Dataset) -> Dataset:
    """The data set with its test split reported by a protocol of that size."""
    wanted = PROTOCOLS[protocol].images
    found = len(dataset.splits["test"].images) if "test" in dataset.splits else 0
    if found != wanted:
        raise DataError(
            f"{dataset.name}: the test split has {found} pictures, and 'data.protocol' = "
            f"{protocol!r} is of {wanted}: bring them all (the log names what was left out), or "
            "unset it"
        )
    return dataclasses.replace(dataset, protocol=protocol)


def _photos(config: ConfigDict, module: Any, **options: Any) -> Dataset:
    """Photos and captions as released, from the folder that the config names."""
    return module.load(
        _needed(config, "manual_dir", f". {module.HELP}"),
        _prepared(config),
        bad_share=config.bad_share,
        non_rgb=config.non_rgb,
        **options,
    )


def _needed(config: ConfigDict, field: str, advice: str = "") -> str:
    if config[field] is None:
        raise ConfigError(
            f"config field 'data.{field}' is not set; {config.dataset!r} needs it{advice}"
        )
    return os.path.expanduser(config[field])


def _prepared(config: ConfigDict) -> str:
    """Where prepared data go."""
    return os.path.expanduser(config.data_dir)
