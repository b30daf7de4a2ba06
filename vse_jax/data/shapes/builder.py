"""The TFDS builder of scenes: a scene is a pure function of (seed, split, number)."""

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vse_jax.data import records
from vse_jax.data.shapes import drawing, scene
from vse_jax.data.shapes.attributes import SHAPES
from vse_jax.data.shapes.grammar import KINDS, Grammar
from vse_jax.data.shapes.scene import USUAL, Difficulty

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
    """What the pictures follow from; the name, and so the folder, tells all of it."""

    name: str = ""
    seed: int = 0
    sizes: tuple[int, int, int] = (4000, 500, 500)
    difficulty: Difficulty = USUAL
    captions: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        told = [f"seed{self.seed}", *(str(size) for size in self.sizes)]
        if self.difficulty != USUAL:
            least, most = self.difficulty.objects
            told += [f"clutter{float(self.difficulty.clutter)}"]
            told += [f"hidden{float(self.difficulty.hidden)}", f"objects{least}-{most}"]
        if self.captions != KINDS:
            told += ["captions" + "".join(kind[0] for kind in self.captions)]
        self.name = "_".join(told)


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Scenes of shapes with captions, drawn and described from a seed."""

    # Any change of what is drawn or said is a new version: prepared folders carry it.
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, data_dir: str | os.PathLike[str], config: ShapesConfig) -> None:
        super().__init__(data_dir=os.fspath(data_dir), config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=str(type(self).__doc__),
            features=records.features(labels=SHAPES, boxes=True, meanings=True),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:  # noqa: ARG002
        sizes = dict(zip(SPLITS, self.builder_config.sizes, strict=True))
        return {split: self._generate_examples(split, size) for split, size in sizes.items()}

    def _generate_examples(self, split: str, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        for number in range(size):
            yield (
                number,
                example(config.seed, split, number, config.difficulty, config.captions),
            )


def example(
    seed: int,
    split: str,
    number: int,
    difficulty: Difficulty = USUAL,
    kinds: tuple[str, ...] = KINDS,
) -> dict[str, Any]:
    """One record, under the names of `records.features`: picture, captions, scene, meanings."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    drawn = scene.sample(rng, difficulty)
    picture = drawing.jpeg(drawing.render(drawn, rng))
    grammar = Grammar(rng)
    for thing in drawn["objects"]:
        thing["snippet"] = grammar.snippet(thing)
    captions = grammar.captions(drawn, kinds)
    return {
        "image": picture,
        "name": f"{split}_{number:05d}.jpg",
        "captions": [sentence for sentence, _ in captions],
        "label": drawn["objects"][drawn["main"]]["shape"],
        "boxes": np.array([thing["box"] for thing in drawn["objects"]], np.float32),
        "scene": json.dumps(drawn),
        "meanings": [json.dumps(meaning) for _, meaning in captions],
    }
