"""The check of a config's network: what it looks at, reads, learns from and writes must agree."""

from collections.abc import Mapping
from typing import Any

from vse_jax.config import ConfigError, either, nearest

# The terms of LEAP, each of which brings its objective.
LEAP = (
    "objective.leap.weight", "objective.center.weight", "objective.quantizer.weight",
    "objective.multitask.weight",
)  # fmt: skip
# What tells pictures apart.
RANKING = (
    "objective.triplet.weight", "objective.infonce.weight", "objective.sigmoid.weight",
    "objective.leap.weight",
)  # fmt: skip
# Networks that look at a picture and a sentence together; there are no embeddings to compare.
PAIRWISE = ("dvsa", "saf", "sgr")
# Networks that write captions or tell classes; there is nothing to compare.
CAPTIONERS = ("cam", "multimodal_rnn")
NETWORKS = (
    "cam",
    "dvsa",
    "multimodal_rnn",
    "none",
    "residual",
    "saf",
    "sgr",
    "vse_infinity",
    "vsepp",
    "vsrn",
)
# The terms of the network "cam" alone.
CAM = (
    "objective.classification.weight", "objective.disagreement.weight", "objective.embedding.weight"
)  # fmt: skip
# Readers of sentences without pretrained weights.
FROM_NOTHING = ("brnn", "gru")


