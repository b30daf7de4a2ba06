"""Scenes: which objects there are, where they lie, and how they lie to each other."""

import dataclasses
from typing import Any

import numpy as np

from vse_jax.data.shapes import drawing
from vse_jax.data.shapes.attributes import BACKGROUND, DIAMETERS, OBJECT, PICTURE

MOST_HIDDEN = 0.35  # Share of an object that those in front of it may cover.
APART = 0.1  # Distance of two centres, of the picture's side, from which one is beside the other.
# Shares of scenes with 1, 2, 3 and 4 objects; in any other range all numbers are as frequent.
_COUNTS = (0.1, 0.3, 0.35, 0.25)
# Objects that find no place in so many tries are drawn anew: eight may never find one.
_TRIES = 10_000


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """What makes scenes hard to recognise; the defaults are those of the data set as published.

    Attributes:
      clutter: factor on the number of specks and scratches. Those beyond the usual number, of
        factors above 1, have the colours of objects: `drawing.distract`.
      hidden: largest share of an object that those in front of it may cover.
      objects: fewest and most objects of a scene.
    """

    clutter: float = 1.0
    hidden: float = MOST_HIDDEN
    objects: tuple[int, int] = (1, len(_COUNTS))


USUAL = Difficulty()


def sample(rng: np.random.Generator, difficulty: Difficulty = USUAL) -> dict[str, Any]:
    """A scene, JSON-like.

    Returns:
      {"background": {"tone", "pattern"},
       "clutter": number of specks,
       "distractors": number of specks and strokes in the colours of objects; not there if 0,
       "objects": from back to front [{"shape", "colour", "size", "fill", "diameter" in pixels,
         "turn" in degrees, "corner": [top, left] in pixels, "box": [y0, x0, y1, x1] in [0, 1],
         of the whole object where part of it is hidden}],
       "main": number of the largest object,
       "relations": all that hold, [[i, "left" | "above" | "front", j]]: i is left of j, ...}
    """
    count = _count(difficulty.objects, rng)
    while True:
        things = _looks(count, rng)
        main = _main(things, rng)
        covers = _measure(things, main, rng)
        if any(_place(things, covers, difficulty.hidden, rng) for _ in range(_TRIES)):
            break
    return {
        "background": {name: str(rng.choice(values)) for name, values in BACKGROUND.items()},
        **_specks(difficulty.clutter, rng),
        "objects": things,
        "main": main,
        "relations": _relations(things, covers),
    }


def _count(objects: tuple[int, int], rng: np.random.Generator) -> int:
    least, most = objects
    shares = _COUNTS if tuple(objects) == USUAL.objects else None
    return int(rng.choice(range(least, most + 1), p=shares))


def _specks(factor: float, rng: np.random.Generator) -> dict[str, int]:
    """The usual number of grey ones at most; what is more is coloured."""
    usual = int(rng.integers(4, 19))
    total = round(factor * usual)
    found = {"clutter": min(usual, total)}
    return found | {"distractors": total - usual} if total > usual else found


def _looks(count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Attributes drawn evenly; every third object takes one from the object before it."""
    things: list[dict[str, Any]] = []
    for number in range(count):
        thing = {name: str(rng.choice(values)) for name, values in OBJECT.items()}
        if number and rng.random() < 0.33:
            shared = str(rng.choice(["shape", "colour"]))
            thing[shared] = things[-1][shared]
        things.append(thing)
    return things


def _main(things: list[dict[str, Any]], rng: np.random.Generator) -> int:
    large = [number for number, thing in enumerate(things) if thing["size"] == "large"]
    return int(rng.choice(large or range(len(things))))


def _measure(things: list[dict[str, Any]], main: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Gives every object its diameter and turn; returns the coverage of each."""
    for number, thing in enumerate(things):
        low, high = DIAMETERS[thing["size"]][number == main]
        thing["diameter"] = round(float(rng.uniform(low, high)), 2)
        thing["turn"] = round(float(rng.uniform(-18, 18)), 1)
    return [drawing.mask(t["shape"], t["diameter"], t["turn"]) for t in things]


def _place(
    things: list[dict[str, Any]], covers: list[np.ndarray], hidden: float, rng: np.random.Generator
) -> bool:
    """Gives every object its place; False where one is too well hidden."""
    for thing, cover in zip(things, covers, strict=True):
        height, width = cover.shape
        top = int(rng.integers(1, PICTURE - height))
        left = int(rng.integers(1, PICTURE - width))
        thing["corner"] = [top, left]
        edges = (top, left, top + height, left + width)
        thing["box"] = [round(edge / PICTURE, 6) for edge in edges]
    stamps = [_stamp(thing, cover) for thing, cover in zip(things, covers, strict=True)]
    for number, stamp in enumerate(stamps):
        front = np.zeros_like(stamp)
        for thing, other in zip(things[number + 1 :], stamps[number + 1 :], strict=True):
            # Two of one colour would melt into one another.
            if thing["colour"] == things[number]["colour"] and (stamp & other).any():
                return False
            front |= other
        if _share(stamp, front) > hidden:
            return False
    return True


def _relations(things: list[dict[str, Any]], covers: list[np.ndarray]) -> list[list[Any]]:
    centres = [((t["box"][0] + t["box"][2]) / 2, (t["box"][1] + t["box"][3]) / 2) for t in things]
    stamps = [_stamp(thing, cover) for thing, cover in zip(things, covers, strict=True)]
    found: list[list[Any]] = []
    for i, (y, x) in enumerate(centres):
        for j, (other_y, other_x) in enumerate(centres):
            if x + APART <= other_x:
                found.append([i, "left", j])
            if y + APART <= other_y:
                found.append([i, "above", j])
            if i > j and _share(stamps[j], stamps[i]) >= 0.05:
                found.append([i, "front", j])
    return found


def _stamp(thing: dict[str, Any], cover: np.ndarray) -> np.ndarray:
    stamp = np.zeros((PICTURE, PICTURE), bool)
    top, left = thing["corner"]
    stamp[top : top + cover.shape[0], left : left + cover.shape[1]] = cover > 0
    return stamp


def _share(area: np.ndarray, covering: np.ndarray) -> float:
    return float((area & covering).sum() / area.sum())
