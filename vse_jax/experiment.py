"""A run made ready: data, tokenizer, model and devices, from a config and a workdir."""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from vse_jax import assembly, config, parallel, workdir
from vse_jax.data import features, semantics, tokenizer
from vse_jax.data.split import DataError, Dataset
from vse_jax.encode import Encoder
from vse_jax.evaluators import judgement
from vse_jax.models.backbones.weights import digest

if TYPE_CHECKING:
    from vse_jax.data import pipeline

log = logging.getLogger(__name__)
# Counts changes of decoding, resizing and backbones that change their features.
FEATURES_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The fixed pieces of a run.

    Attributes:
      config: validated.
      workdir: where its files go.
      devices: over which it is mapped.
      dataset: as loaded.
      tokenizer: of the training captions.
      built: the model and the variables it starts from.
      examples: split name -> what batches are made of.
      encoder: the towers, mapped over the devices.
    """

    config: ConfigDict
    workdir: Path
    devices: parallel.Devices
    dataset: Dataset
    tokenizer: tokenizer.Tokenizer
    built: assembly.Built
    examples: "dict[str, pipeline.Examples]"
    encoder: Encoder


def prepare(conf: ConfigDict, folder: Path, *, training: bool = False) -> Experiment:
    """Validates the config, claims the workdir, loads data, builds the model, caches features.

    Args:
      conf: of the run.
      folder: its workdir.
      training: whether batches will be trained on, which the devices must share equally.

    Raises:
      ConfigError, WorkdirError, DataError, WeightsError, EvaluationError: for the user's mistakes.
    """
    from vse_jax.data import datasets  # here: it imports TensorFlow

    devices = parallel.Devices.all(conf.parallel)
    if conf.data.dataset == "custom" and conf.data.features is not None:
        conf = conf.copy_and_resolve_references()
        config.without_backbone(conf)
    config.validate(conf, devices.count if training else 1)
    conf = config.with_absolute_paths(conf)
    # What can be told at once is told before minutes of work.
    begun = workdir.check(folder, conf)
    for name, read in judgement.READERS.items():
        if conf.evaluate[name] is not None:
            read(conf.evaluate[name])
    load = config.choose(datasets, conf.data.dataset, "data.dataset")
    if datasets.are_missing(conf.data):
        load(conf.data, conf.seed)
    assembly.backbone_of(conf)
    frozen = assembly.backbone_is_frozen(conf)
    dataset = parallel.first_process_first("data", lambda: load(conf.data, conf.seed))
    _describe(dataset)
    if conf.objective.quantizer.weight:
        config.check_codes(conf.objective.quantizer.codes, len(dataset.splits["train"].images))
    if begun:
        path = folder / workdir.TOKENIZER
        words = tokenizer.load(path, conf.data.tokenizer, conf.data.max_tokens)
    else:
        captions = dataset.splits["train"].captions
        words = tokenizer.train(captions, conf.data.tokenizer, conf.data.max_tokens)
    given = dataset.splits["train"].features
    width = None if given is None else given.width
    built = assembly.build_model(conf, words.vocabulary, frozen, width)
    if conf.model.text.glove is not None:
        vectors, found = tokenizer.read_glove(conf.model.text.glove, words, conf.model.text.words)
        built = assembly.with_word_vectors(built, vectors, found)
        log.info("word vectors: %d of %d words found", found.sum(), len(found))
    encoder = Encoder(built.model, devices)
    examples = _examples(conf, dataset, words)
    meant = _semantics(conf, dataset)
    examples["train"] = dataclasses.replace(examples["train"], semantics=meant)
    source = conf.model.image.weights
    origin = {
        "data": dataset.fingerprint,
        "weights": None if source is None else digest(source),
        "semantics": None if meant is None else hashlib.sha256(meant.tobytes()).hexdigest(),
        "backbone": built.backbone,
        "features": width,
    }
    if assembly.features_are_cached(conf, frozen):
        examples = _with_features(
            conf, devices, dataset, built, encoder, examples, origin["weights"]
        )
    # Not before: what went wrong until here leaves the workdir free for another config.
    if parallel.is_first_process():
        workdir.claim(folder, conf, words.to_json(), origin)
    parallel.barrier("claim")
    return Experiment(conf, folder, devices, dataset, words, built, examples, encoder)


def _describe(dataset: Dataset) -> None:
    for name, split in dataset.splits.items():
        log.info(
            "%s %s: %d pictures, %d captions",
            dataset.name, name, len(split.images), len(split.captions),
        )  # fmt: skip
    for reason, names in dataset.skipped.items():
        log.warning("left out, %s: %d (%s)", reason, len(names), shorten(names))


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f", ... {len(names) - most} more, all in report.json" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _examples(
    conf: ConfigDict, dataset: Dataset, words: tokenizer.Tokenizer
) -> "dict[str, pipeline.Examples]":
    from vse_jax.data import pipeline

    examples = {}
    for name, split in dataset.splits.items():
        if not len(split.images) or not len(split.captions):
            raise DataError(f"{dataset.name}: the {name} split is empty")
        tokens, mask = words.tokenize(split.captions)
        pictures = pipeline.Pictures(conf.data.image_size, conf.data.crop_area, conf.data.flip)
        examples[name] = pipeline.Examples(split, tokens, mask, pictures, split.features)
    return examples


def _semantics(conf: ConfigDict, dataset: Dataset) -> np.ndarray | None:
    """Of the training captions, where a margin depends on them."""
    if not (conf.objective.triplet.weight and conf.objective.triplet.semantic):
        return None
    captions = dataset.splits["train"].captions
    if conf.data.semantics is not None:
        return semantics.from_file(conf.data.semantics, len(captions))
    return parallel.first_process_first(
        "semantics", lambda: semantics.of_captions(captions, conf.data.data_dir)
    )


def _features_key(conf: ConfigDict, data: str, weights: str | None) -> str:
    """The name of the features of these data: another whenever they would be others."""
    return features.key(
        version=FEATURES_VERSION,
        data=data,
        backbone=conf.model.image.backbone,
        weights=weights,
        image_size=conf.data.image_size,
        features=conf.model.image.features,
        precision=conf.precision,
    )


def _with_features(
    conf: ConfigDict,
    devices: parallel.Devices,
    dataset: Dataset,
    built: assembly.Built,
    encoder: Encoder,
    examples: "dict[str, pipeline.Examples]",
    weights: str | None,
) -> "dict[str, pipeline.Examples]":
    """The same with the frozen backbone's features, computed on first use."""
    from vse_jax.data import pipeline

    key = _features_key(conf, dataset.fingerprint, weights)
    folder = features.find(conf.data.data_dir, key)
    # Every process must take the same way, or the collectives below would wait for ever.
    if not parallel.all_agree(folder is not None):
        total = sum(len(split.images) for split in dataset.splits.values())
        log.info("computing the features of %d pictures, once", total)
        variables = encoder.variables(built.variables["params"], built.variables["batch_stats"])
        size, share = devices.shared(conf.evaluate.batch_size), parallel.process_share()
        begun = time.perf_counter()

        def batches(name: str) -> Iterator[np.ndarray]:
            pixels = pipeline.image_batches(examples[name], batch_size=size, **share)
            return encoder.features(variables, pixels)

        features.write(
            conf.data.data_dir,
            key,
            {n: (len(s.images), partial(batches, n)) for n, s in dataset.splits.items()},
            store=parallel.is_first_process(),
        )
        parallel.barrier("features")
        log.info("features of %d pictures in %.0f s", total, time.perf_counter() - begun)
        folder = features.find(conf.data.data_dir, key)
    if folder is None:
        raise DataError(f"features {key} are gone from {conf.data.data_dir}; start again")
    log.info("features in %s", folder)
    return {
        name: dataclasses.replace(e, features=features.load(folder, name, len(e.split.images)))
        for name, e in examples.items()
    }
