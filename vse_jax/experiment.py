"""A run made ready: data, tokenizer, model and devices, from a config and a workdir."""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vse_jax import (
    assembly,
    checkpoint,
    config,
    config_checks,
    optimizer,
    parallel,
    train_step,
    workdir,
)
from vse_jax.caption_writer import CaptionWriter, special_tokens
from vse_jax.captioning.beam_search import check_beams
from vse_jax.data import box_files, semantics, subset, tokenizer
from vse_jax.data.split import DataError, Dataset, count_and_name
from vse_jax.encode import Encoder
from vse_jax.evaluators import judgement
from vse_jax.frozen_features import FrozenFeatures
from vse_jax.models.backbones.weights import digest

if TYPE_CHECKING:
    from vse_jax.data import pipeline

log = logging.getLogger(__name__)


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
      writer: of captions, likewise; None of a model that compares.
    """

    config: ConfigDict
    workdir: Path
    devices: parallel.Devices
    dataset: Dataset
    tokenizer: tokenizer.Tokenizer
    built: assembly.Built
    examples: "dict[str, pipeline.Examples]"
    encoder: Encoder
    writer: CaptionWriter | None = None


def prepare(conf: ConfigDict, folder: Path, *, training: bool = False) -> Experiment:
    """Validates the config, claims the workdir, loads data, builds the model, caches features.

    Args:
      conf: of the run.
      folder: its workdir.
      training: whether batches will be trained on, which the devices must share equally.

    Raises:
      ConfigError, WorkdirError, DataError, WeightsError, EvaluationError: for the user's mistakes.
    """
    devices = parallel.Devices.all(conf.parallel)
    conf = _validated(conf, devices.count if training else 1)
    # What can be told at once is told before minutes of work.
    begun = folder if workdir.check(folder, conf) else None
    start = _start(conf, begun)
    for name, read in judgement.READERS.items():
        if conf.evaluate[name] is not None:
            read(conf.evaluate[name])
    dataset, frozen = _loaded(conf)
    given = dataset.splits["train"].features
    width = None if given is None else given.width
    if width is not None:
        # What was taken to be right until the data told it.
        conf = assembly.with_width_of_towers(conf, width)
    if conf.objective.quantizer.weight:
        config_checks.check_codes(
            conf.objective.quantizer.codes, len(dataset.splits["train"].images)
        )
    words = _tokenizer(conf, dataset, begun, start)
    examples = _examples(conf, dataset, words)
    if assembly.writes_captions(conf):
        _check_captions(conf, words)
    known = assembly.Words.of(words, conf, len(dataset.classes))
    pretrained = _with_words(
        assembly.build_model(conf, known, frozen, width), conf, words, examples["train"]
    )
    built = pretrained
    if start is not None:
        built = assembly.with_variables(pretrained, start.variables, str(start.folder), start.parts)
    weights = {
        side: None if conf.model[side].weights is None else digest(conf.model[side].weights)
        for side in assembly.BACKBONES
    }
    encoder = Encoder(built.model, devices)
    meaning, meant = _semantics(conf, dataset, training, begun)
    examples["train"] = dataclasses.replace(examples["train"], semantics=meant)
    origin = {
        "data": dataset.fingerprint,
        "weights": weights,
        "semantics": meaning,
        "start_from": None if start is None else start.digest,
        "sources": built.sources._asdict(),
        "words": known._asdict(),
        "features": width,
        "classes": list(dataset.classes) if assembly.classifies(conf) else [],
    }
    examples = FrozenFeatures(conf, devices, built, encoder, examples).of(
        assembly.features_are_cached(conf, frozen),
        dataset.fingerprint,
        {side: _trained_backbone(pretrained, built, side) or weights[side] for side in weights},
    )
    # Not before: what went wrong until here leaves the workdir free for another config.
    if parallel.is_first_process():
        workdir.claim(folder, conf, words.to_json(), origin)
    parallel.barrier("claim")
    writer = CaptionWriter(built.model, devices) if assembly.writes_captions(conf) else None
    return Experiment(conf, folder, devices, dataset, words, built, examples, encoder, writer)


def _validated(conf: ConfigDict, devices: int) -> ConfigDict:
    """The config with absolute paths and what it leaves open filled in, as far as is known yet."""
    conf = config.resolved(conf)
    config_checks.validate(conf, devices)
    assembly.backbone_of(conf)
    return assembly.with_width_of_towers(config.with_absolute_paths(conf))


def _loaded(conf: ConfigDict) -> tuple[Dataset, assembly.Frozen]:
    """The data, and which backbones are frozen: missing data are told of before missing weights."""
    from vse_jax.data import datasets  # here: it imports TensorFlow

    if datasets.are_missing(conf.data):
        datasets.load(conf.data, conf.seed)
    frozen = assembly.frozen_backbones(conf)
    dataset = parallel.first_process_first("data", lambda: datasets.load(conf.data, conf.seed))
    if conf.model.image.features == "boxes" and conf.data.dataset != "precomputed":
        with config.blaming("data.boxes", DataError):
            dataset = box_files.with_regions(
                dataset, None if conf.data.boxes is None else Path(conf.data.boxes)
            )
    if assembly.classifies(conf):
        _check_classes(conf, dataset)
    else:
        dataset = subset.with_captions(dataset)
    _describe(dataset)
    return dataset, frozen


def _check_classes(conf: ConfigDict, dataset: Dataset) -> None:
    """Raises DataError where training pictures have no two classes; counts those without one."""
    known = dataset.splits["train"].labels
    shown = 0 if known is None else len(np.unique(known[known >= 0]))
    if shown < 2:
        raise DataError(
            f"config field 'objective.classification.weight' is "
            f"{conf.objective.classification.weight}, but the training pictures of {dataset.name} "
            f"are of {shown} classes: bring labels of two or more ('data.labels', or \"label\" in "
            "your own file), or set it to 0"
        )
    without = [
        image
        for split in dataset.splits.values()
        if split.labels is not None
        for image, label in zip(split.images, split.labels, strict=True)
        if label < 0
    ]
    if without:
        log.info("%s: without a class, for captions: %s", dataset.name, count_and_name(without))


def _with_words(
    built: assembly.Built,
    conf: ConfigDict,
    words: tokenizer.Tokenizer,
    examples: "pipeline.Examples",
) -> assembly.Built:
    """The model with what is known of words: the vectors that the config names, how frequent."""
    if assembly.writes_captions(conf):
        targets = examples.tokens[:, 1:][examples.token_mask[:, 1:]]
        # A word never asked for counts as if asked for once.
        counts = np.maximum(np.bincount(targets, minlength=words.vocabulary), 1)
        return assembly.with_word_frequencies(built, np.log(counts / counts.sum()))
    if conf.model.text.glove is None:
        return built
    vectors, found = tokenizer.read_glove(conf.model.text.glove, words, conf.model.text.words)
    log.info("word vectors: %d of %d words found", found.sum(), len(found))
    return assembly.with_word_vectors(built, vectors, found)


class Start(NamedTuple):
    """A trained model to start from.

    Attributes:
      folder: workdir of its variables.
      variables: averaged `params`, if it has such, and `batch_stats`.
      digest: of those that the training began with.
      parts: pattern of the names of those that are taken.
    """

    folder: Path
    variables: dict[str, Any]
    digest: str
    parts: str = config_checks.WHOLE


def _start(conf: ConfigDict, begun: Path | None) -> Start | None:
    """What `train.start_from` names; None where it is unset.

    A workdir with a checkpoint of its own needs that model no more: what is frozen is in it too.
    """
    if conf.train.start_from is None:
        return None
    if begun is not None and checkpoint.any_in(begun / "checkpoints" / "last"):
        own = checkpoint.read_newest(begun / "checkpoints" / "last")
        digest = workdir.read_origin(begun)["start_from"]
        return Start(begun, train_step.evaluation_variables(own), digest)
    source = Path(conf.train.start_from)
    with config.blaming("train.start_from", workdir.WorkdirError, checkpoint.CheckpointError):
        workdir.read_config(source)
        best = checkpoint.read_newest(source / "checkpoints" / "best")
    variables = train_step.evaluation_variables(best)
    log.info("starting from the parameters of %s at its step %d", source, best["step"])
    return Start(source, variables, _digest(variables), conf.train.start_parts)


def _trained_backbone(pretrained: assembly.Built, built: assembly.Built, side: str) -> str | None:
    """The digest of a backbone that is not the pretrained one any more; None of one that is."""
    if built is pretrained:
        return None
    old, new = (
        _digest({kind: tree.get(side, {}).get(assembly.BACKBONES[side], {}) for kind, tree in v})
        for v in (pretrained.variables.items(), built.variables.items())
    )
    return None if old == new else new


def _digest(variables: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the names and values of variables."""
    total = hashlib.sha256()
    for name, value in sorted(optimizer.flatten(variables).items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(value).tobytes())
    return total.hexdigest()


