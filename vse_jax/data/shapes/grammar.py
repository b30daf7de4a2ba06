"""English captions of scenes, each with its meaning (similarity.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vse_jax.data.shapes import words
from vse_jax.data.shapes.attributes import OBJECT

KINDS = ("whole", "part", "relation", "count", "vague")

_CLEARLY = 0.2  # Distance, of the picture's side, from which a place is worth a caption.


class Grammar:
    """Sentences about one scene after another, worded by chance.

    Args:
      rng: chooses what is said, and how.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def captions(
        self, scene: Mapping[str, Any], kinds: Sequence[str] = KINDS
    ) -> list[tuple[str, dict[str, Any]]]:
        """One (sentence, meaning) for each of `kinds`, all of them true.

        A scene with nothing to relate (one object, or none clearly apart) gets a
        "part" in place of "relation".
        """
        tell = {
            "whole": self._whole,
            "part": self._part,
            "relation": lambda scene: self._relation(scene) or self._part(scene),
            "count": self._count,
            "vague": self._vague,
        }
        # Relations come first, as where the published captions were drawn.
        order = sorted(range(len(kinds)), key=lambda k: kinds[k] != "relation")
        said = {k: tell[kinds[k]](scene) for k in order}
        return [said[k] for k in range(len(kinds))]

    def snippet(self, thing: Mapping[str, Any]) -> str:
        """An object in words, with all its attributes: "a small red striped star"."""
        return self._noun_phrase({name: thing[name] for name in OBJECT})

    def _whole(self, scene: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        names = ["shape", "colour", *(name for name in ("size", "fill") if self._chance(0.8))]
        objects = self._shuffled([_pick(thing, names) for thing in scene["objects"]])
        meaning: dict[str, Any] = {
            "kind": "whole",
            "objects": objects,
            "counts": [_exactly({}, len(objects))],
        }
        things = self._list(objects)
        if self._chance(0.4):
            return self._sentence(
                f"there {_is(things)} {things}", f"we see {things} and nothing else", things
            ), meaning
        meaning["background"] = dict(scene["background"])
        ground = self._ground(scene["background"])
        return self._sentence(
            f"{things} on {ground}",
            f"{ground} with {things}",
            f"there {_is(things)} {things} on {ground}",
            f"the picture shows {things} against {ground}",
        ), meaning

    def _part(self, scene: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        count = min(len(scene["objects"]), 2 if self._chance(0.4) else 1)
        objects = []
        for thing in self._shuffled(scene["objects"])[:count]:
            extra = [name for name in ("size", "fill") if count == 1 or self._chance(0.4)]
            objects.append(_pick(thing, ["shape", "colour", *extra]))
        meaning: dict[str, Any] = {"kind": "part", "objects": objects}
        things = self._list(objects)
        if count == 1 and self._chance(0.4):
            meaning["background"] = _pick(scene["background"], ["tone"])
            ground = self._ground(meaning["background"])
            return self._sentence(f"{things} on {ground}", f"{ground} and {things}"), meaning
        return self._sentence(
            f"there {_is(things)} {things} in the picture",
            f"a picture with {things} in it",
            f"you can see {things} here",
            f"{things} can be seen",
        ), meaning

    def _relation(self, scene: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        clear = [held for held in scene["relations"] if _clear(scene["objects"], *held)]
        if not clear:
            return None
        i, name, j = clear[self._rng.integers(len(clear))]
        extra = [attribute for attribute in ("size", "fill") if self._chance(0.25)]
        objects = [_pick(scene["objects"][k], ["shape", "colour", *extra]) for k in (i, j)]
        meaning = {"kind": "relation", "objects": objects, "relations": [[0, name, 1]]}
        between, (first, second) = words.RELATIONS, objects
        if self._chance(0.5):
            between, (first, second) = words.CONVERSES, (second, first)
        start, end = self._noun_phrase(first), self._noun_phrase(second)
        if first == second:
            end = "another" + end[end.index(" ") :]
        place = self._one(between[name])
        return self._sentence(
            f"{start} is {place} {end}",
            f"there is {start} {place} {end}",
            f"{start} {place} {end}",
        ), meaning

    def _count(self, scene: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        total = len(scene["objects"])
        counts = [_exactly({}, total)]
        name = self._one(("shape", "colour", "size", "fill"))
        value = self._one([thing[name] for thing in scene["objects"]])
        some = _exactly({name: value}, sum(t[name] == value for t in scene["objects"]))
        if total == 1 or self._chance(0.25):
            noun = self._counted(counts[0])
            text = self._sentence(
                f"there {_is(noun)} exactly {noun}", f"a picture of exactly {noun}"
            )
        elif some["number"] == total or self._chance(0.4):
            counts, noun = [some], self._counted(some)
            text = self._sentence(
                f"there {_is(noun)} exactly {noun}", f"{noun}, no more and no less"
            )
        else:
            things, noun = self._counted(counts[0]), self._counted(some)
            counts.append(some)
            text = self._sentence(
                f"{things}, {noun} among them", f"{things}: {noun} and no more of that kind"
            )
        return text, {"kind": "count", "counts": counts}

    def _vague(self, scene: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        choice = self._rng.integers(4)
        if choice == 0 and len(scene["objects"]) > 1:
            return self._amount(scene)
        if choice == 1:
            ground = self._ground(scene["background"])
            meaning = {"kind": "vague", "background": dict(scene["background"])}
            return self._sentence(
                f"something on {ground}", f"{ground} with something on it"
            ), meaning
        things = self._shuffled(scene["objects"])[: 2 if choice == 2 else 1]
        objects = [_pick(thing, [self._one(("shape", "colour", "fill"))]) for thing in things]
        text = " and ".join(self._something(thing) for thing in objects)
        text = self._sentence(text, f"there is {text}", f"I can see {text}")
        return text, {"kind": "vague", "objects": objects}

    def _amount(self, scene: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        least = min(len(scene["objects"]), 3)
        things = self._one(words.AMOUNTS[least])
        tone = _pick(scene["background"], ["tone"])
        ground = self._ground(tone)
        text = self._sentence(f"{things} on {ground}", f"{ground} and {things}")
        count = {"of": {}, "number": least, "at_least": True}
        return text, {"kind": "vague", "counts": [count], "background": tone}

    def _noun_phrase(self, attributes: Mapping[str, str], number: int = 1) -> str:
        said = [] if number == 1 else [self._one(words.NUMBERS[number])]
        for name, synonyms in (
            ("size", words.SIZE_WORDS),
            ("colour", words.COLOUR_WORDS),
            ("fill", words.FILL_WORDS),
        ):
            if name in attributes:
                said.append(self._one(synonyms[attributes[name]]))
        noun = self._one(words.SHAPE_WORDS.get(attributes.get("shape", ""), words.NOUNS))
        said.append(noun if number == 1 else words.PLURALS.get(noun, noun + "s"))
        return _with_article(" ".join(said)) if number == 1 else " ".join(said)

    def _list(self, objects: Sequence[Mapping[str, str]]) -> str:
        """ "a red star, two blue rings and a heart": equal objects are counted."""
        distinct = [thing for k, thing in enumerate(objects) if thing not in objects[:k]]
        phrases = [self._noun_phrase(thing, objects.count(thing)) for thing in distinct]
        if len(phrases) == 1:
            return phrases[0]
        return ", ".join(phrases[:-1]) + " and " + phrases[-1]

    def _counted(self, count: Mapping[str, Any]) -> str:
        """ "one star", "three red shapes": a number, never an article."""
        if count["number"] == 1:
            phrase = self._noun_phrase(count["of"])
            return "one" + phrase[phrase.index(" ") :]
        phrase = self._noun_phrase(count["of"], count["number"])
        return phrase.replace("a pair of", "two")

    def _something(self, attributes: Mapping[str, str]) -> str:
        name, value = next(iter(attributes.items()))
        if name == "shape":
            noun = self._one(words.SHAPE_WORDS[value])
            return self._one((f"some kind of {noun}", f"a {noun} of some colour"))
        synonyms = words.COLOUR_WORDS if name == "colour" else words.FILL_WORDS
        return "something " + self._one(synonyms[value])

    def _ground(self, background: Mapping[str, str]) -> str:
        said = [self._one(words.TONE_WORDS[background["tone"]])]
        if "pattern" in background:
            said.append(self._one(words.PATTERN_WORDS[background["pattern"]]))
        return _with_article(" ".join([*said, self._one(("background", "backdrop"))]))

    def _sentence(self, *wordings: str) -> str:
        text = self._one(wordings)
        return text[0].upper() + text[1:] + "."

    def _one(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]

    def _shuffled(self, items: Sequence[Any]) -> list[Any]:
        return [items[int(k)] for k in self._rng.permutation(len(items))]

    def _chance(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)


def _pick(attributes: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    return {name: attributes[name] for name in names}


def _exactly(attributes: Mapping[str, str], number: int) -> dict[str, Any]:
    return {"of": dict(attributes), "number": number, "at_least": False}


def _clear(things: Sequence[Mapping[str, Any]], i: int, name: str, j: int) -> bool:
    """Whether a relation is one that people would mention: far enough, and in that direction."""
    if name == "front":
        return True
    first, second = things[i]["box"], things[j]["box"]
    down = abs(first[0] + first[2] - second[0] - second[2]) / 2
    right = abs(first[1] + first[3] - second[1] - second[3]) / 2
    distance, other = (right, down) if name == "left" else (down, right)
    return distance >= _CLEARLY and distance >= other


def _is(things: str) -> str:
    return "is" if things.startswith(("a ", "an ", "one ")) else "are"


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
