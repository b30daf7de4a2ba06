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
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from vse_jax.data.shapes.attributes import (
    ATTRIBUTE_BITS,
    BACKGROUND,
    BACKGROUND_BITS,
    EXACT_COUNT_BITS,
    LEAST_COUNT_BITS,
    OBJECT,
    RELATION_BITS,
)

# Ways to match objects that are all tried; of more the best is found by assignment, unless there
# are relations, which captions of two objects have.
_MOST_WAYS = 100


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
    return float(_shares(_Scenes([scene], [meaning]), meaning)[0])


def caption_similarity(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Share in [0, 1] of what two captions say that both say: 2 shared / (bits + bits).

    Objects of the one are matched with objects of the other in the way that shares most.
    Symmetrical, and 1 exactly for captions of the same meaning.
    """
    few, many = sorted((first, second), key=lambda meaning: len(meaning.get("objects", [])))
    shared = _shared_objects(few, many)
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
    table = _Scenes(scenes, meanings)
    scores = np.empty((len(scenes), len(meanings)), np.float32)
    for column, meaning in enumerate(meanings):
        share = _shares(table, meaning)
        told = bits(meaning)
        scores[:, column] = (share + (share == 1.0) * told / (told + 16)) / 2
    return scores


class _Scenes:
    """Scenes as arrays: which object has which attribute, which pair stands in which relation.

    There are as many columns as the scenes or the captions to be matched have objects at most.
    """

    def __init__(
        self, scenes: Sequence[Mapping[str, Any]], meanings: Sequence[Mapping[str, Any]]
    ) -> None:
        size = len(scenes)
        most = max((len(said.get("objects", [])) for said in (*scenes, *meanings)), default=0)
        self.present = np.zeros((size, most), bool)
        self.has = {
            (name, value): np.zeros((size, most), bool)
            for name, values in OBJECT.items()
            for value in values
        }
        self.background = {
            (name, value): np.zeros(size, bool)
            for name, values in BACKGROUND.items()
            for value in values
        }
        self.related = {name: np.zeros((size, most, most), bool) for name in RELATION_BITS}
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
    if meaning.get("objects"):
        true += _matched(scenes, meaning["objects"], meaning.get("relations", []))
    for count in meaning.get("counts", []):
        found = scenes.count(count["of"])
        number = count["number"]
        true += _count_bits(count) * (found >= number if count["at_least"] else found == number)
    for name, value in meaning.get("background", {}).items():
        true += BACKGROUND_BITS[name] * scenes.background[name, value]
    return true / bits(meaning)


def _matched(
    scenes: _Scenes, objects: Sequence[Mapping[str, str]], relations: Sequence[Any]
) -> np.ndarray:
    """Float64 [n]: bits of a caption's objects and relations, in the way that makes most true."""
    size, places = scenes.present.shape
    weights = np.zeros((size, len(objects), places))
    for i, thing in enumerate(objects):
        for name, value in thing.items():
            weights[:, i] += ATTRIBUTE_BITS[name] * scenes.has[name, value]
    if not relations and math.perm(places, len(objects)) > _MOST_WAYS:
        return np.array([_assigned(each) for each in weights])
    # Columns are the ways to match: `ways[w, i]` is the scene's object for the caption's i.
    ways = np.array(list(itertools.permutations(range(places), len(objects))))
    best = np.zeros((size, len(ways)))
    for i in range(len(objects)):
        best += weights[:, i, ways[:, i]]
    for i, relation, j in relations:
        best += RELATION_BITS[relation] * scenes.related[relation][:, ways[:, i], ways[:, j]]
    return best.max(1)


def _shared_objects(few: Mapping[str, Any], many: Mapping[str, Any]) -> float:
    """Bits of the objects and relations that agree, in the way to match them that shares most."""
    first, second = (meaning.get("objects", []) for meaning in (few, many))
    weights = np.array([[_agreeing(thing, other) for other in second] for thing in first])
    weights = weights.reshape(len(first), len(second))
    relations, known = (meaning.get("relations", []) for meaning in (few, many))
    if not relations or not known:
        return _assigned(weights)
    return max(
        float(sum(weights[i, j] for i, j in enumerate(match)))
        + sum(RELATION_BITS[name] * ([match[i], name, match[j]] in known)
              for i, name, j in relations)
        for match in itertools.permutations(range(len(second)), len(first))
    )  # fmt: skip


def _assigned(weights: np.ndarray) -> float:
    """The largest sum of one weight in each row, no two in one column."""
    return float(weights[linear_sum_assignment(weights, maximize=True)].sum())


def _agreeing(thing: Mapping[str, str], other: Mapping[str, str]) -> float:
    return sum(
        (ATTRIBUTE_BITS[name] for name in thing if other.get(name) == thing[name]), start=0.0
    )


def _attribute_bits(attributes: Mapping[str, str]) -> float:
    return sum((ATTRIBUTE_BITS[name] for name in attributes), 0.0)


def _count_bits(count: Mapping[str, Any]) -> float:
    weight = LEAST_COUNT_BITS if count["at_least"] else EXACT_COUNT_BITS
    return weight + _attribute_bits(count["of"])
