"""Every field of a config, its default, and the check of a config against them.

`default_config()` is the one list of fields: presets in `configs/` change its values, users
set any field from the command line, and `validate` compares with it.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


class ConfigError(Exception):
    """A mistake in a config: names the field, what was met and what would be right."""


def default_config() -> ConfigDict:
    """A new config with every field at its default."""
    config = ConfigDict()
    # Of everything random: parameters, data order, augmentation, dropout.
    config.seed = 0
    # Maps the step over devices: "shard_map", or "pmap" (the same numbers, in maintenance mode).
    config.parallel = "shard_map"
    # Of the computation: "float32" or "bfloat16"; parameters and losses stay float32.
    config.precision = "float32"

    config.data = data = ConfigDict()
    # A module of vse_jax.data: "shapes", "flickr8k" or "custom".
    data.dataset = "shapes"
    # Where the data set as downloaded lies; not needed for "shapes".
    data.manual_dir = placeholder(str)
    # The file that lists your own pictures and captions ("custom").
    data.path = placeholder(str)
    # The folder that the paths in that file are relative to; unset: the file's own.
    data.images = placeholder(str)
    # Where prepared data sets and cached features go.
    data.data_dir = "~/.cache/vse_jax"
    # Training, validation and test pictures drawn for "shapes".
    data.shapes_sizes = (4000, 500, 500)
    # Pictures are resized to this many pixels a side.
    data.image_size = 224
    # Shares of a picture's area that a random training crop may keep; (1.0, 1.0): no crop.
    data.crop_area = (1.0, 1.0)
    # Whether training pictures are mirrored at random.
    data.flip = False
    # An epoch is every training caption once ("captions") or every picture once with a
    # caption drawn at random ("images").
    data.epoch = "captions"
    # Which tokenizer: "vse" (words seen 4 times, others <unk>) or "dvsa" (5 times, others dropped).
    data.tokenizer = "vse"
    # Captions are cut to this many tokens, <start> and <end> included.
    data.max_tokens = 40
    # More than this share of unusable pictures is an error; fewer are skipped and named.
    data.bad_share = 0.01
    # Grey, CMYK, palette and transparent pictures: "skip" (counted, named) or "convert".
    data.non_rgb = "skip"
    # Breaks the pairing of training captions and pictures: a control that must end at chance.
    data.shuffle_captions = False

    config.model = model = ConfigDict()
    # Width of the common space.
    model.dimension = 1024
    # Of two embeddings: "dot" (the cosine, of unit vectors) or "negative_euclidean".
    model.similarity = "dot"
    # Whether embeddings are scaled to length 1.
    model.normalize = True
    model.image = image = ConfigDict()
    # A module of vse_jax.models.backbones: "mobilenet_v2" or "small_resnet".
    image.backbone = "small_resnet"
    # Pretrained weights: a folder, a safetensors file or a Hugging Face hub name.
    image.weights = placeholder(str)
    # What the backbone hands on: "pooled" (one vector a picture) or "grid" (one a cell).
    image.features = "pooled"
    # What is projected of the features of a picture: their "mean", or "mean_max", both.
    image.pooling = "mean"
    # Whether feature vectors are scaled to length 1 first.
    image.normalize_features = False
    # Share of feature channels dropped in training.
    image.dropout = 0.0
    model.text = text = ConfigDict()
    # Width of a word vector.
    text.words = 300
    # Vectors to start the words from: a file in GloVe's text format, of width model.text.words.
    text.glove = placeholder(str)
    # Share of word-vector channels dropped in training.
    text.dropout = 0.0
    # How one vector comes of the words: the "last" state, or the "max" over all.
    text.pooling = "last"
    # Whether captions are read in both directions and averaged.
    text.bidirectional = False

    config.objective = objective = ConfigDict()
    objective.triplet = triplet = ConfigDict()
    # Weight of the hinge in the loss; 0 leaves it out.
    triplet.weight = 1.0
    # Which negatives: "hardest" (LMH) or "all" (LSH).
    triplet.negatives = "hardest"
    # How much more similar a caption must be to its picture than to another.
    triplet.margin = 0.2
    # Epochs of a softer loss before the hardest ones are mined; 0 courts the collapse.
    triplet.warmup_epochs = 1.0
    # The softer loss: the hinge over "all" negatives, or the cross-entropy over them ("infonce").
    triplet.warmup = "all"
    # Divides the similarities in that cross-entropy.
    triplet.temperature = 0.05
    # Pairs scored at a time while mining: memory grows with rows x chunk.
    triplet.chunk = 4096
    objective.infonce = infonce = ConfigDict()
    # Weight of the cross-entropy over the batch (InfoNCE) in the loss; 0 leaves it out.
    infonce.weight = 0.0
    # Divides the similarities.
    infonce.temperature = 0.07
    # Pairs scored at a time: memory grows with rows x chunk.
    infonce.chunk = 4096
    objective.leap = leap = ConfigDict()
    # Weight of the adaptive-margin hinge on distances in the loss; 0 leaves LEAP out.
    leap.weight = 0.0
    # Which negatives: "hardest" or "all".
    leap.negatives = "hardest"
    # Epochs over all negatives before the hardest ones are mined.
    leap.warmup_epochs = 2.0
    # The margin at the start.
    leap.margin = 0.2
    # How it moves: "fixed", "gap" (towards kappa x (mean d_neg - mean d_pos)) or "active" (up
    # while fewer than active_share of the hardest negatives cost something, else down).
    leap.rule = "gap"
    # How slowly: the share of the margin that stays at a step.
    leap.rho = 0.99
    # Factor of "gap".
    leap.kappa = 0.5
    # Share aimed at by "active".
    leap.active_share = 0.5
    # Lower bound of the margin.
    leap.least = 0.05
    # Upper bound of the margin.
    leap.most = 0.5
    # Whether each pair has its own margin, smaller for concepts that mean nearly the same.
    leap.pair_margins = False
    # Lower bound of a pair's margin over the margin.
    leap.pair_low = 0.5
    # Upper bound of a pair's margin over the margin.
    leap.pair_high = 1.5
    # Weight of the same hinge on the quantized embeddings.
    leap.quantized = 0.0
    # Pairs scored at a time: memory grows with rows x chunk.
    leap.chunk = 4096
    objective.center = center = ConfigDict()
    # Weight of the center loss beside LEAP's hinge; 0 leaves it out.
    center.weight = 0.0
    # Centers: a "table" of one a training picture, in the state, or the means of the "batch".
    center.kind = "table"
    # How far a center of the table moves at a step.
    center.alpha = 0.5
    objective.quantizer = quantizer = ConfigDict()
    # Weight of the quantizer's commitment term beside LEAP's hinge; 0 leaves the quantizer out.
    quantizer.weight = 0.0
    # Factor of the commitment.
    quantizer.beta = 0.25
    # Parts of an embedding (M): the bytes that it is stored in.
    quantizer.parts = 32
    # Codes of each part (K), at most 256.
    quantizer.codes = 256
    # How the codebook moves: by moving "average" or by "gradient".
    quantizer.update = "average"
    # Decay of the moving average.
    quantizer.decay = 0.99
    # Rate of the gradient descent.
    quantizer.rate = 0.1
    # A code chosen less often than this share of an even choice is put on another embedding.
    quantizer.dead_share = 0.01
    objective.multitask = multitask = ConfigDict()
    # Weight of the cross-entropy against the other side's codes; 0 leaves it out.
    multitask.weight = 0.0
    # Divides the squared distances to the codes.
    multitask.temperature = 0.1

    config.train = train = ConfigDict()
    # Length of the training in epochs.
    train.epochs = 10.0
    # Length of the training in steps; where it is given, `epochs` does not count.
    train.steps = placeholder(int)
    # Pairs a step, over all devices.
    train.batch_size = 128
    # Peak learning rate of Adam.
    train.learning_rate = 2e-4
    # How it falls: "cosine" (to 0 at the end), "constant", or "step" (x decay_factor at each of
    # decay_epochs).
    train.schedule = "cosine"
    # Epochs at which "step" decays.
    train.decay_epochs = (15.0,)
    # Factor of each decay of "step".
    train.decay_factor = 0.1
    # Epochs of linear rise to the peak.
    train.warmup_epochs = 0.0
    # Decoupled weight decay (AdamW), of matrices only.
    train.weight_decay = 0.0
    # Largest global norm of the gradient; None: no clipping.
    train.clip_norm = placeholder(float)
    # Decay of a moving average of the parameters, used for evaluation; 0: none. At step t it
    # is at most (1 + t) / (10 + t).
    train.ema = 0.0
    # (pattern, factor) pairs: the first pattern that matches the whole name of a parameter
    # multiplies its learning rate; None freezes it, e.g. (("image/backbone/.*", None),).
    train.freeze = ()
    # Steps between log lines.
    train.log_every = 20
    # Steps between checkpoints, besides one at the end of every epoch.
    train.checkpoint_every = 500
    # Epochs between validations.
    train.validate_every = 1.0

    config.evaluate = evaluate = ConfigDict()
    # Pictures or captions encoded at a time, over all devices.
    evaluate.batch_size = 256
    # Queries each way shown in the report.
    evaluate.queries = 12
    # Judgements of people to be correlated with distances: a file in Flickr8k-Expert's format.
    evaluate.expert = placeholder(str)
    # The same in Flickr8k-CrowdFlower's format.
    evaluate.crowdflower = placeholder(str)
    return config


CHOICES: Mapping[str, tuple[str, ...]] = {
    "parallel": ("shard_map", "pmap"),
    "precision": ("float32", "bfloat16"),
    "data.epoch": ("captions", "images"),
    "data.tokenizer": ("vse", "dvsa"),
    "data.non_rgb": ("skip", "convert"),
    "model.similarity": ("dot", "negative_euclidean"),
    "model.image.features": ("pooled", "grid"),
    "model.image.pooling": ("mean", "mean_max"),
    "model.text.pooling": ("last", "max"),
    "objective.triplet.negatives": ("hardest", "all"),
    "objective.triplet.warmup": ("all", "infonce"),
    "objective.leap.negatives": ("hardest", "all"),
    "objective.leap.rule": ("fixed", "gap", "active"),
    "objective.center.kind": ("table", "batch"),
    "objective.quantizer.update": ("average", "gradient"),
    "train.schedule": ("cosine", "constant", "step"),
}
POSITIVE = (
    "data.image_size", "data.max_tokens", "model.dimension", "model.text.words",
    "objective.triplet.chunk", "objective.triplet.temperature", "objective.infonce.chunk",
    "objective.infonce.temperature", "objective.leap.margin", "objective.leap.least",
    "objective.leap.pair_low", "objective.leap.chunk", "objective.quantizer.parts",
    "objective.multitask.temperature", "train.epochs", "train.steps", "train.batch_size",
    "train.learning_rate", "train.clip_norm", "train.log_every", "train.checkpoint_every",
    "train.validate_every", "evaluate.batch_size",
)  # fmt: skip
# Fields whose value is at least the first and below, or at, the second.
RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "data.bad_share": (0.0, 1.0),
    "model.image.dropout": (0.0, 0.99),
    "model.text.dropout": (0.0, 0.99),
    "objective.triplet.weight": (0.0, float("inf")),
    "objective.infonce.weight": (0.0, float("inf")),
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
    "objective.quantizer.dead_share": (0.0, 1.0),
    "objective.multitask.weight": (0.0, float("inf")),
    "objective.triplet.margin": (0.0, float("inf")),
    "objective.triplet.warmup_epochs": (0.0, float("inf")),
    "train.decay_factor": (0.0, 1.0),
    "train.warmup_epochs": (0.0, float("inf")),
    "train.weight_decay": (0.0, float("inf")),
    "train.ema": (0.0, 0.999999),
    "evaluate.queries": (0, 1000),
}


def validate(config: ConfigDict, devices: int = 1) -> None:
    """Raises ConfigError at the first field that is unknown, mistyped or impossible.

    Args:
      config: to check.
      devices: over which batches are split.
    """
    known = dict(fields(default_config()))
    given = dict(fields(config))
    for name in given:
        check_name(name)
    for name in known:
        if name not in given:
            raise ConfigError(f"config field {name!r} is missing; start from default_config()")
    types = {name: config_type(default_config(), name) for name in known}
    for name, value in given.items():
        _check_type(name, value, types[name])
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            raise ConfigError(
                f"config field {name!r} is {given[name]!r}{_nearest(given[name], choices)}; "
                f"it may be {_either(choices)}"
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


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` is the dotted name of a field."""
    known = dict(fields(default_config()))
    inside = [field for field in known if field.startswith(f"{name}.")]
    if inside:
        raise ConfigError(f"{name!r} is a group of config fields, such as {inside[0]!r}")
    if name not in known:
        raise ConfigError(f"unknown config field {name!r}{_nearest(name, known)}")


