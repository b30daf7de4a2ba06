"""Which objects of a scene each word of its caption may be about: the truth of alignments."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vse_jax.data.shapes import words as vocabulary

# The order of words in a noun phrase; "shape" is the noun.
_ORDER = ("size", "colour", "fill", "shape")


def mentions(words: Sequence[str], scene: Mapping[str, Any]) -> list[frozenset[int]]:
    """Of each word the numbers of the objects that it may be about; of most words none.

    Words of size, colour, fill and shape that stand together, as in "a small red star", are about
    all objects that have all of these attributes; a true caption has one at least, and where it
    has several nothing in it tells which is meant. So "shapes" in "three shapes", of which nothing
    is said, is about all objects. Words of the background, of relations and of counts, articles,
    verbs, "something" and whatever else is not in `words.py` are about none; a false caption's
    phrases may be.

    Args:
      words: of a caption, in lower case and without punctuation, as the tokenizer "dvsa" has them.
        Where it dropped some, a phrase says less and may be about more. A phrase ends behind its
        noun, before a word of none of these four kinds, and where the order of the grammar (size,
        colour, fill, shape) would be broken, so that it seldom runs into the next one.
      scene: as `scene.sample` gives it.
    """
    about: list[frozenset[int]] = [frozenset()] * len(words)
    for phrase in _phrases(words):
        said = [_MEANINGS[words[place]] for place in phrase]
        fitting = frozenset(
            number
            for number, thing in enumerate(scene["objects"])
            if all(value is None or thing[name] == value for name, value in said)
        )
        for place in phrase:
            about[place] = fitting
    return about


def _phrases(words: Sequence[str]) -> Iterator[list[int]]:
    """The places of the words of each noun phrase about objects."""
    phrase: list[int] = []
    reached = -1  # Place in the order of the phrase's last word.
    for place, word in enumerate(words):
        rank = _ORDER.index(_MEANINGS[word][0]) if word in _MEANINGS else -1
        if phrase and rank <= reached:
            yield phrase
            phrase = []
        if rank >= 0:
            phrase.append(place)
        reached = rank
    if phrase:
        yield phrase


def _meanings() -> dict[str, tuple[str, str | None]]:
    """Word -> (attribute, value); the nouns that fit every shape have none."""
    found: dict[str, tuple[str, str | None]] = {
        synonym: (name, value)
        for name, synonyms in (
            ("size", vocabulary.SIZE_WORDS),
            ("colour", vocabulary.COLOUR_WORDS),
            ("fill", vocabulary.FILL_WORDS),
        )
        for value, choices in synonyms.items()
        for synonym in choices
    }
    of_shapes = vocabulary.SHAPE_WORDS.items()
    for shape, choices in (*of_shapes, (None, vocabulary.NOUNS)):
        for noun in choices:
            for form in (noun, vocabulary.PLURALS.get(noun, noun + "s")):
                found[form] = ("shape", shape)
    return found


_MEANINGS = _meanings()
