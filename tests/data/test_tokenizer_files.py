"""Tokenizers of published weights, made small here: BERT's, CLIP's, SigLIP's."""

import json
import re
import string

import huggingface_hub
import numpy as np
import parity
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from vse_jax.data import tokenizer
from vse_jax.data.split import DataError
from vse_jax.models.backbones.weights import WeightsError

CAPTIONS = [
    "A brown dog runs through the snow .",
    "Two children are playing with a red ball on the beach",
    "a man in a black jacket rides his bicycle down the street",
]
SENTENCES = [
    *CAPTIONS,
    "Naïve DOGS, don't   run!",
    "a\tman\n(in red) plays",
    "  2,000 snowmen -- café 犬",
    "",
]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "runs", "The", "the"]


def write(folder, **files):
    """JSON files of the folder, by their names without the ending."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def rows(found, sentences):
    tokens, mask = found.tokenize(sentences)
    assert (tokens[~mask] == found.pad).all()
    return [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    letters = sorted(set("".join(CAPTIONS).lower() + "ïé") - {" "})
    words = sorted({word for caption in CAPTIONS for word in caption.lower().split()})
    pieces = [*PIECES, "naïve", "naive", *letters, *(f"##{letter}" for letter in letters), *words]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    return write(folder, config={"model_type": "bert"})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """CLIP's byte pairs; what is added and where the words part is the public file's."""
    folder = tmp_path_factory.mktemp("clip")
    opening, closing = "<|startoftext|>", "<|endoftext|>"
    words = Tokenizer(models.BPE(unk_token=closing, end_of_word_suffix="</w>"))
    words.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    words.train_from_iterator([*CAPTIONS, " ".join(sorted(alphabet))], trainer)
    words.add_special_tokens([opening, closing])
    words.post_processor = processors.RobertaProcessing(
        (closing, words.token_to_id(closing)), (opening, words.token_to_id(opening)), False, False
    )
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    settings |= {"bos_token": opening, "eos_token": closing, "unk_token": closing}
    settings["pad_token"] = {"__type": "AddedToken", "content": closing, "special": True}
    return write(folder, tokenizer_config=settings, config={"model_type": "clip"})


def unigrams():
    """SigLIP's pieces without what comes before them: <pad>, </s>, <unk>, then the rest."""
    words = Tokenizer(models.Unigram())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90,
        special_tokens=["<p>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    words.train_from_iterator([caption.lower() for caption in CAPTIONS] * 3, trainer)
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return words


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    unigrams().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64}
    settings |= {"do_lower_case": True, "pad_token": "</s>", "unk_token": "<unk>"}
    return write(folder, tokenizer_config=settings, config={"model_type": "siglip"})


@pytest.mark.torch
@pytest.mark.parametrize("name", ["bert", "clip"])
@pytest.mark.parametrize("most", [40, 7])
def test_tokens_are_those_of_transformers(request, name, most):
    folder = request.getfixturevalue(name)
    found = tokenizer.pretrained(folder, most)
    theirs = parity.transformers().AutoTokenizer.from_pretrained(folder)
    expected = theirs(SENTENCES, truncation=True, max_length=most)["input_ids"]
    assert rows(found, SENTENCES) == expected
    assert (found.vocabulary, found.pad) == (len(theirs), theirs.pad_token_id)
    assert found.special == tuple(sorted(set(theirs.all_special_ids)))


@pytest.mark.torch
@pytest.mark.parametrize("settings", [{"do_lower_case": False}, {"strip_accents": False}])
def test_a_vocabulary_is_read_as_its_configuration_says(bert, tmp_path, settings):
    (tmp_path / "vocab.txt").write_bytes((bert / "vocab.txt").read_bytes())
    config = {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False}
    write(tmp_path, tokenizer_config=config | settings, config={"model_type": "bert"})
    theirs = parity.transformers().AutoTokenizer.from_pretrained(tmp_path)
    found = rows(tokenizer.pretrained(tmp_path, 40), SENTENCES)
    assert found == theirs(SENTENCES)["input_ids"]
    assert found != rows(tokenizer.pretrained(bert, 40), SENTENCES)