def _check_together(given: Mapping[str, Any], devices: int) -> None:
    """Raises ConfigError where fields contradict each other."""
    for name in ("train.batch_size", "evaluate.batch_size"):
        if given[name] % devices:
            raise ConfigError(
                f"config field {name!r} is {given[name]}, which {devices} devices cannot share "
                "equally"
            )
    for name in ("data.crop_area", "train.decay_epochs"):
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
    sizes = given["data.shapes_sizes"]
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ConfigError(
            f"config field 'data.shapes_sizes' is {given['data.shapes_sizes']}; it must be three "
            "numbers above 0: train, validation, test"
        )
    if given["data.max_tokens"] < 3:
        raise ConfigError(
            "config field 'data.max_tokens' must be at least 3: <start>, a word, <end>"
        )
    terms = ("objective.triplet.weight", "objective.infonce.weight", "objective.leap.weight")
    if not any(given[name] for name in terms):
        raise ConfigError(
            "every objective has weight 0: nothing would be learned; set 'objective.triplet.weight'"
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


def _check_leap(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where the fields of LEAP contradict each other."""
    if not given["objective.leap.weight"]:
        for name in ("objective.center", "objective.quantizer", "objective.multitask"):
            if given[f"{name}.weight"]:
                raise ConfigError(
                    f"config field '{name}.weight' is {given[f'{name}.weight']}, a term of LEAP, "
                    "but 'objective.leap.weight' is 0"
                )
        return
    for low, high in (("least", "most"), ("pair_low", "pair_high")):
        if given[f"objective.leap.{low}"] > given[f"objective.leap.{high}"]:
            raise ConfigError(
                f"config field 'objective.leap.{low}' is {given[f'objective.leap.{low}']}, above "
                f"'objective.leap.{high}' = {given[f'objective.leap.{high}']}"
            )
    if given["objective.leap.pair_margins"] and not given["objective.center.weight"]:
        raise ConfigError(
            "'objective.leap.pair_margins' needs centers: set 'objective.center.weight' above 0"
        )
    if given["objective.quantizer.weight"]:
        if given["model.dimension"] % given["objective.quantizer.parts"]:
            raise ConfigError(
                f"config field 'objective.quantizer.parts' is "
                f"{given['objective.quantizer.parts']}, which does not divide 'model.dimension' = "
                f"{given['model.dimension']}"
            )
        return
    for name in ("objective.multitask.weight", "objective.leap.quantized"):
        if given[name]:
            raise ConfigError(
                f"config field {name!r} is {given[name]}, which needs the quantizer: set "
                "'objective.quantizer.weight' above 0"
            )


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def config_type(config: ConfigDict, name: str) -> type:
    """The type of the field with this dotted name."""
    *parents, leaf = name.split(".")
    for parent in parents:
        config = config[parent]
    return config.get_type(leaf)


def to_json(config: ConfigDict) -> str:
    """The config as JSON text, for `from_json`."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote; raises ConfigError where it is none of ours."""
    config = default_config()
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"config.json is not JSON: line {error.lineno}: {error.msg}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config.json holds a {type(values).__name__}, not an object of fields")
    types = {name: config_type(config, name) for name, _ in fields(config)}
    for name, value in fields(ConfigDict(values)):
        check_name(name)
        _check_type(name, _tuples(value), types[name])
        *parents, leaf = name.split(".")
        target = config
        for parent in parents:
            target = target[parent]
        target[leaf] = _tuples(value)
    return config


# Fields that say where things are or how many are looked at; none changes what is trained.
PATHS = (
    "data.manual_dir", "data.path", "data.images", "data.data_dir", "model.image.weights",
    "model.text.glove", "evaluate.expert", "evaluate.crowdflower",
)  # fmt: skip
FREE = (*PATHS, "evaluate.batch_size", "evaluate.queries")


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
    """A copy whose paths do not depend on the current folder; hub names stay."""
    config = config.copy_and_resolve_references()
    for name in PATHS:
        *parents, leaf = name.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        value = section[leaf]
        if value is not None and (name != "model.image.weights" or _exists(value)):
            section[leaf] = os.path.abspath(os.path.expanduser(value))
    return config


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line for each field that differs and matters to what is trained."""
    before, after = (
        {name: value for name, value in fields(config) if name not in FREE} for config in (old, new)
    )
    return [
        f"{name}: {before.get(name)!r} there, {after.get(name)!r} here"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def choose(module: ModuleType, name: str, field: str) -> Any:
    """The attribute `name` of `module`; an unknown one is a ConfigError that lists the known."""
    known = list(module.__all__)
    if name not in known:
        raise ConfigError(
            f"config field {field!r} is {name!r}{_nearest(name, known)}; it may be {_either(known)}"
        )
    return getattr(module, name)


def _check_type(name: str, value: Any, wanted: type) -> None:
    if value is None:
        if dict(fields(default_config()))[name] is not None:
            raise ConfigError(f"config field {name!r} is not set; it must be {wanted.__name__}")
        return
    accepted = (int, float) if wanted is float else wanted
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(
            f"config field {name!r} is {value!r} ({type(value).__name__}); "
            f"it must be {wanted.__name__}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"config field {name!r} is {value}; it must be finite")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _either(choices: Any) -> str:
    return " or ".join(repr(choice) for choice in sorted(choices))


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
