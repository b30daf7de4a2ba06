"""Whether distance says what people, or the true scenes, say of a picture and a caption."""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from vse_jax.evaluators.blocks import EvaluationError

# The id of a caption: its own picture's file name and its number.
CAPTION = re.compile(r"\s*\S.*#\d+\s*")


class NoCorrelationError(EvaluationError):
    """Fewer than two pairs, or values that are all alike."""


@dataclasses.dataclass(frozen=True)
class Judgement:
    """How relevant people found a caption to a picture.

    Attributes:
      image: file name.
      caption: "image.jpg#k", the k-th caption of a picture, not always of this one.
      relevance: larger is more relevant.
    """

    image: str
    caption: str
    relevance: float


def read_expert(path: str | os.PathLike[str]) -> list[Judgement]:
    """Flickr8k-Expert: the mean of three experts' grades, 1 (unrelated) to 4 (describes it).

    Lines of image, caption id and three grades, tabs between. Source: Hodosh, Young and
    Hockenmaier, JAIR 2013, section 4.

    Raises:
      EvaluationError: a line is none of these; says which.
    """

    def relevance(values: Sequence[str]) -> float:
        grades = [int(value) for value in values]
        if not all(1 <= grade <= 4 for grade in grades):
            raise ValueError
        return sum(grades) / 3

    return _read(path, 3, relevance, "three grades from 1 to 4")


def read_crowdflower(path: str | os.PathLike[str]) -> list[Judgement]:
    """Flickr8k-CrowdFlower: the share of people who found that the caption describes the picture.

    Lines of image, caption id, that share, and the counts of yes and no, tabs between.

    Raises:
      EvaluationError: a line is none of these; says which.
    """

    def relevance(values: Sequence[str]) -> float:
        share, yes, no = float(values[0]), int(values[1]), int(values[2])
        # Of lines of Flickr8k-Expert too three numbers follow, but not these.
        if yes < 0 or no < 0 or yes + no == 0 or abs(share - yes / (yes + no)) > 0.01:
            raise ValueError
        return share

    return _read(path, 3, relevance, "a share from 0 to 1 and the counts of yes and no")


# By the field of `evaluate` that names the file.
READERS = {"expert": read_expert, "crowdflower": read_crowdflower}


def agreement(
    distances: Float[np.ndarray, " n"],
    relevance: Float[np.ndarray, " n"],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """How well small distances go with great relevance: 1 is perfectly, 0 not at all.

    Args:
      distances: of n pictures and captions.
      relevance: of the same.
      samples: of the bootstrap over the n pairs, as if each were drawn by itself; that pairs
        share pictures and captions makes the interval narrower than it should be.
      seed: of it.

    Returns:
      `spearman` and its 95% bootstrap interval `spearman_low`, `spearman_high`; `kendall`
      (tau-b, the same with `_low`, `_high`); `pairs`, n.

    Raises:
      EvaluationError: values that are not finite.
      NoCorrelationError: see there.
    """
    if len(distances) < 2:
        raise NoCorrelationError(f"{len(distances)} judged pairs, a correlation needs two at least")
    for name, values in (("distances", distances), ("relevance", relevance)):
        if not np.isfinite(values).all():
            raise EvaluationError(f"{name} of judged pairs are not finite")
        if np.ptp(values) == 0:
            raise NoCorrelationError(f"{name} of all judged pairs are the same")
    found: dict[str, float] = {}
    # Among their values in rising order, which is all that these correlations look at.
    places = [np.unique(values, return_inverse=True)[1] for values in (-distances, relevance)]
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, len(distances), len(distances)) for _ in range(samples)]
    for name, measure in (("spearman", _spearman), ("kendall", _kendall)):
        found[name] = measure(*places)
        drawn = [measure(*(own[row] for own in places)) for row in rows]
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return found | {"pairs": float(len(distances))}


def _spearman(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> float:
    """The correlation of ranks; NaN for a bootstrap sample whose values are all alike."""
    a, b = (_ranks(places) for places in (a, b))
    length = math.sqrt((a @ a) * (b @ b))
    return float(a @ b) / length if length else math.nan


def _ranks(places: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Average ranks of the values at these places, less their mean; counted, not sorted."""
    counts = np.bincount(places)
    return (np.cumsum(counts) - (counts - 1) / 2)[places] - (len(places) + 1) / 2


def _kendall(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> float:
    """tau-b; NaN for a bootstrap sample whose values are all alike, without scipy's warning."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(scipy.stats.kendalltau(a, b)[0])


def _read(
    path: str | os.PathLike[str],
    count: int,
    relevance: Callable[[Sequence[str]], float],
    expected: str,
) -> list[Judgement]:
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image, caption, *values = [*line.split("\t"), "", ""]
        values = values[:-2]
        try:
            if len(values) != count or not CAPTION.fullmatch(caption) or not image.strip():
                raise ValueError
            found.append(Judgement(image.strip(), caption.strip(), relevance(values)))
        except ValueError:
            raise EvaluationError(
                f"{path}:{number}: {line[:80]!r}; expected image, image#k and {expected}, with "
                "tabs between"
            ) from None
    if not found:
        raise EvaluationError(f"{path} has no judgements")
    return found