def _tokenizer(
    conf: ConfigDict, dataset: Dataset, begun: Path | None, start: Start | None
) -> tokenizer.Tokenizer:
    """That of the workdir, if begun, or of the model to start from; of text weights; or trained."""
    preset, most = conf.data.tokenizer, conf.data.max_tokens
    if begun is not None:
        workdir.check_tokenizer(begun)
        return tokenizer.load(begun / workdir.TOKENIZER, preset, most)
    if start is None or start.parts != config_checks.WHOLE:
        if preset == "pretrained":
            return tokenizer.pretrained(conf.model.text.weights, most)
        return tokenizer.train(dataset.splits["train"].captions, preset, most)
    with config.blaming("train.start_from", workdir.WorkdirError):
        workdir.check_tokenizer(start.folder)
        other = workdir.read_config(start.folder).data.tokenizer
        if other != preset:
            raise workdir.WorkdirError(
                f"{start.folder} reads words by data.tokenizer={other}, this run by {preset}: "
                "start from a model that reads them likewise, or with train.start_parts from a "
                "part that reads none"
            )
        if preset == "pretrained":
            words = tokenizer.pretrained(conf.model.text.weights, most)
            workdir.check_tokenizer(start.folder, words.to_json())
            return words
    log.info("words are those of %s", start.folder)
    return tokenizer.load(start.folder / workdir.TOKENIZER, preset, most)


