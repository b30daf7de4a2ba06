"""How many words a trained DVSA model finds in their pictures, where the truth is known."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vse_jax import alignment
from vse_jax.evaluators import alignment as evaluator
from vse_jax.experiment import Experiment
from vse_jax.train_state import TrainState

log = logging.getLogger(__name__)
# The split that choices are made by.
VALIDATION = "validation"


class Accuracies(NamedTuple):
    """Percent of the words about things that are found in their picture; NaN without such words.

    Attributes:
      by_beta: by each of some betas.
      chance: in the mean, if every word takes a region of its picture at random.
    """

    by_beta: list[float]
    chance: float


def accuracies(
    experiment: Experiment, state: TrainState, split: str, betas: Sequence[float]
) -> Accuracies:
    """How many words are found.

    Judged are the words of size, colour, fill and shape, not "shape" and "figure", of which nothing
    is said; a word is found if its box and that of an object that it may mean have an intersection
    over union of a half at least.

    Args:
      experiment: of the run; its data have scenes.
      state: of the model, host arrays.
      split: by name.
      betas: as of `alignment.align_pairs`.
    """
    from vse_jax.data.shapes import words  # here: it imports TensorFlow

    left_out = {form for noun in words.NOUNS for form in (noun, f"{noun}s")}
    examples, boxes = experiment.examples[split], alignment.boxes_of_split(experiment, split)
    scenes = examples.split.scenes
    assert scenes is not None
    assert boxes is not None
    truth: list[np.ndarray] = []
    offered: list[np.ndarray] = []
    found: list[list[np.ndarray]] = [[] for _ in betas]
    for some, scored in alignment.scored_split(experiment, state, split):
        chosen = [[pair.regions for pair in alignment.assigned(scored, beta)] for beta in betas]
        for row, caption in enumerate(some):
            tokens = alignment.inside(examples.tokens[caption], examples.token_mask[caption])
            picture = int(examples.split.caption_image[caption])
            said, own = alignment.words_of(experiment.tokenizer, tokens), boxes(picture)
            for place, meant in _judged(said, scenes[picture], left_out):
                truth.append(meant)
                offered.append(own)
                for kept, regions in zip(found, chosen, strict=True):
                    kept.append(own[regions[row][place]])
    if not truth:
        return Accuracies([float("nan") for _ in betas], float("nan"))
    by_beta = [evaluator.accuracy(np.stack(kept), truth) for kept in found]
    return Accuracies(by_beta, evaluator.chance(offered, truth))


def _judged(
    said: Sequence[str], scene: Mapping[str, Any], left_out: Collection[str]
) -> Iterator[tuple[int, Float[np.ndarray, "_ 4"]]]:
    """The place of each word that is judged, and the boxes of the objects that it may mean."""
    from vse_jax.data.shapes import mentions  # here: it imports TensorFlow

    own = np.array([thing["box"] for thing in scene["objects"]], np.float32)
    for place, meant in enumerate(mentions.mentions(said, scene)):
        if meant and said[place] not in left_out:
            yield place, own[sorted(meant)]


def measured(experiment: Experiment, state: TrainState, split: str) -> dict[str, float]:
    """How many words are found, where the truth is known.

    Empty where the model aligns nothing, the data have no scenes or the split has no words about
    things. For arguments see `accuracies`.

    Returns:
      `align/accuracy` at the run's beta, `align/accuracy_beta_0` and `align/chance` of the split;
      and of validation, where that is another split, `align/accuracy_validation` at the run's beta,
      to choose it by.
    """
    splits = experiment.dataset.splits
    if splits[split].scenes is None or not alignment.is_possible(experiment.config):
        return {}
    (at_beta, at_zero), chance = _told(experiment, state, split)
    if np.isnan(chance):
        return {}
    found = {"align/accuracy": at_beta, "align/accuracy_beta_0": at_zero, "align/chance": chance}
    if split != VALIDATION and VALIDATION in splits:
        (at_beta, _), chance = _told(experiment, state, VALIDATION)
        found |= {} if np.isnan(chance) else {"align/accuracy_validation": at_beta}
    return found


def _told(experiment: Experiment, state: TrainState, split: str) -> Accuracies:
    """Those by the run's beta and by 0, in the log too."""
    beta = experiment.config.evaluate.beta
    found = accuracies(experiment, state, split, (beta, 0.0))
    if np.isnan(found.chance):
        log.warning("no caption of the %s split has a known word about a thing", split)
    else:
        log.info(
            "%s words found: %.1f%% with beta %g, %.1f%% with beta 0, %.1f%% by chance",
            split, found.by_beta[0], beta, found.by_beta[1], found.chance,
        )  # fmt: skip
    return found
