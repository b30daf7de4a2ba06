"""The check of a config: every field by itself, then those that must agree with each other."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vse_jax.config import ConfigError, check_name, check_type, either, fields, known, nearest
from vse_jax.network_checks import CAPTIONERS, LEAP, RANKING, check_network
from vse_jax.protocols import OWN, PROTOCOLS

CHOICES: Mapping[str, tuple[str, ...]] = {
    "parallel": ("shard_map", "pmap"),
    "precision": ("float32", "bfloat16"),
    "data.epoch": ("captions", "images"),
    "data.tokenizer": ("vse", "dvsa", "pretrained"),
    "data.non_rgb": ("skip", "convert"),
    "model.similarity": ("dot", "negative_euclidean"),
    "model.image.features": ("pooled", "grid", "pyramid", "boxes"),
    "model.image.pooling": ("mean", "max", "mean_max"),
    "model.image.scaled_over": ("regions", "channels"),
    "model.captioner.cell": ("lstm", "rnn"),
    "model.text.features": ("pooled", "words"),
    "model.text.pooling": ("mean", "max", "mean_max"),
    "objective.triplet.negatives": ("hardest", "all"),
    "objective.triplet.warmup": ("all", "infonce", "grouped"),
    "objective.infonce.exchange": ("gather", "ring"),
    "objective.sigmoid.exchange": ("gather", "ring"),
    "objective.leap.negatives": ("hardest", "all"),
    "objective.leap.warmup": ("all", "infonce"),
    "objective.leap.rule": ("fixed", "gap", "active"),
    "objective.leap.quantized_distance": ("asymmetric", "symmetric"),
    "objective.embedding.kind": ("contrast", "cosine"),
    "objective.disagreement.kind": ("cosine", "l2", "kl"),
    "objective.center.kind": ("table", "batch"),
    "objective.quantizer.rule": ("average", "gradient"),
    "train.optimizer": ("adam", "rmsprop", "sgd"),
    "train.schedule": ("cosine", "constant", "step"),
}
POSITIVE = (
    "data.image_size", "data.max_tokens", "data.train_limit", "data.validation_limit",
    "model.dimension", "model.hidden", "model.image.cells", "model.text.words",
    "objective.triplet.chunk", "objective.triplet.temperature", "objective.infonce.chunk",
    "objective.infonce.temperature", "objective.sigmoid.temperature", "objective.sigmoid.chunk",
    "objective.embedding.temperature",
    "objective.leap.margin", "objective.leap.least",
    "objective.leap.pair_low", "objective.leap.chunk", "objective.leap.temperature",
    "objective.center.alpha", "objective.quantizer.parts", "objective.multitask.temperature",
    "train.epochs", "train.steps", "train.batch_size", "train.accumulate", "train.learning_rate",
    "train.clip_value",
    "train.clip_norm", "train.log_every", "train.checkpoint_every", "train.validate_every",
    "evaluate.batch_size",
)  # fmt: skip
# Data sets of whatever is brought; the others have protocols of their own.
BROUGHT = ("custom", "precomputed")
# Of a scene of "shapes": the words of its captions count so far.
MOST_OBJECTS = 8
CAPTION_KINDS = ("whole", "part", "relation", "count", "vague")
# Of `train.start_parts`: the whole model.
WHOLE = ".*"
# Fields whose value is at least the first and below, or at, the second.
RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "data.shapes_clutter": (0.0, 8.0),
    "data.shapes_hidden": (0.35, 0.7),
    "data.bad_share": (0.0, 1.0),
    "model.image.dropout": (0.0, 0.99),
    "model.image.drop_parts": (0.0, 0.99),
    "model.text.dropout": (0.0, 0.99),
    "model.text.alter": (0.0, 0.99),
    "model.captioner.dropout": (0.0, 0.99),
    "objective.generation.weight": (0.0, float("inf")),
    "objective.classification.weight": (0.0, float("inf")),
    "objective.disagreement.weight": (0.0, float("inf")),
    "objective.embedding.weight": (0.0, float("inf")),
    "objective.triplet.weight": (0.0, float("inf")),
    "objective.infonce.weight": (0.0, float("inf")),
    "objective.sigmoid.weight": (0.0, float("inf")),
    "objective.sigmoid.bias": (-1000.0, 1000.0),
    "objective.leap.weight": (0.0, float("inf")),
    "objective.leap.quantized": (0.0, float("inf")),
    "objective.leap.rho": (0.0, 1.0),
    "objective.leap.kappa": (0.0, float("inf")),
    "objective.leap.active_share": (0.0, 1.0),
    "objective.leap.warmup_epochs": (0.0, float("inf")),
    "objective.center.weight": (0.0, float("inf")),
    "objective.center.alpha": (0.0, 1.0),
    "objective.quantizer.weight": (0.0, float("inf")),
    "objective.quantizer.beta": (0.0, float("inf")),
    "objective.quantizer.codes": (2, 256),
    "objective.quantizer.decay": (0.0, 0.999999),
    "objective.quantizer.rate": (0.0, float("inf")),
    "objective.quantizer.dead_share": (0.0, 0.99),
    "objective.multitask.weight": (0.0, float("inf")),
    "objective.triplet.margin": (0.0, float("inf")),
    "objective.triplet.semantic": (0.0, float("inf")),
    "objective.triplet.warmup_epochs": (0.0, float("inf")),
    "train.decay_factor": (0.0, 1.0),
    "train.momentum": (0.0, 0.999999),
    "train.rms_decay": (0.0, 0.999999),
    "train.warmup_epochs": (0.0, float("inf")),
    "train.weight_decay": (0.0, float("inf")),
    "train.ema": (0.0, 0.999999),
    "train.refit_codes": (0, 1000),
    "evaluate.queries": (0, 1000),
    "evaluate.beams": (1, 1000),
    "evaluate.length_power": (0.0, 10.0),
    "evaluate.beta": (0.0, float("inf")),
}


def validate(config: ConfigDict, devices: int = 1) -> None:
    """Raises ConfigError at the first field that is unknown, mistyped or impossible.

    Args:
      config: to check.
      devices: over which batches are split.
    """
    given = dict(fields(config))
    for name in given:
        check_name(name)
    for name in known():
        if name not in given:
            raise ConfigError(f"config field {name!r} is missing; start from default_config()")
    for name, value in given.items():
        check_type(name, value)
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            raise ConfigError(
                f"config field {name!r} is {given[name]!r}{nearest(given[name], choices)}; "
                f"it may be {either(choices)}"
            )
    for name in POSITIVE:
        if given[name] is not None and not given[name] > 0:
            raise ConfigError(f"config field {name!r} is {given[name]}; it must be above 0")
    for name, (low, high) in RANGES.items():
        if not low <= given[name] <= high:
            raise ConfigError(
                f"config field {name!r} is {given[name]}; it must lie in [{low}, {high}]"
            )
    _check_together(given, devices)


def _check_together(given: Mapping[str, Any], devices: int) -> None:
    """Raises ConfigError where fields contradict each other."""
    size, parts = given["train.batch_size"], given["train.accumulate"]
    if size % devices:
        raise ConfigError(
            f"config field 'train.batch_size' is {size}, which {devices} devices cannot share "
            "equally"
        )
    if size // devices % parts:
        raise ConfigError(
            f"config field 'train.accumulate' is {parts}, and a device's {size // devices} pairs "
            "of a batch cannot be cut into as many equal parts"
        )
    for name in ("data.crop_area", "objective.quantizer.rotate_at", "train.decay_steps"):
        if not all(isinstance(value, int | float) for value in given[name]):
            raise ConfigError(
                f"config field {name!r} is {given[name]}; it must be a tuple of numbers"
            )
    low_high = given["data.crop_area"]
    if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1] <= 1:
        raise ConfigError(
            f"config field 'data.crop_area' is {low_high}; it must be (low, high) "
            "with 0 < low <= high <= 1"
        )
    _check_features(given)
    _check_protocol(given)
    check_network(given)
    _check_shapes(given)
    if given["data.max_tokens"] < 3:
        raise ConfigError(
            "config field 'data.max_tokens' must be at least 3: <start>, a word, <end>"
        )
    if given["model.network"] not in CAPTIONERS and not any(given[name] for name in RANKING):
        raise ConfigError(
            "no hinge and no cross-entropy over the batch has a weight, and nothing else tells "
            f"pictures apart: set {either(RANKING)} above 0"
        )
    _check_semantics(given)
    if given["train.start_from"] == "":
        raise ConfigError(
            "config field 'train.start_from' is empty: name the workdir of a trained model, or "
            "leave it unset"
        )
    try:
        re.compile(given["train.start_parts"])
    except re.error as error:
        raise ConfigError(
            f"config field 'train.start_parts' is {given['train.start_parts']!r}: not a pattern: "
            f"{error}"
        ) from error
    if given["train.start_from"] is None and given["train.start_parts"] != WHOLE:
        raise ConfigError(
            f"config field 'train.start_parts' is {given['train.start_parts']!r}, but "
            "'train.start_from' names no model to take them from: set it"
        )
    _check_leap(given)
    for rule in given["train.freeze"]:
        pair = isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str)
        if not pair or not (rule[1] is None or isinstance(rule[1], int | float)):
            raise ConfigError(
                f"config field 'train.freeze' holds {rule!r}; each entry must be "
                "(pattern, factor or None)"
            )
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ConfigError(
                f"config field 'train.freeze' holds {rule[0]!r}: not a pattern: {error}"
            ) from error


def _check_shapes(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where there can be no such scenes, or not so many."""
    sizes, objects = given["data.shapes_sizes"], given["data.shapes_objects"]
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ConfigError(
            f"config field 'data.shapes_sizes' is {sizes}; it must be three numbers above 0: "
            "train, validation, test"
        )
    whole = len(objects) == 2 and all(isinstance(number, int) for number in objects)
    if not whole or not 1 <= objects[0] <= objects[1] <= MOST_OBJECTS:
        raise ConfigError(
            f"config field 'data.shapes_objects' is {objects}; it must be (fewest, most), whole "
            f"numbers with 1 <= fewest <= most <= {MOST_OBJECTS}"
        )
    kinds = given["data.shapes_captions"]
    if not kinds or not set(kinds) <= set(CAPTION_KINDS):
        raise ConfigError(
            f"config field 'data.shapes_captions' is {kinds}; it must be one or more of "
            f"{', '.join(CAPTION_KINDS)}"
        )


