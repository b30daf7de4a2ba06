"""Tokenizers as published weights bring them, made to split text as `transformers` does."""

import json
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Words
from tokenizers.models import Unigram, WordPiece
from tokenizers.processors import TemplateProcessing

from vse_jax.data.split import DataError
from vse_jax.models.backbones import weights

# BERT's, unless tokenizer_config.json says otherwise.
_NAMES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# What SentencePiece writes for a space.
_SPACE = "\u2581"


def read(source: str | Path) -> tuple[Words, int, int | None]:
    """(the tokenizer of `source`, its padding token, the most tokens its model reads or None).

    Args:
      source: a folder, file or hub name of weights, see `weights.locate`; beside them lies
        `tokenizer.json`, or BERT's `vocab.txt`, and mostly `tokenizer_config.json`.

    Raises:
      DataError: there is no such file, or it is damaged.
      WeightsError: no such path, and the hub has no such name or cannot be reached.
    """
    path = weights.locate(source)
    folder = path if path.is_dir() else path.parent
    settings = _read_object(folder / weights.TOKENIZER_CONFIG)
    if (folder / weights.TOKENIZER).is_file():
        words = _library_file(folder / weights.TOKENIZER)
    elif (folder / weights.VOCABULARY).is_file():
        words = _word_pieces(folder / weights.VOCABULARY, settings)
    else:
        raise DataError(
            f"tokenizer {folder}: neither {weights.TOKENIZER} nor {weights.VOCABULARY} beside the "
            "weights (model.text.weights)"
        )
    if _is_siglip(folder, settings):
        words.normalizer = _as_siglip(words, settings.get("do_lower_case", True))
    most = settings.get("model_max_length")
    return words, _padding(words, folder, settings), None if most is None else int(most)


def _library_file(file: Path) -> Words:
    try:
        return Words.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{file}: no tokenizer file: {error}") from error


def _word_pieces(file: Path, settings: Mapping[str, Any]) -> Words:
    """BERT's tokenizer of a vocabulary with a piece on each line.

    Source: Devlin et al., BERT, NAACL 2019, section 3; the defaults are bert-base-uncased's.
    """
    try:
        pieces = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: the vocabulary cannot be read: {error}") from error
    numbers = {piece: number for number, piece in enumerate(pieces)}
    names = {key: _name(settings.get(key)) or usual for key, usual in _NAMES.items()}
    for key in ("unk_token", "cls_token", "sep_token"):
        if names[key] not in numbers:
            raise DataError(f"{file}: the vocabulary has no {names[key]} ({key})")
    words = Words(WordPiece(numbers, unk_token=names["unk_token"]))
    words.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    opening, closing = names["cls_token"], names["sep_token"]
    words.post_processor = TemplateProcessing(
        single=f"{opening} $A {closing}",
        special_tokens=[(token, numbers[token]) for token in (opening, closing)],
    )
    words.add_special_tokens([token for token in names.values() if token in numbers])
    return words


def _is_siglip(folder: Path, settings: Mapping[str, Any]) -> bool:
    kind = _read_object(folder / weights.CONFIG).get("model_type")
    return any("siglip" in str(name).lower() for name in (kind, settings.get("tokenizer_class")))


def _as_siglip(words: Words, lower_case: bool) -> normalizers.Normalizer:
    """What SigLIP's training did to texts first, which not every `tokenizer.json` says.

    SigLIP lower-cased, dropped ASCII's punctuation and made all white space one space; SigLIP 2,
    whose pieces are not unigrams, only lower-cased.
    """
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lower_case else []
    if isinstance(words.model, Unigram):
        punctuation = Regex(f"[{re.escape(string.punctuation)}]")
        steps += [
            normalizers.Replace(_SPACE, " "),
            normalizers.Replace(punctuation, ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    if words.normalizer is not None:
        steps.append(words.normalizer)
    return normalizers.Sequence(steps)


def _padding(words: Words, folder: Path, settings: Mapping[str, Any]) -> int:
    """The number of the token that the model is padded with."""
    special = _read_object(folder / weights.SPECIAL_TOKENS)
    named = [_name(file.get("pad_token")) for file in (settings, special)]
    if words.padding is not None:
        named.append(words.padding["pad_token"])
    for name in [*named, _NAMES["pad_token"], "<pad>"]:
        number = None if name is None else words.token_to_id(name)
        if number is not None:
            return number
    # CLIP and SigLIP pad with the token that closes a sentence, where nothing else is said.
    words.no_padding()
    return (words.encode("").ids or [0])[-1]


def _name(token: Any) -> str | None:
    """A token as the configuration writes it, by itself or with its attributes."""
    return token.get("content") if isinstance(token, Mapping) else token


def _read_object(file: Path) -> dict[str, Any]:
    """What a JSON file says, nothing where there is none."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected a JSON object, met {type(value).__name__}")
    return value
