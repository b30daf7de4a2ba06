"""Which words say something of what a picture shows: all but stop words."""

import functools
import importlib.resources

from vse_jax.data.tokenizer import Tokenizer


@functools.cache
def stop_words() -> frozenset[str]:
    """English words that say nothing of a picture, in lower case."""
    text = importlib.resources.files("vse_jax.data") / "stop_words" / "english.txt"
    return frozenset(text.read_text(encoding="utf-8").split())


def function_words(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The token numbers of stop words, and of what stands for no word, such as <end>."""
    known = (tokenizer.words.token_to_id(word) for word in stop_words())
    return tuple(sorted({*tokenizer.special, *(number for number in known if number is not None)}))
