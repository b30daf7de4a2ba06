"""What a model of "cam" tells of a picture, and where it looks while it tells and writes."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from vse_jax import alignment
from vse_jax.data.split import DataError
from vse_jax.data.tokenizer import Tokenizer
from vse_jax.evaluators import maps
from vse_jax.models.regions import grid_boxes

NETWORK = "cam"
# Names that are shown of a model's classes where an unknown one is asked for.
NAMED = 5


class LookError(ValueError):
    """A model that looks nowhere, or does not do what it is asked for."""


class Class(NamedTuple):
    """A class of a picture.

    Attributes:
      name: of the class.
      probability: that the model gives it.
    """

    name: str
    probability: float


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """A class and a caption of a picture, and where the model looks for each.

    Maps are float32 [h, w], 0 or more, a value for each cell of the backbone's grid over the whole
    picture; what is None is so because the model does not do it.

    Attributes:
      classes: all of them, the likeliest first; none where the model tells no classes.
      told: the class of the map: the likeliest, or the one given.
      caption: of the map: the model's own, or the sentence given.
      class_map: where it looks for the class.
      caption_map: where it looks for the caption; None too of a caption of its own that has no
        content word.
      agreement: the cosine of both maps, 0 where one of them is 0 everywhere.
      unknown: words of the sentence given that the model does not know.
    """

    classes: list[Class]
    told: Class | None
    caption: str | None
    class_map: Float[np.ndarray, "h w"] | None
    caption_map: Float[np.ndarray, "h w"] | None
    agreement: float | None
    unknown: tuple[str, ...] = ()


def is_possible(config: ConfigDict) -> bool:
    """Whether the model of a config has maps of where it looks."""
    return config.model.network == NETWORK


def check(
    config: ConfigDict, names: Sequence[str], sentence: str | None = None, name: str | None = None
) -> None:
    """Raises LookError where a model cannot look, or not for what is given.

    Args:
      config: of the model.
      names: of its classes.
      sentence: whose map is asked for, if any.
      name: of the class whose map is asked for, if any.
    """
    if not is_possible(config):
        raise LookError(
            f"the model is of the network {config.model.network!r}, which has no maps of where it "
            f"looks: train with model.network={NETWORK}, as configs/shapes.py:cam"
        )
    if sentence is not None and not config.objective.generation.weight:
        raise LookError(
            "the model writes no captions (its objective.generation.weight is 0), so that it looks "
            "for no sentence: give none"
        )
    if name is not None:
        number_of(name, names)


def check_classifies(names: Sequence[str], network: str) -> None:
    """Raises LookError where a model of these classes and this network tells none."""
    if not names:
        raise LookError(
            f"the model, of the network {network!r}, tells no classes: train one of "
            f"model.network={NETWORK} with objective.classification.weight above 0, as "
            "configs/shapes.py:cam"
        )


def number_of(name: str, names: Sequence[str]) -> int:
    """The number of the class of a name; raises LookError where there is none, with near ones."""
    check_classifies(names, NETWORK)
    if name in names:
        return names.index(name)
    lower = {known.lower(): known for known in reversed(names)}
    near = [lower[found] for found in difflib.get_close_matches(name.lower(), lower, NAMED)]
    # Part of a long name, such as of a bird's, is as near.
    near += [known for known in names if name.lower() in known.lower() and known not in near]
    kind = "near ones are" if near else "they are" if len(names) <= NAMED else "some are"
    raise LookError(
        f"the model knows no class {name!r} among its {len(names)}: {kind} "
        f"{', '.join(near[:NAMED] or names[:NAMED])}"
    )


def check_sentence(
    tokenizer: Tokenizer, sentence: str, function_words: Sequence[int]
) -> tuple[str, ...]:
    """The words of a sentence that the model does not know, where there are content words to map.

    Raises:
      DataError: it has no content word that the model knows.
    """
    known = alignment.known_words(tokenizer, sentence)
    if np.isin(known, [*function_words, *tokenizer.special]).all():
        raise DataError(
            f"the sentence {sentence!r} has no content word that the model knows, only such as "
            "'the' and 'of', which are about nothing in a picture"
        )
    return alignment.unknown_words(tokenizer, sentence)


def probabilities(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Those of each class, float64."""
    logits = logits.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def classes(logits: Float[np.ndarray, "n k"], names: Sequence[str]) -> list[list[Class]]:
    """All classes of each picture, the likeliest first, the first of equals before the others."""
    return [
        [Class(names[number], float(own[number])) for number in np.argsort(-own, kind="stable")]
        for own in probabilities(logits)
    ]


def on_grid(
    values: Float[np.ndarray, " c"], cells: Float[np.ndarray, "c 4"]
) -> Float[np.ndarray, "h w"]:
    """A map's values as they lie over the picture, of cells in the order of `grid_boxes`."""
    return values.reshape(len(np.unique(cells[:, 0])), -1)


def agreement(
    class_map: Float[np.ndarray, "h w"] | None, caption_map: Float[np.ndarray, "h w"] | None
) -> float | None:
    """The cosine of both maps of a picture, 0 where one is 0 everywhere; None without both."""
    if class_map is None or caption_map is None:
        return None
    return maps.agreement(class_map.reshape(1, -1), caption_map.reshape(1, -1))


def peak(shown: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "4"] | None:
    """The box of a map's highest cell, shares (y0, x0, y1, x1); None of a map that is 0."""
    [number] = maps.peaks(shown.reshape(1, -1))
    return None if number < 0 else grid_boxes(*shown.shape)[number]


def named(
    found: Mapping[str, np.ndarray],
    cells: Float[np.ndarray, "c 4"],
    names: Sequence[str],
    number: int,
    caption: str | None,
    unknown: tuple[str, ...] = (),
) -> Look:
    """What was found of one picture, in words and maps.

    Args:
      found: as `VisualSemanticModel.looks` tells it of one picture.
      cells: the boxes of the grid's cells.
      names: of the classes.
      number: of the class whose map it is; below 0 the likeliest.
      caption: whose map it is; None where the model writes none.
      unknown: its words that the model does not know.
    """
    listed: list[Class] = []
    told, class_map, caption_map = None, None, None
    if "logits" in found:
        [listed] = classes(found["logits"], names)
        [own] = probabilities(found["logits"])
        told = listed[0] if number < 0 else Class(names[number], float(own[number]))
        class_map = on_grid(found["class_map"][0], cells)
    if "caption_map" in found and found["has_caption_map"][0]:
        caption_map = on_grid(found["caption_map"][0], cells)
    both = agreement(class_map, caption_map)
    return Look(listed, told, caption, class_map, caption_map, both, unknown)
