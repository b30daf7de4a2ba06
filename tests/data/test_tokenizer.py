import json
import re
from collections import Counter

import numpy as np
import pytest

from vse_jax.data import flickr8k, tokenizer
from vse_jax.data.split import DataError

# "dog" 5 times, "runs" 4, "cat's" 4, "it's" 3.
CAPTIONS = ["A dog runs!"] * 4 + ["The DOG, cat's."] + ["cat's"] * 3 + ["it's"] * 3 + ["a a a"]


def words_of(found):
    return set(found.words.get_vocab()) - set(tokenizer.SPECIAL)


def texts(found, tokens, mask):
    return [
        [found.words.id_to_token(int(t)) for t in row[keep]]
        for row, keep in zip(tokens, mask, strict=True)
    ]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("vse", {"a", "dog", "runs", "cat's"}), ("dvsa", {"a", "dog"})],
)
def test_words_seen_often_enough_make_the_vocabulary(preset, expected):
    found = tokenizer.train(CAPTIONS, preset, 10)
    assert words_of(found) == expected
    assert found.vocabulary == len(expected) + 4
    assert [found.words.token_to_id(token) for token in tokenizer.SPECIAL] == [0, 1, 2, 3]


def test_dvsa_drops_all_but_letters_digits_and_spaces():
    found = tokenizer.train(["It's a T-shirt, no. 7 ü"] * 5, "dvsa", 10)
    assert words_of(found) == {"its", "a", "tshirt", "no", "7"}


def test_vse_keeps_apostrophes_inside_words_and_letters_of_every_alphabet():
    found = tokenizer.train(["'It's' a T-shirt, Über собака"] * 4, "vse", 10)
    assert words_of(found) == {"it's", "a", "t", "shirt", "über", "собака"}


def test_the_vocabulary_does_not_depend_on_the_order_of_captions():
    one, other = (tokenizer.train(c, "vse", 10) for c in (CAPTIONS, CAPTIONS[::-1]))
    assert one.words.get_vocab() == other.words.get_vocab()


def test_an_unknown_word_is_mapped_or_dropped():
    sentence = ["A dog flies."]
    found = tokenizer.train(CAPTIONS, "vse", 10)
    assert texts(found, *found.tokenize(sentence)) == [["<start>", "a", "dog", "<unk>", "<end>"]]
    found = tokenizer.train(CAPTIONS, "dvsa", 10)
    assert texts(found, *found.tokenize(sentence)) == [["<start>", "a", "dog", "<end>"]]


@pytest.mark.parametrize("preset", ["vse", "dvsa"])
def test_a_long_caption_is_cut_so_that_the_end_stays(preset):
    found = tokenizer.train(CAPTIONS, preset, 4)
    tokens, mask = found.tokenize(["a dog a dog a", "dog a", "dog", ""])
    assert (tokens.dtype, tokens.shape, mask.dtype) == (np.int32, (4, 4), np.bool_)
    assert texts(found, tokens, mask) == [
        ["<start>", "a", "dog", "<end>"],
        ["<start>", "dog", "a", "<end>"],
        ["<start>", "dog", "<end>"],
        ["<start>", "<end>"],
    ]
    assert not tokens[~mask].any()


def test_dropped_words_take_no_place_of_the_known():
    found = tokenizer.train(CAPTIONS, "dvsa", 4)
    assert texts(found, *found.tokenize(["x y z a q dog"])) == [["<start>", "a", "dog", "<end>"]]


def test_no_captions_at_all():
    tokens, mask = tokenizer.train(CAPTIONS, "vse", 10).tokenize([])
    assert tokens.shape == mask.shape == (0, 1)