def _check_captions(conf: ConfigDict, words: tokenizer.Tokenizer) -> None:
    """Raises ConfigError where too few words are known for captions to be searched for."""
    with config.blaming("evaluate.beams", ValueError):
        special = special_tokens(words)
        count = words.vocabulary - len({*special.banned, special.end})
        check_beams(conf.evaluate.beams, count, conf.data.max_tokens - 1)


def _describe(dataset: Dataset) -> None:
    for name, split in dataset.splits.items():
        log.info(
            "%s %s: %d pictures, %d captions",
            dataset.name, name, len(split.images), len(split.captions),
        )  # fmt: skip


def _examples(
    conf: ConfigDict, dataset: Dataset, words: tokenizer.Tokenizer
) -> "dict[str, pipeline.Examples]":
    from vse_jax.data import pipeline

    examples = {}
    for name, split in dataset.splits.items():
        if not len(split.images):
            raise DataError(f"{dataset.name}: the {name} split is empty")
        needs_captions = not assembly.classifies(conf) or assembly.writes_captions(conf)
        if needs_captions and not len(split.captions):
            raise DataError(
                f"{dataset.name}: none of the {len(split.images)} pictures of the {name} split has "
                "a caption: bring some, or tell classes alone (objective=classifier)"
            )
        tokens, mask = words.tokenize(split.captions)
        pictures = pipeline.Pictures(conf.data.image_size, conf.data.crop_area, conf.data.flip)
        examples[name] = pipeline.Examples(
            split, tokens, mask, pictures, split.features, pad=words.pad
        )
    return examples


def _semantics(
    conf: ConfigDict, dataset: Dataset, training: bool, begun: Path | None
) -> tuple[str | None, np.ndarray | None]:
    """What the training captions' vectors are made of, as a digest, and these, to train on.

    (None, None) where no margin depends on them. Of those computed here the captions are digested:
    another machine's may differ in their last bits. A workdir that was begun and is only measured
    needs none, and keeps its digest.
    """
    if begun is not None and not training:
        return workdir.read_origin(begun).get("semantics"), None
    if not (conf.objective.triplet.weight and conf.objective.triplet.semantic):
        return None, None
    captions = dataset.splits["train"].captions
    if conf.data.semantics is not None:
        with config.blaming("data.semantics", DataError):
            found = semantics.from_file(conf.data.semantics, captions)
        return hashlib.sha256(found.tobytes()).hexdigest(), found
    if not training:
        return semantics.origin(captions), None
    return semantics.origin(captions), parallel.first_process_first(
        "semantics", lambda: semantics.of_captions(captions, conf.data.data_dir)
    )
