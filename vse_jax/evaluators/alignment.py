"""Whether words were found in the picture: their boxes against the true ones.

A word is right if its box and one of those it may mean overlap enough, as in the judgement of
detections: Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010, section 4.2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from vse_jax.boxes import intersection_over_union
from vse_jax.evaluators.blocks import EvaluationError


class WordOverlaps(NamedTuple):
    """How well each of k words was found.

    Attributes:
      overlap: the largest intersection over union with a box that the word may mean, in [0, 1].
      nearest: number of that box among those of the word; the lowest of equals.
      right: whether the overlap reaches the threshold.
    """

    overlap: Float[np.ndarray, " k"]
    nearest: Int[np.ndarray, " k"]
    right: Bool[np.ndarray, " k"]


def accuracy(
    boxes: Float[np.ndarray, "k 4"],
    truth: Sequence[Float[np.ndarray, "_ 4"]],
    threshold: float = 0.5,
) -> float:
    """Percent of words that are right; see `overlaps` for arguments and errors."""
    return 100 * float(np.mean(overlaps(boxes, truth, threshold).right))


def chance(
    regions: Sequence[Float[np.ndarray, "_ 4"]],
    truth: Sequence[Float[np.ndarray, "_ 4"]],
    threshold: float = 0.5,
) -> float:
    """Percent of words that are right in the mean, if each takes any of its regions at random.

    Args:
      regions: of each word the boxes that it may be given, one at least.
      truth: as of `overlaps`.
      threshold: likewise.

    Raises:
      EvaluationError: as `overlaps`, or a word without regions.
    """
    if len(regions) != len(truth) or not all(map(len, regions)):
        raise EvaluationError(
            f"regions of {len(regions)} words and the truth of {len(truth)}; there must be as many "
            "of both, and a region at least of each word"
        )
    # All regions of all words by one rule.
    every = [meant for own, meant in zip(regions, truth, strict=True) for _ in own]
    right = overlaps(np.concatenate([*regions, np.zeros((0, 4))]), every, threshold).right
    first = np.cumsum([0, *map(len, regions[:-1])])
    return 100 * float(np.mean(np.add.reduceat(right, first) / [len(own) for own in regions]))


def overlaps(
    boxes: Float[np.ndarray, "k 4"],
    truth: Sequence[Float[np.ndarray, "_ 4"]],
    threshold: float = 0.5,
) -> WordOverlaps:
    """How well each word was found.

    Args:
      boxes: (y0, x0, y1, x1) chosen for each of k words.
      truth: of each word the boxes that it may mean, in the same unit; one at least, as words
        about nothing are not judged.
      threshold: intersection over union from which a word is right, above 0 and at most 1.

    Raises:
      EvaluationError: no words, another number of truths than of words, a word that may mean no
        box, boxes that are not finite, a threshold out of range.
    """
    if len(boxes) == 0 or len(boxes) != len(truth):
        raise EvaluationError(
            f"{len(boxes)} boxes of words and the truth of {len(truth)}; there must be as many of "
            "both, and one at least"
        )
    if not 0 < threshold <= 1:
        raise EvaluationError(f"threshold is {threshold}; it must be above 0 and at most 1")
    overlap, nearest = np.empty(len(boxes)), np.empty(len(boxes), np.int64)
    for word, meant in enumerate(truth):
        if len(meant) == 0:
            raise EvaluationError(f"word {word} may mean no box; such words are not judged")
        if not (np.isfinite(boxes[word]).all() and np.isfinite(meant).all()):
            raise EvaluationError(f"boxes of word {word} are not finite")
        found = intersection_over_union(boxes[word : word + 1], meant)[0]
        nearest[word] = np.argmax(found)
        overlap[word] = found[nearest[word]]
    return WordOverlaps(overlap, nearest, overlap >= threshold)