@pytest.mark.parametrize("preset", ["vse", "dvsa"])
def test_a_token_that_someone_wrote_is_a_word_like_others(tmp_path, preset):
    """A caption with a literal <end> neither ends there nor is padding, after loading too."""
    made = tokenizer.train(["a dog <end> runs <pad>"] * 5, preset, 10)
    (tmp_path / "t.json").write_text(made.to_json())
    found = tokenizer.load(tmp_path / "t.json", preset, 10)
    assert texts(found, *found.tokenize(["a dog <end> runs"])) == [
        ["<start>", "a", "dog", "end", "runs", "<end>"]
    ]


@pytest.mark.parametrize("preset", ["vse", "dvsa"])
def test_what_is_saved_is_loaded(tmp_path, preset):
    found = tokenizer.train(CAPTIONS, preset, 6)
    path = tmp_path / "tokenizer.json"
    path.write_text(found.to_json(), encoding="utf-8")
    assert json.loads(path.read_text())["model"]["vocab"]["<pad>"] == 0
    again = tokenizer.load(path, preset, 6)
    sentences = ["A dog runs, it's a cat's", "unheard of"]
    for one, other in zip(found.tokenize(sentences), again.tokenize(sentences), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.vocabulary == found.vocabulary


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": 3}'])
def test_what_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: no tokenizer file"):
        tokenizer.load(path, "vse", 6)


@pytest.fixture
def glove(tmp_path):
    """Writes lines, returns what `read_glove` makes of them at width 3."""

    def read(*lines, encoding="utf-8"):
        path = tmp_path / "glove.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
        found = tokenizer.train(CAPTIONS, "vse", 10)
        vectors, known = tokenizer.read_glove(path, found, 3)
        assert (vectors.dtype, vectors.shape) == (np.float32, (8, 3))
        vocabulary = found.words.get_vocab()
        return {word: vectors[vocabulary[word]].tolist() for word in vocabulary if
                known[vocabulary[word]]}  # fmt: skip

    return read


def test_glove_gives_known_words_their_vectors(glove):
    assert glove("the 9 9 9", "dog 1 -2.5 3e-1", "runs 0 0 0 ") == {
        "dog": [1.0, -2.5, np.float32(0.3)],
        "runs": [0.0, 0.0, 0.0],
    }


def test_glove_840b_has_words_of_several_parts(glove):
    """`a name@domain.com 0.1 ...` is no vector of "a"."""
    assert glove("a name@domain.com 1 2 3", "a 4 5 6", "a . . 7 8 9") == {"a": [4.0, 5.0, 6.0]}


@pytest.mark.parametrize("line", ["dog 1 2", "dog 1", "dog", "dog 1 2 3 4", "dog 1 two 3"])
def test_a_glove_line_of_another_width_is_named(glove, line):
    count = len(line.split()) - 1
    with pytest.raises(
        DataError, match=rf"glove\.txt:2: 'dog' with {count} values; expected .* 3 "
    ):
        glove("the 1 2 3", line)


def test_glove_that_is_no_text_or_not_there(glove, tmp_path):
    with pytest.raises(DataError, match=r"glove\.txt: word vectors cannot be read"):
        glove("ü 1 2 3", encoding="latin-1")
    with pytest.raises(DataError, match=r"gone\.txt: word vectors cannot be read: .*No such file"):
        tokenizer.read_glove(tmp_path / "gone.txt", tokenizer.train(CAPTIONS, "vse", 10), 3)


@pytest.mark.flickr8k
def test_the_vocabulary_of_flickr8k_is_that_of_the_papers(real_data):
    """Karpathy & Fei-Fei (CVPR 2015) print 2,538 words; counted from the captions it is 2,537.

    With one token for the end of a sentence, as their code has, it is theirs.
    """
    tree = flickr8k.read_tree(real_data("flickr8k"))
    captions = [c for record in tree.listed if record.split == "train" for c in record.captions]
    assert len(captions) == 30000
    found = tokenizer.train(captions, "dvsa", 40)
    counts = Counter(
        word for c in captions for word in re.sub(r"[^a-z0-9\s]", "", c.lower()).split()
    )
    assert words_of(found) == {word for word, count in counts.items() if count >= 5}
    assert found.vocabulary - 4 == 2537
