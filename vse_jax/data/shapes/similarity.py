"""What captions mean, how far a meaning holds of a scene, and the oracle that ranks by it.

A meaning is JSON-like; what is not said is absent:
  {"kind": "whole" | "part" | "relation" | "count" | "vague",
   "objects": [{"shape", "colour", "size", "fill"}], each a different object of the scene,
   "relations": [[i, "left" | "above" | "front", j]] between those objects,
   "counts": [{"of": attributes, "number": n, "at_least": bool}],
   "background": {"tone", "pattern"}}
Every statement weighs as many bits as it tells (attributes.py).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vse_jax.data.shapes.attributes import (
    ATTRIBUTE_BITS,
    BACKGROUND,
    BACKGROUND_BITS,
    EXACT_COUNT_BITS,
    LEAST_COUNT_BITS,
    OBJECT,
    RELATION_BITS,
)

_MOST = 4  # Objects in a scene.


def bits(meaning: Mapping[str, Any]) -> float:
    """How much a caption says: the sum over its statements, in bits."""
    return (
        0.0
        + sum(_attribute_bits(thing) for thing in meaning.get("objects", []))
        + sum(RELATION_BITS[name] for _, name, _ in meaning.get("relations", []))
        + sum(_count_bits(count) for count in meaning.get("counts", []))
        + sum(BACKGROUND_BITS[name] for name in meaning.get("background", {}))
    )


def scene_similarity(meaning: Mapping[str, Any], scene: Mapping[str, Any]) -> float:
    """Share in [0, 1] of what a caption says that is true of a scene; 1 where all of it is.

    The caption's objects are matched with different objects of the scene in the way that
    makes most of it true.
    """
    return float(_shares(_Scenes([scene]), meaning)[0])


def caption_similarity(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Share in [0, 1] of what two captions say that both say: 2 shared / (bits + bits).

    Objects of the one are matched with objects of the other in the way that shares most.
    Symmetrical, and 1 exactly for captions of the same meaning.
    """
    few, many = sorted((first, second), key=lambda meaning: len(meaning.get("objects", [])))
    shared = max(
        _shared_objects(few, many, match)
        for match in itertools.permutations(
            range(len(many.get("objects", []))), len(few.get("objects", []))
        )
    )
    counts = [count for count in few.get("counts", []) if count in many.get("counts", [])]
    shared += sum(_count_bits(count) for count in counts)
    ground = many.get("background", {})
    for name, value in few.get("background", {}).items():
        shared += BACKGROUND_BITS[name] * (ground.get(name) == value)
    return 2 * shared / (bits(first) + bits(second))


def oracle_scores(
    scenes: Sequence[Mapping[str, Any]], meanings: Sequence[Mapping[str, Any]]
) -> Float[np.ndarray, "n m"]:
    """Scores float32 [n, m] in [0, 1] of every scene for every caption, for ranking either way.

    (share + [share = 1] bits / (bits + 16)) / 2: for one caption any scene of which it is true
    comes before all others; for one scene its true captions come first, those that say most
    before those that fit many scenes. Scenes that a caption fits equally well are tied.
    """
    table = _Scenes(scenes)
    scores = np.empty((len(scenes), len(meanings)), np.float32)
    for column, meaning in enumerate(meanings):
        share = _shares(table, meaning)
        told = bits(meaning)
        scores[:, column] = (share + (share == 1.0) * told / (told + 16)) / 2
    return scores


class _Scenes:
    """Scenes as arrays: which object has which attribute, which pair stands in which relation."""

    def __init__(self, scenes: Sequence[Mapping[str, Any]]) -> None:
        size = len(scenes)
        self.present = np.zeros((size, _MOST), bool)
        self.has = {
            (name, value): np.zeros((size, _MOST), bool)
            for name, values in OBJECT.items()
            for value in values
        }
        self.background = {
            (name, value): np.zeros(size, bool)
            for name, values in BACKGROUND.items()
            for value in values
        }
        self.related = {name: np.zeros((size, _MOST, _MOST), bool) for name in RELATION_BITS}
        for row, scene in enumerate(scenes):
            for column, thing in enumerate(scene["objects"]):
                self.present[row, column] = True
                for name in OBJECT:
                    self.has[name, thing[name]][row, column] = True
            for i, relation, j in scene["relations"]:
                self.related[relation][row, i, j] = True
            for name, value in scene["background"].items():
                self.background[name, value][row] = True

    def count(self, attributes: Mapping[str, str]) -> np.ndarray:
        """Int [n]: how many objects of each scene have all these attributes."""
        match = self.present
        for item in attributes.items():
            match = match & self.has[item]
        return match.sum(1)


def _shares(scenes: _Scenes, meaning: Mapping[str, Any]) -> np.ndarray:
    """Float64 [n]: the true share of what is said; exactly 1 where all is true."""
    true = np.zeros(len(scenes.present))
    objects = meaning.get("objects", [])
    if objects:
        # Columns are the ways to match: `ways[w, i]` is the scene's object for the caption's i.
        ways = np.array(list(itertools.permutations(range(_MOST), len(objects))))
        best = np.zeros((len(true), len(ways)))
        for i, thing in enumerate(objects):
            weights = np.zeros(scenes.present.shape)
            for name, value in thing.items():
                weights += ATTRIBUTE_BITS[name] * scenes.has[name, value]
            best += weights[:, ways[:, i]]
        for i, relation, j in meaning.get("relations", []):
            held = scenes.related[relation][:, ways[:, i], ways[:, j]]
            best += RELATION_BITS[relation] * held
        true += best.max(1)
    for count in meaning.get("counts", []):
        found = scenes.count(count["of"])
        number = count["number"]
        true += _count_bits(count) * (found >= number if count["at_least"] else found == number)
    for name, value in meaning.get("background", {}).items():
        true += BACKGROUND_BITS[name] * scenes.background[name, value]
    return true / bits(meaning)


def _shared_objects(few: Mapping[str, Any], many: Mapping[str, Any], match: Sequence[int]) -> float:
    """Bits of the objects and relations that agree; object i of `few` is match[i] of `many`."""
    shared = 0.0
    for thing, number in zip(few.get("objects", []), match, strict=True):
        other = many["objects"][number]
        shared += sum(ATTRIBUTE_BITS[name] * (other.get(name) == thing[name]) for name in thing)
    for i, name, j in few.get("relations", []):
        held = [match[i], name, match[j]] in many.get("relations", [])
        shared += RELATION_BITS[name] * held
    return shared


def _attribute_bits(attributes: Mapping[str, str]) -> float:
    return sum((ATTRIBUTE_BITS[name] for name in attributes), 0.0)


def _count_bits(count: Mapping[str, Any]) -> float:
    weight = LEAST_COUNT_BITS if count["at_least"] else EXACT_COUNT_BITS
    return weight + _attribute_bits(count["of"])
