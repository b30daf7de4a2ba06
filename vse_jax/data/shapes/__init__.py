"""`shapes`, the embedded data set: drawn scenes, described by a grammar, from a seed."""

import os

from vse_jax.data import records
from vse_jax.data.shapes.attributes import SHAPES
from vse_jax.data.shapes.builder import SPLITS, Shapes, ShapesConfig
from vse_jax.data.shapes.grammar import KINDS
from vse_jax.data.shapes.scene import USUAL, Difficulty
from vse_jax.data.shapes.similarity import caption_similarity, oracle_scores, scene_similarity
from vse_jax.data.shapes.words import NUMBERS
from vse_jax.data.split import DataError, Dataset

__all__ = [
    "SHAPES",
    "Difficulty",
    "caption_similarity",
    "load",
    "oracle_scores",
    "scene_similarity",
]


def load(
    data_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    train: int = 4000,
    validation: int = 500,
    test: int = 500,
    difficulty: Difficulty = USUAL,
    captions: tuple[str, ...] = KINDS,
) -> Dataset:
    """The data set `shapes`, drawn into `data_dir` at first use (half a minute at most).

    Pictures are 96x96 JPEG with five captions each, unless told otherwise: whole scene, part,
    relation, count, vague.
    Labels index `SHAPES`: the shape of the largest object. Scene i of a split lists its objects
    in the order of `boxes[i]`, each with a "snippet" in words; `scene.sample` and
    `similarity` describe the scenes and the meanings.

    Args:
      data_dir: folder of prepared data; each seed, each set of sizes, each difficulty and each
        choice of captions has its own in there.
      seed: non-negative; the same seed gives the same bytes.
      train: pictures for training; so for `validation` and `test`.
      difficulty: of the pictures, for clutter up to 8, hidden from 0.35 to 0.7 and 1 to 8 objects.
      captions: kinds of a picture's captions, in their order; one told twice is worded twice.

    Raises:
      DataError: if a size, the seed or the difficulty is out of range, a kind of caption is
        unknown, or the folder cannot be written.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    for split, size in sizes.items():
        if size < 1:
            raise DataError(f"shapes: {split} has {size} pictures; it needs at least 1")
    if seed < 0:
        raise DataError(f"shapes: seed is {seed}; it must be 0 or more")
    _check(difficulty)
    if not captions or not set(captions) <= set(KINDS):
        raise DataError(f"shapes: captions of the kinds {captions}; there are {', '.join(KINDS)}")
    config = ShapesConfig(
        seed=seed, sizes=(train, validation, test), difficulty=difficulty, captions=captions
    )
    builder = Shapes(data_dir, config)
    records.prepare(builder)
    return Dataset(
        name="shapes",
        splits={split: records.read_split(builder, split) for split in SPLITS},
        fingerprint=records.fingerprint(builder),
        classes=SHAPES,
        protocol=f"shapes_{test}",
    )


def _check(difficulty: Difficulty) -> None:
    fewest, most = difficulty.objects
    if not (
        0 <= difficulty.clutter <= 8
        and 0.35 <= difficulty.hidden <= 0.7
        and 1 <= fewest <= most <= max(NUMBERS)
    ):
        raise DataError(
            f"shapes: {difficulty}; clutter must lie in [0, 8], hidden in [0.35, 0.7], and objects "
            f"be (fewest, most) of 1 to {max(NUMBERS)}"
        )