def check_network(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where the fields of the model contradict each other."""
    network, similarity = given["model.network"], given["model.similarity"]
    if network not in NETWORKS:
        raise ConfigError(
            f"config field 'model.network' is {network!r}{nearest(network, NETWORKS)}; it may be "
            f"{either(NETWORKS)}"
        )
    tile = given["model.tile"]
    if len(tile) != 2 or not all(isinstance(side, int) and side > 0 for side in tile):
        raise ConfigError(
            f"config field 'model.tile' is {tile}; it must be two numbers above 0: pictures, "
            "captions"
        )
    if network in PAIRWISE and similarity != "dot":
        raise ConfigError(
            f"config field 'model.similarity' is {similarity!r}, but the network {network!r} has "
            "its own similarity: leave it at 'dot'"
        )
    for name in LEAP:
        if network in PAIRWISE and given[name]:
            raise ConfigError(
                f"config field {name!r} is {given[name]}, a term of LEAP, which learns distances "
                f"of embeddings; the network {network!r} has none: choose another objective"
            )
    if network in (*PAIRWISE, "vse_infinity") and given["model.text.features"] != "words":
        raise ConfigError(
            f"config field 'model.text.features' is {given['model.text.features']!r}; the network "
            f"{network!r} looks at words: set it to 'words'"
        )
    if given["objective.generation.weight"] and network not in ("vsrn", *CAPTIONERS):
        raise ConfigError(
            "config field 'objective.generation.weight' is "
            f"{given['objective.generation.weight']}, but the network {network!r} generates no "
            "captions: set it to 0, or 'model.network' to 'vsrn'"
        )
    for name in CAM:
        if given[name] and network != "cam":
            raise ConfigError(
                f"config field {name!r} is {given[name]}, a term of the network 'cam', but "
                f"'model.network' is {network!r}: set it to 0"
            )
    if network == "cam":
        _check_cam(given)
    if network in CAPTIONERS:
        _check_captioner(given)
    _check_reader(given)


def _check_cam(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where classes, captions and their maps cannot be had together."""
    features = given["model.image.features"]
    if features != "grid":
        raise ConfigError(
            f"config field 'model.image.features' is {features!r}, but the network 'cam' draws "
            "maps of where it looks: set it to 'grid'"
        )
    for name, right in (
        ("model.image.pooling", "mean"),
        ("model.image.normalize_features", False),
        ("model.normalize", False),
    ):
        if given[name] != right:
            raise ConfigError(
                f"config field {name!r} is {given[name]!r}, but the maps of the network 'cam' are "
                f"those of a mean over cells as they are: set it to {right!r}"
            )
    if given["data.dataset"] == "precomputed":
        raise ConfigError(
            "config field 'model.network' is 'cam', which learns classes from pictures, and the "
            "data set 'precomputed' has only features: bring the pictures ('custom')"
        )
    tasks = ("objective.classification.weight", "objective.generation.weight")
    if not any(given[name] for name in tasks):
        raise ConfigError(
            f"config fields {' and '.join(map(repr, tasks))} are 0, and nothing else teaches the "
            "network 'cam': set one above 0"
        )
    if given["objective.disagreement.weight"] and not all(given[name] for name in tasks):
        raise ConfigError(
            "config field 'objective.disagreement.weight' is "
            f"{given['objective.disagreement.weight']}, which compares where a classifier and a "
            f"captioner look: set {' and '.join(map(repr, tasks))} above 0, or it to 0"
        )
    if given["objective.embedding.weight"] and not given["objective.generation.weight"]:
        raise ConfigError(
            f"config field 'objective.embedding.weight' is {given['objective.embedding.weight']}, "
            "of the sentences that a captioner learns from, but 'objective.generation.weight' is "
            "0: set it to 0 too"
        )


def _check_captioner(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where a network that only writes captions is asked for more, or less."""
    network = given["model.network"]
    for name in {*RANKING, *LEAP}:
        if given[name]:
            raise ConfigError(
                f"config field {name!r} is {given[name]}, a term of comparing pictures and "
                f"sentences; the network {network!r} only writes captions: set it to 0"
            )
    if given["model.image.features"] == "boxes":
        raise ConfigError(
            f"config field 'model.image.features' is 'boxes', but the network {network!r} is shown "
            "a picture as a whole: set it to 'pooled' or 'grid', and 'data.snippets' to regions "
            "that are to be pictures"
        )
    if network != "cam" and not given["objective.generation.weight"]:
        raise ConfigError(
            "config field 'objective.generation.weight' is 0, and nothing else teaches the network "
            f"{network!r} to write captions: set it above 0"
        )
    if given["model.text.backbone"] not in FROM_NOTHING:
        raise ConfigError(
            f"config field 'model.text.backbone' is {given['model.text.backbone']!r}; the network "
            f"{network!r} reads no sentences and has words of its own: leave it at 'gru'"
        )


def _check_reader(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where the fields of what reads sentences contradict each other."""
    network, reader = given["model.network"], given["model.text.backbone"]
    pretrained = reader not in FROM_NOTHING
    if pretrained != (given["data.tokenizer"] == "pretrained"):
        right = "'pretrained'" if pretrained else "'vse' or 'dvsa'"
        raise ConfigError(
            f"config field 'data.tokenizer' is {given['data.tokenizer']!r}, but "
            f"'model.text.backbone' is {reader!r}: set it to {right}"
        )
    if pretrained and given["model.text.weights"] is None:
        raise ConfigError(
            f"config field 'model.text.weights' is not set; 'model.text.backbone' = "
            f"{reader!r} needs the folder or hub name of its weights"
        )
    for name in ("model.text.weights",) if not pretrained else ("model.text.glove",):
        if given[name] is not None:
            raise ConfigError(
                f"config field {name!r} is {given[name]!r}, but 'model.text.backbone' is "
                f"{reader!r}, which takes none: unset it"
            )
    both = given["model.text.pooling"] == "mean_max" and given["model.text.features"] == "words"
    if network == "vsepp" and both and reader == "gru":
        raise ConfigError(
            "config field 'model.text.pooling' is 'mean_max', but a GRU's sentences are not "
            "projected by the network 'vsepp', and would be twice as wide as the common space: set "
            "it to 'mean' or 'max'"
        )
    if network == "none" and not pretrained:
        raise ConfigError(
            "config field 'model.network' is 'none', which is for two pretrained towers of one "
            f"space; sentences that {reader!r} reads are not in it: choose a network, such as "
            "'vsepp'"
        )