def canonical(text):
    """What SigLIP's training did to captions, in Python."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text).strip()


def test_siglip_reads_words_without_case_and_punctuation(siglip):
    """Compared with `transformers`' SiglipTokenizer apart: it needs sentencepiece's own file."""
    plain = Tokenizer.from_file(str(siglip / "tokenizer.json"))
    expected = [plain.encode(canonical(sentence)).ids for sentence in SENTENCES]
    found = tokenizer.pretrained(siglip, 64)
    assert rows(found, SENTENCES) == expected
    assert rows(found, ["Dogs!"]) == rows(found, [" dogs"])
    assert (found.pad, found.special, found.mask_token) == (1, (0, 1, 2), 2)


def test_siglip_does_it_where_only_the_model_says_whose_it_is(siglip, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((siglip / "tokenizer.json").read_bytes())
    write(tmp_path, config={"model_type": "siglip"})
    found = tokenizer.pretrained(tmp_path, 200)
    assert rows(found, SENTENCES) == rows(tokenizer.pretrained(siglip, 64), SENTENCES)


def test_siglip_2_lower_cases_and_keeps_punctuation(tmp_path):
    words = Tokenizer(models.BPE({"a": 0, "b": 1, "!": 2, "▁": 3}, []))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"tokenizer_class": "GemmaTokenizer", "pad_token": "b"})
    assert rows(tokenizer.pretrained(tmp_path, 9), ["Ab a!"]) == [[1, 3, 0, 2]]
    write(tmp_path, config={"model_type": "siglip"})
    assert rows(tokenizer.pretrained(tmp_path, 9), ["Ab a!"]) == [[0, 1, 3, 0, 2]]


@pytest.mark.parametrize("name", ["bert", "clip", "siglip"])
def test_a_long_sentence_is_cut_so_that_the_closing_token_stays(request, name):
    found = tokenizer.pretrained(request.getfixturevalue(name), 6)
    (whole,) = rows(tokenizer.pretrained(request.getfixturevalue(name), 60), CAPTIONS[:1])
    assert len(whole) > 6
    assert rows(found, CAPTIONS[:1]) == [[*whole[:5], whole[-1]]]
    tokens, mask = found.tokenize(CAPTIONS)
    assert (tokens.dtype, tokens.shape, mask.dtype) == (np.int32, (3, 6), np.bool_)


@pytest.mark.parametrize("name", ["bert", "clip", "siglip"])
def test_special_tokens_that_someone_wrote_are_text(request, name):
    found = tokenizer.pretrained(request.getfixturevalue(name), 60)
    names = [found.words.id_to_token(number) for number in found.special]
    edges = set(rows(found, [""])[0])
    (row,) = rows(found, [" ".join(names)])
    unknown = {found.words.token_to_id(name) for name in ("[UNK]", "<unk>")}
    assert len(row) > len(edges)
    assert set(row) & set(found.special) <= edges | unknown
    assert [row.count(edge) for edge in edges] == [1] * len(edges)


@pytest.mark.parametrize("name", ["bert", "clip", "siglip"])
def test_what_is_saved_is_loaded(request, tmp_path, name):
    found = tokenizer.pretrained(request.getfixturevalue(name), 12)
    path = tmp_path / "tokenizer.json"
    path.write_text(found.to_json(), encoding="utf-8")
    again = tokenizer.load(path, "pretrained", 12)
    for one, other in zip(found.tokenize(SENTENCES), again.tokenize(SENTENCES), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (again.pad, again.special, again.vocabulary) == (
        found.pad,
        found.special,
        found.vocabulary,
    )
    assert again.to_json() == found.to_json()


def test_the_librarys_own_cutting_and_padding_are_left_aside(bert, tmp_path):
    words = tokenizer.pretrained(bert, 40).words
    words = Tokenizer.from_str(words.to_str())
    words.enable_truncation(3)
    words.enable_padding(pad_id=0, pad_token="[PAD]", length=20)
    words.save(str(tmp_path / "tokenizer.json"))
    expected = rows(tokenizer.pretrained(bert, 40), SENTENCES)
    assert rows(tokenizer.pretrained(tmp_path, 40), SENTENCES) == expected


def test_the_padding_token_is_found_where_it_is_named(bert, tmp_path):
    words = Tokenizer.from_str(tokenizer.pretrained(bert, 40).words.to_str())
    words.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.pretrained(tmp_path, 40).pad == 0
    words.enable_padding(pad_id=6, pad_token="dog")
    words.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.pretrained(tmp_path, 40).pad == 6
    write(tmp_path, special_tokens_map={"pad_token": {"content": "[MASK]"}})
    assert tokenizer.pretrained(tmp_path, 40).pad == 4
    write(tmp_path, tokenizer_config={"pad_token": "a"})
    assert tokenizer.pretrained(tmp_path, 40).pad == 5


def test_without_a_name_for_it_the_closing_token_pads(clip, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((clip / "tokenizer.json").read_bytes())
    assert tokenizer.pretrained(tmp_path, 40).pad == tokenizer.pretrained(clip, 40).pad


def test_hidden_words_and_special_tokens(bert, clip):
    found = tokenizer.pretrained(bert, 40)
    assert (found.mask_token, found.special) == (4, (0, 1, 2, 3, 4))
    own = tokenizer.train(["a dog"] * 5, "vse", 9)
    assert (own.mask_token, own.special, own.pad) == (3, (0, 1, 2, 3), 0)
    with pytest.raises(DataError, match=r"none of \[MASK\], <mask>, \[UNK\], <unk>"):
        _ = tokenizer.pretrained(clip, 40).mask_token


def test_more_tokens_than_the_model_reads_are_refused(clip):
    with pytest.raises(DataError, match=r"reads at most 77 tokens, and data\.max_tokens is 78"):
        tokenizer.pretrained(clip, 78)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(DataError, match=r"neither tokenizer\.json nor vocab\.txt"):
        tokenizer.pretrained(tmp_path, 9)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    with pytest.raises(DataError, match=r"vocab\.txt: the vocabulary has no \[CLS\] \(cls_token\)"):
        tokenizer.pretrained(tmp_path, 9)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"vocab\.txt: the vocabulary cannot be read"):
        tokenizer.pretrained(tmp_path, 9)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: no tokenizer file"):
        tokenizer.pretrained(tmp_path, 9)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: expected a JSON object"):
        tokenizer.pretrained(tmp_path, 9)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: not JSON"):
        tokenizer.pretrained(tmp_path, 9)


def test_the_hub_is_asked_for_the_tokenizer_too(monkeypatch, bert):
    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, allow_patterns, revision))
        return str(bert)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    expected = rows(tokenizer.pretrained(bert, 40), SENTENCES)
    assert rows(tokenizer.pretrained("somebody/bert", 40), SENTENCES) == expected
    wanted = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"}
    assert wanted <= set(asked[0][1])
    assert rows(tokenizer.pretrained("somebody/bert@v2", 40), SENTENCES) == expected
    assert (asked[0][2], asked[-1][0], asked[-1][2]) == (None, "somebody/bert", "v2")

    def refuse(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Got: ConnectError")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(WeightsError, match=r"'somebody/bert'.*give the path of a local folder"):
        tokenizer.pretrained("somebody/bert", 40)
