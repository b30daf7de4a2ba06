"""Tokenizers on the `tokenizers` library: words of training captions, or those of weights.

Two presets take their vocabulary from training captions; "pretrained" is what published weights
were trained with.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Words
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer

from vse_jax.data import tokenizer_files
from vse_jax.data.split import DataError

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unk>"
SPECIAL = [PAD, START, END, UNKNOWN]
# How often a training caption must use a word for it to enter the vocabulary.
MIN_COUNT = {"vse": 4, "dvsa": 5}
# What stands for a word that is hidden, the first of them that a tokenizer knows.
MASKS = ("[MASK]", "<mask>", "[UNK]", UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Sentences to padded token numbers.

    Attributes:
      preset: "vse" maps unknown words to <unk>; "dvsa" drops them; "pretrained" splits them.
      words: the tokenizer of the library.
      max_tokens: of a sentence, those that open and close it included.
      pad: the token behind shorter sentences.
    """

    preset: str
    words: Words
    max_tokens: int
    pad: int = 0

    def __post_init__(self) -> None:
        """Reads "<end>" in a sentence as what people wrote, not as the token.

        Cutting and padding are not left to the library: it would pad to the longest uncut.
        """
        self.words.encode_special_tokens = True
        self.words.no_truncation()
        self.words.no_padding()

    @property
    def vocabulary(self) -> int:
        """How many token numbers there are."""
        return self.words.get_vocab_size()

    @property
    def mask_token(self) -> int:
        """What stands for a hidden word: the model's own mask token, else the unknown word.

        Raises:
          DataError: there is neither, as in CLIP's vocabulary.
        """
        known = [self.words.token_to_id(name) for name in MASKS]
        found = [number for number in known if number is not None]
        if not found:
            raise DataError(f"the tokenizer has none of {', '.join(MASKS)} to hide words with")
        return found[0]

    @property
    def special(self) -> tuple[int, ...]:
        """The tokens that stand for no word or part of one: padding, start, end, unknown, mask."""
        added = self.words.get_added_tokens_decoder()
        return tuple(sorted({self.pad} | {n for n, token in added.items() if token.special}))

    @property
    def opening(self) -> int:
        """The token that opens a sentence, of a tokenizer of training captions."""
        return self._own(START)

    @property
    def closing(self) -> int:
        """The token that closes it."""
        return self._own(END)

    @property
    def unknown(self) -> int:
        """The token of unknown words."""
        return self._own(UNKNOWN)

    def _own(self, name: str) -> int:
        assert self.preset != "pretrained", "weights have tokens of their own"
        return SPECIAL.index(name)

    def sentences(self, tokens: np.ndarray) -> list[str]:
        """The words of each row of token numbers [b, l], special tokens left out."""
        special = set(self.special)
        return [
            " ".join(str(self.words.id_to_token(t)) for t in row if t not in special)
            for row in tokens.tolist()
        ]

    def tokenize(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [b, l], mask bool [b, l]) with l the longest of these, at least 1.

        Longer sentences are cut so that the token that closes them stays the last.
        """
        rows = [encoding.ids for encoding in self.words.encode_batch(list(sentences))]
        if self.preset == "dvsa":
            unknown = SPECIAL.index(UNKNOWN)
            rows = [[token for token in row if token != unknown] for row in rows]
        rows = [
            row if len(row) <= self.max_tokens else [*row[: self.max_tokens - 1], row[-1]]
            for row in rows
        ]
        length = max(map(len, rows), default=1)
        tokens = np.full((len(rows), length), self.pad, np.int32)
        mask = np.zeros((len(rows), length), bool)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
            mask[number, : len(row)] = True
        return tokens, mask

    def to_json(self) -> str:
        """The library's JSON, for `load`."""
        if self.preset != "pretrained":
            return self.words.to_str(pretty=True)
        # The library's own place for the padding token.
        copy = Words.from_str(self.words.to_str())
        copy.enable_padding(pad_id=self.pad, pad_token=self.words.id_to_token(self.pad))
        return copy.to_str(pretty=True)


def train(captions: Sequence[str], preset: Literal["vse", "dvsa"], max_tokens: int) -> Tokenizer:
    """A tokenizer whose words are those of the training captions.

    "vse": lower-cased words, seen 4 times. "dvsa": lower case, everything but letters, digits
    and spaces dropped, seen 5 times. Source: the released code of VSE++ (Faghri et al., BMVC
    2018) with its count of 4; Karpathy & Fei-Fei, CVPR 2015, section 4.
    """
    words = Words(WordLevel(unk_token=UNKNOWN))
    if preset == "vse":
        words.normalizer = normalizers.Lowercase()
        pattern = Regex(r"[\p{L}\p{N}_]+(?:['’][\p{L}\p{N}_]+)*")
        words.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(pattern, "removed", invert=True)]
        )
    else:
        words.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^a-z0-9\s]"), "")]
        )
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = WordLevelTrainer(
        min_frequency=MIN_COUNT[preset], special_tokens=SPECIAL, show_progress=False
    )
    words.train_from_iterator(captions, trainer)
    words.post_processor = TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, SPECIAL.index(token)) for token in (START, END)],
    )
    return Tokenizer(preset, words, max_tokens)


def pretrained(source: str | Path, max_tokens: int) -> Tokenizer:
    """The tokenizer that pretrained weights were trained with.

    Args:
      source: the weights: a folder, a file in it, or a name on the Hugging Face hub.
      max_tokens: of a sentence, those that open and close it included.

    Raises:
      DataError: no tokenizer lies beside the weights, it is damaged, or `max_tokens` is more
        than the model reads.
      WeightsError: no such path, and the hub has no such name or cannot be reached.
    """
    words, pad, most = tokenizer_files.read(source)
    if most is not None and max_tokens > most:
        raise DataError(
            f"tokenizer of {source}: its model reads at most {most} tokens, and data.max_tokens is "
            f"{max_tokens}"
        )
    return Tokenizer("pretrained", words, max_tokens, pad)


def load(path: str | os.PathLike[str], preset: str, max_tokens: int) -> Tokenizer:
    """The tokenizer of a file with `Tokenizer.to_json`; raises DataError where it is none."""
    try:
        words = Words.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path}: no tokenizer file: {error}") from error
    return Tokenizer(preset, words, max_tokens, (words.padding or {"pad_id": 0})["pad_id"])


def read_glove(
    path: str | os.PathLike[str], tokenizer: Tokenizer, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """(vectors float32 [vocabulary, width], found bool [vocabulary]) from GloVe's text format.

    Raises:
      DataError: no such file, or a line that is not a word and `width` numbers.
    """
    vocabulary = tokenizer.words.get_vocab()
    vectors = np.zeros((tokenizer.vocabulary, width), np.float32)
    found = np.zeros(tokenizer.vocabulary, bool)
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                word, *values = line.rstrip().split(" ")
                # Some words of GloVe 840B have spaces: "at name@domain.com 0.1 ...".
                if word not in vocabulary or (len(values) > width and not _number(values[0])):
                    continue
                if len(values) != width or not all(map(_number, values)):
                    raise DataError(
                        f"{path}:{number}: {word!r} with {len(values)} values; expected a word "
                        f"and {width} numbers (model.text.words)"
                    )
                vectors[vocabulary[word]] = np.asarray(values, np.float32)
                found[vocabulary[word]] = True
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: word vectors cannot be read: {error}") from error
    return vectors, found


def _number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