def _check_semantics(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where what captions mean is given, and no margin heeds it."""
    semantic = given["objective.triplet.semantic"]
    if semantic and not given["objective.triplet.weight"]:
        raise ConfigError(
            f"config field 'objective.triplet.semantic' is {semantic}, but the hinge has no "
            "weight: set it to 0, or 'objective.triplet.weight' above 0"
        )
    if given["data.semantics"] is not None and not semantic:
        raise ConfigError(
            f"config field 'data.semantics' is {given['data.semantics']!r}, which only a semantic "
            "margin reads: unset it, or set 'objective.triplet.semantic' above 0 (objective=lseh)"
        )


def _check_features(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where features and what makes them contradict each other."""
    dataset, backbone = given["data.dataset"], given["model.image.backbone"]
    if (dataset == "precomputed") != (backbone == "none"):
        right = "'none'" if dataset == "precomputed" else "one of vse_jax.models.backbones"
        raise ConfigError(
            f"config field 'model.image.backbone' is {backbone!r}, but 'data.dataset' is "
            f"{dataset!r}: features have no backbone, pictures need one; set it to {right}"
        )
    if given["data.features"] is not None and dataset != "precomputed":
        raise ConfigError(
            f"config field 'data.features' is set, but 'data.dataset' is {dataset!r}; features of "
            "pictures that a file lists are the data set 'precomputed'"
        )
    boxes = given["model.image.features"] == "boxes"
    moved = given["data.flip"] or given["data.crop_area"] != (1.0, 1.0)
    if boxes and moved:
        raise ConfigError(
            "config fields 'data.flip' and 'data.crop_area' change pictures, and the boxes of "
            "'model.image.features' = 'boxes' would stay where they are: unset them"
        )
    if given["data.boxes"] is not None and not boxes:
        raise ConfigError(
            f"config field 'data.boxes' is {given['data.boxes']!r}, but 'model.image.features' is "
            f"{given['model.image.features']!r}: set the latter to 'boxes'"
        )
    _check_snippets(given)
    if dataset == "precomputed" and moved:
        raise ConfigError(
            "config fields 'data.flip' and 'data.crop_area' change pictures, and the data set "
            "'precomputed' has only features: unset them"
        )


def _check_snippets(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where regions are to be pictures of their own and cannot be."""
    if given["data.snippets"] is None:
        return
    told = f"config field 'data.snippets' is {given['data.snippets']!r}"
    if given["data.dataset"] == "precomputed":
        raise ConfigError(
            f"{told}, whose boxes are cut out of pictures, but the data set 'precomputed' has only "
            "features: unset it"
        )
    if given["model.image.features"] == "boxes":
        raise ConfigError(
            f"{told}: each region is a picture of its own then, which has no boxes; set "
            "'model.image.features' to 'pooled'"
        )
    for name in ("data.labels", "evaluate.expert", "evaluate.crowdflower"):
        if given[name] is not None:
            raise ConfigError(f"{told}, and {name!r} is of whole pictures: unset one of them")


def _check_protocol(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where the test split cannot be reported by the protocol named."""
    name, dataset = given["data.protocol"], given["data.dataset"]
    if name is None:
        return
    if name not in PROTOCOLS:
        raise ConfigError(
            f"config field 'data.protocol' is {name!r}{nearest(name, PROTOCOLS)}; it may be "
            f"{either(PROTOCOLS)}"
        )
    if dataset not in BROUGHT and name != OWN.get(dataset):
        raise ConfigError(
            f"config field 'data.protocol' is {name!r}, but 'data.dataset' is {dataset!r}, whose "
            f"protocol is its own: unset it (it is for {either(BROUGHT)})"
        )


def _check_leap(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where the fields of LEAP contradict each other."""
    rotate_at = given["objective.quantizer.rotate_at"]
    if list(rotate_at) != sorted(set(rotate_at)) or not all(0 < at < 1 for at in rotate_at):
        raise ConfigError(
            f"config field 'objective.quantizer.rotate_at' is {rotate_at}; it must be rising "
            "shares of the training, each above 0 and below 1"
        )
    between = [("least", "most"), ("pair_low", "pair_high")]
    if given["objective.leap.rule"] != "fixed":
        between += [("least", "margin"), ("margin", "most")]
    for low, high in between:
        if given[f"objective.leap.{low}"] > given[f"objective.leap.{high}"]:
            raise ConfigError(
                f"config field 'objective.leap.{low}' is {given[f'objective.leap.{low}']}, above "
                f"'objective.leap.{high}' = {given[f'objective.leap.{high}']}"
            )
    if not any(given[name] for name in LEAP):
        return
    if given["objective.leap.pair_margins"] and not given["objective.center.weight"]:
        raise ConfigError(
            "'objective.leap.pair_margins' needs centers: set 'objective.center.weight' above 0"
        )
    for name in LEAP:
        if given[name] and given["model.similarity"] != "negative_euclidean":
            raise ConfigError(
                f"config field 'model.similarity' is {given['model.similarity']!r}, but "
                f"{name!r} is {given[name]}, a term of LEAP, which learns distances: set it to "
                "'negative_euclidean'"
            )
    if given["objective.quantizer.weight"]:
        _check_codebook(given)
        return
    for name in ("objective.multitask.weight", "objective.leap.quantized"):
        if given[name]:
            raise ConfigError(
                f"config field {name!r} is {given[name]}, which needs the quantizer: set "
                "'objective.quantizer.weight' above 0"
            )


def _check_codebook(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where the quantizer does not fit embeddings or data."""
    if given["model.dimension"] % given["objective.quantizer.parts"]:
        raise ConfigError(
            f"config field 'objective.quantizer.parts' is {given['objective.quantizer.parts']}, "
            f"which does not divide 'model.dimension' = {given['model.dimension']}"
        )
    if given["data.dataset"] == "shapes":
        check_codes(given["objective.quantizer.codes"], given["data.shapes_sizes"][0])


def check_codes(codes: int, pictures: int) -> None:
    """Raises ConfigError where a codebook has more codes than there are training pictures."""
    if codes > pictures:
        raise ConfigError(
            f"config field 'objective.quantizer.codes' is {codes}, more than the {pictures} "
            "training pictures"
        )
