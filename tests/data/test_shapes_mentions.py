"""What words of captions are about, against the meanings from which the captions were made."""

import itertools
import json
import re

import numpy as np
import pytest

from vse_jax.data import tokenizer
from vse_jax.data.shapes.builder import example
from vse_jax.data.shapes.grammar import Grammar
from vse_jax.data.shapes.mentions import mentions
from vse_jax.data.shapes.scene import sample


def split(text):
    return re.sub(r"[^a-z0-9\s]", "", text.lower()).split()


CONTENT = {
    *split("small little tiny large big huge solid filled striped stripy"),
    *split("red scarlet orange yellow golden green cyan turquoise blue purple violet pink rosy"),
    *split("circle disc square box triangle star heart cross plus moon crescent ring hoop"),
    *split("circles discs squares boxes triangles stars hearts crosses pluses moons crescents"),
    *split("rings hoops shape shapes figure figures"),
}
GROUND = {
    *split("white pale grey black dark brown background backdrop"),
    *split("plain even shaded fading lined checked chequered"),
}
CONVERSE = {"right", "below", "under", "beneath", "behind", "by"}


@pytest.fixture(scope="module")
def captioned():
    """(words, meaning, scene) of each caption of 1,000 scenes."""
    found, rng = [], np.random.default_rng(7)
    for _ in range(1000):
        # As in `builder.example`, without drawing the picture.
        scene = sample(rng)
        for text, meaning in Grammar(rng).captions(scene):
            found.append((split(text), meaning, scene))
    return found


def fitting(attributes, scene):
    return frozenset(
        number
        for number, thing in enumerate(scene["objects"])
        if all(thing[name] == value for name, value in attributes.items())
    )


def said(words, meaning):
    """(attributes, number of words) of each noun phrase of a caption, in order."""
    kind, objects = meaning["kind"], meaning.get("objects", [])
    if kind in ("whole", "part"):
        # Equal objects are counted: "two red stars".
        objects = [thing for k, thing in enumerate(objects) if thing not in objects[:k]]
    elif kind == "relation" and CONVERSE & set(words):
        objects = objects[::-1]
    elif kind == "count" or "counts" in meaning:
        objects = [count["of"] for count in meaning["counts"]]
    if kind == "vague" and objects and objects[0]:
        return [(thing, 1) for thing in objects]
    return [(thing, len(thing) + ("shape" not in thing)) for thing in objects]


def runs(about):
    """(objects, number of words) of each run of words that are about something."""
    grouped = itertools.groupby(about)
    return [(objects, len(list(words))) for objects, words in grouped if objects]


def test_phrases_are_about_the_objects_of_the_meaning_in_order(captioned):
    kinds = dict.fromkeys(("whole", "part", "relation", "count", "vague"), 0)
    ambiguous = 0
    for words, meaning, scene in captioned:
        expected = [(fitting(attributes, scene), size) for attributes, size in said(words, meaning)]
        found = runs(mentions(words, scene))
        assert found == expected, (words, meaning, scene["objects"])
        assert all(objects for objects, _ in expected)
        kinds[meaning["kind"]] += len(found)
        ambiguous += any(len(objects) > 1 for objects, _ in found)
    assert min(kinds.values()) > 500
    assert ambiguous > 500


def test_content_words_are_about_something_and_others_about_nothing(captioned):
    met = set()
    for words, _, scene in captioned:
        about = mentions(words, scene)
        assert len(about) == len(words)
        for word, objects in zip(words, about, strict=True):
            assert bool(objects) == (word in CONTENT), (word, words)
            assert objects <= set(range(len(scene["objects"])))
        met |= set(words)
    assert met >= CONTENT | GROUND


SCENE = {
    "objects": [
        {"shape": "star", "colour": "red", "size": "small", "fill": "solid"},
        {"shape": "star", "colour": "red", "size": "large", "fill": "striped"},
        {"shape": "square", "colour": "blue", "size": "small", "fill": "striped"},
        {"shape": "ring", "colour": "red", "size": "small", "fill": "striped"},
    ]
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a tiny red star on a dark lined background", [{0}] * 3),
        ("something red and something stripy", [{0, 1, 3}, {1, 2, 3}]),
        ("two red stars a hoop and a blue striped box", [{0, 1}] * 2 + [{3}] + [{2}] * 3),
        ("a pale checked backdrop with something on it", []),
        ("four shapes three red figures among them", [{0, 1, 2, 3}] + [{0, 1, 3}] * 2),
        ("a star of some colour", [{0, 1}]),
        ("some kind of crescent", [set()]),
        # Words dropped: "a scarlet [star] and", "a [small] star", "star [and a] big star".
        ("a scarlet and a blue box", [{0, 1, 3}, {2}, {2}]),
        ("a star is left of a ring", [{0, 1}, {3}]),
        ("small star big star", [{0}, {0}, {1}, {1}]),
        ("striped blue box", [{1, 2, 3}, {2}, {2}]),
        ("red blue", [{0, 1, 3}, {2}]),
        ("<start> red <unk> star <end>", [{0, 1, 3}, {0, 1}]),
        ("", []),
    ],
)
def test_by_hand(text, expected):
    words = text.split()
    about = mentions(words, SCENE)
    assert [objects for word, objects in zip(words, about, strict=True) if word in CONTENT] == (
        expected
    )
    assert not any(
        objects for word, objects in zip(words, about, strict=True) if word not in CONTENT
    )


def test_a_phrase_that_lost_adjectives_is_about_what_it_was_and_perhaps_more(captioned):
    rng, more = np.random.default_rng(0), 0
    for words, _, scene in captioned[:1000]:
        about = mentions(words, scene)
        inside = [a and a == b for a, b in zip(about, [*about[1:], None], strict=True)]
        kept = [k for k, adjective in enumerate(inside) if not adjective or rng.random() < 0.5]
        fewer = mentions([words[k] for k in kept], scene)
        for k, objects in zip(kept, fewer, strict=True):
            assert bool(objects) == bool(about[k])
            assert objects >= about[k]
            more += objects > about[k]
    assert more > 100


def test_the_words_of_the_tokenizer_will_do():
    made = [example(3, "train", number) for number in range(60)]
    captions = [text for each in made for text in each["captions"]]
    built = tokenizer.train(captions, "dvsa", 40)
    names = {number: word for word, number in built.words.get_vocab().items()}
    dropped = 0
    for each in made:
        scene = json.loads(each["scene"])
        tokens, mask = built.tokenize(each["captions"])
        for text, row, kept in zip(each["captions"], tokens, mask, strict=True):
            words = [names[number] for number in row[kept]]
            for word, objects in zip(words, mentions(words, scene), strict=True):
                assert bool(objects) == (word in CONTENT), (word, words)
            dropped += len(split(text)) - len(words[1:-1])
    assert dropped > 0
