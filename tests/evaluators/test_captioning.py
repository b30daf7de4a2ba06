"""Figures of captions against nltk and loops from the formulas; the nearest picture's caption."""

import collections
import logging
import math
import os
import shutil
import sys

import java
import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu

from vse_jax.evaluators import captioning
from vse_jax.evaluators.retrieval import EvaluationError


@pytest.fixture(autouse=True)
def java_where_it_is(monkeypatch):
    """Here it is looked for."""
    monkeypatch.setattr(shutil, "which", java.FOUND)


WORDS = ["a", "the", "red", "blue", "big", "small", "star", "ring", "on", "of", "two", "dogs"]


def sentence(rng, low, high):
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def drawn(seed, count=40, shortest=4):
    """Captions that share n-grams with 1 to 5 references of their pictures."""
    rng = np.random.default_rng(seed)
    references = [[sentence(rng, 3, 12) for _ in range(rng.integers(1, 6))] for _ in range(count)]
    candidates = []
    for texts in references:
        start = texts[int(rng.integers(len(texts)))].split()[: int(rng.integers(1, 9))]
        candidates.append(" ".join([*start, sentence(rng, shortest, 7)]))
    return candidates, references


def evaluated(candidates, references):
    return captioning.evaluate(candidates, references, java=False)


def ngrams(text, n):
    tokens = text.split()
    return collections.Counter(tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1))


def common_subsequence(a, b):
    """Length of the longest, by the recursion over prefixes."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, first in enumerate(a):
        for j, second in enumerate(b):
            longer = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if first == second else longer
    return table[-1, -1]


def loop_rouge(candidate, references, beta=1.2):
    shared = [common_subsequence(candidate.split(), text.split()) for text in references]
    precision = max(shared) / len(candidate.split())
    recall = max(s / len(text.split()) for s, text in zip(shared, references, strict=True))
    if precision == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def loop_cider(candidates, references, sigma=6.0):
    """10 mean_n mean_j of clipped cosines of TF-IDF vectors, times a Gaussian of the lengths.

    The lengths are counted in pairs of words.
    """
    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            within = [set().union(*(ngrams(text, n) for text in each)) for each in references]

            def vector(text, n=n, within=within):
                return {
                    gram: count
                    * (math.log(len(references)) - math.log(max(1, sum(gram in w for w in within))))
                    for gram, count in ngrams(text, n).items()
                }

            own = vector(candidate)
            for text in texts:
                other = vector(text)
                product = sum(min(v, other[g]) * other[g] for g, v in own.items() if g in other)
                norms = math.hypot(*own.values()) * math.hypot(*other.values())
                apart = len(candidate.split()) - len(text.split())
                cosine = product / norms if norms else 0.0
                total += cosine * math.exp(-(apart**2) / (2 * sigma**2)) / len(texts)
        scores.append(10 * total / 4)
    return np.mean(scores)


@pytest.mark.parametrize("seed", range(3))
def test_bleu_is_that_of_nltk(seed):
    candidates, references = drawn(seed)
    found = evaluated(candidates, references)
    split = [[text.split() for text in texts] for texts in references]
    for n in range(1, 5):
        expected = corpus_bleu(split, [text.split() for text in candidates], weights=(1 / n,) * n)
        assert 0.05 < expected < 0.9
        np.testing.assert_allclose(found[f"caption/BLEU-{n}"], 100 * expected, rtol=1e-6)


def test_bleu_of_short_captions_is_cut_by_the_closest_reference():
    candidates, references = ["a red star runs"], [["a red star runs on the big ring", "a red"]]
    found = evaluated(candidates, references)
    # The lengths 8 and 2 are 4 and 2 from it: the shorter is the closest, and nothing is cut.
    assert found["caption/BLEU-1"] == pytest.approx(100)
    found = evaluated(candidates, [references[0][:1]])
    assert found["caption/BLEU-1"] == pytest.approx(100 * math.exp(1 - 8 / 4))


@pytest.mark.parametrize("seed", range(3))
def test_rouge_and_cider_are_those_of_loops(seed):
    candidates, references = drawn(seed, shortest=1)
    found = evaluated(candidates, references)
    rouge = np.mean([loop_rouge(*pair) for pair in zip(candidates, references, strict=True)])
    assert 0.1 < rouge < 0.9
    np.testing.assert_allclose(found["caption/ROUGE-L"], 100 * rouge, rtol=1e-9)
    cider = loop_cider(candidates, references)
    assert 0.1 < cider < 9
    np.testing.assert_allclose(found["caption/CIDEr"], 100 * cider, rtol=1e-9)


def test_perfect_captions_have_the_most_and_disjoint_ones_nothing(capfd):
    texts = ["a red star on the ring", "two big dogs in blue", "the small ring of a star"]
    perfect = evaluated(texts, [[text] for text in texts])
    most = {f"caption/BLEU-{n}": 100 for n in range(1, 5)}
    most |= {"caption/ROUGE-L": 100, "caption/CIDEr": 1000}
    assert perfect == pytest.approx(most)
    disjoint = evaluated(["x y z u v w"] * 3, [[text] for text in texts])
    assert disjoint == pytest.approx(dict.fromkeys(most, 0), abs=1e-9)
    assert capfd.readouterr() == ("", "")


def test_sentences_are_split_by_the_rule_of_dvsa_with_and_without_java(monkeypatch):
    candidates = ["A RED star's, ring!", "Two dogs\trun - here."]
    references = [["a red stars ring"], ["two dogs run here ünder"]]
    plain = evaluated(["a red stars ring", "two dogs run here"], [["a red stars ring"], [
        "two dogs run here nder"]])  # fmt: skip
    assert captioning.words("It's 2 Dogs\n(café), e-mail.") == ["its", "2", "dogs", "caf", "email"]
    assert evaluated(candidates, references) == plain
    monkeypatch.setattr(captioning, "_has_language_models", lambda: False)
    monkeypatch.setattr(captioning, "_meteor", lambda *_: 0.5)
    monkeypatch.setattr(shutil, "which", lambda _: "java")
    assert captioning.evaluate(candidates, references) == plain | {"caption/METEOR": 50}


def test_words_are_those_of_the_tokenizer_of_dvsa():
    from vse_jax.data import tokenizer

    texts = ["It's 2 Dogs (on) e-mail.", "A  star,\ta RING; a-star?", "ÜBER café no_one", "..."]
    made = tokenizer.train(texts * 5, "dvsa", 20)
    names = {number: word for word, number in made.words.get_vocab().items()}
    tokens, mask = made.tokenize(texts)
    found = [[names[n] for n in row[kept]][1:-1] for row, kept in zip(tokens, mask, strict=True)]
    assert found == [captioning.words(text) for text in texts]


def test_an_empty_caption_is_worth_nothing():
    texts = ["a red star on the ring", "two big dogs in blue", "the small ring of a star"]
    references = [[text, ""] for text in texts]
    found = evaluated(["", texts[1], "?!"], references)
    one = evaluated(["x y z u v", texts[1], "x y z u v"], references)
    for name in ("caption/ROUGE-L", "caption/CIDEr"):
        assert found[name] == pytest.approx(one[name]) == pytest.approx(evaluated(
            texts, references)[name] / 3)  # fmt: skip
    # Everything said is right, but 5 words stand against 6 + 5 + 6.
    assert found["caption/BLEU-4"] == pytest.approx(100 * math.exp(1 - 17 / 5))
    assert set(evaluated(["", "", ""], references).values()) == {0}


def test_cider_of_one_picture_is_0():
    found = evaluated(["a red star on"], [["a red star on"]])
    assert found["caption/CIDEr"] == 0
    assert found["caption/BLEU-4"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "0 captions and references of 0 pictures"),
        (["a"], [["a"], ["b"]], "1 captions and references of 2 pictures"),
        (["a", "b"], [["a"], []], "picture 1 has no reference"),
        (["a"], [["?", ""]], "picture 0 has no reference with a word"),
        (["a"], ["a dog"], "references of picture 0 are one text"),
    ],
)
def test_what_has_no_honest_figure_is_refused(candidates, references, message):
    with pytest.raises(EvaluationError, match=message):
        evaluated(candidates, references)


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(EvaluationError, match=r"the extra \[caption\]"):
        evaluated(["a"], [["a"]])


@pytest.fixture
def told(caplog):
    """What the log says, as if nothing had been said before."""
    captioning._tell.cache_clear()
    caplog.set_level(logging.INFO, "vse_jax")
    yield lambda: [record.getMessage() for record in caplog.records]
    captioning._tell.cache_clear()


PAIR = ["a red star", "two dogs"], [["a big red star"], ["two dogs"]]


def test_without_java_it_is_said_once(monkeypatch, told, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert captioning.evaluate(*PAIR) == captioning.evaluate(*PAIR) == evaluated(*PAIR)
    (message,) = told()
    assert "METEOR and SPICE are left out: they need Java" in message


def test_a_java_that_fails_is_told_and_ends(monkeypatch, told, tmp_path):
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert captioning.evaluate(*PAIR) == evaluated(*PAIR)
    assert any("METEOR is left out: its Java program failed" in message for message in told())


def test_spice_is_asked_where_its_models_are(monkeypatch, told):
    class Spice:
        def compute_score(self, written, said):
            assert written == {0: ["a big red star"], 1: ["two dogs"]}
            assert said == {0: ["a red star"], 1: ["two dogs"]}
            return 0.25, []

    monkeypatch.setattr("pycocoevalcap.spice.spice.Spice", Spice)
    monkeypatch.setattr(captioning, "_has_language_models", lambda: True)
    monkeypatch.setattr(captioning, "_meteor", lambda *_: 0.5)
    monkeypatch.setattr(shutil, "which", lambda _: "java")
    java = {"caption/METEOR": 50, "caption/SPICE": 25}
    assert captioning.evaluate(*PAIR) == evaluated(*PAIR) | java
    assert told() == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_meteor_of_right_and_wrong_captions(monkeypatch, told, capfd):
    monkeypatch.setattr(captioning, "_has_language_models", lambda: False)
    texts = ["a red star on the ring", "two big dogs in blue"]
    references = [[text] for text in texts]
    assert captioning.evaluate(texts, references)["caption/METEOR"] == pytest.approx(100)
    wrong = captioning.evaluate(["xx yy zz", ""], references)
    assert wrong["caption/METEOR"] == 0
    (message,) = told()
    assert "SPICE is left out" in message
    assert capfd.readouterr().out == ""


def loop_nearest(test, training, captions, caption_image):
    found = []
    for feature in test:
        best, highest = None, -math.inf
        for row, other in enumerate(training):
            length = np.linalg.norm(feature) * np.linalg.norm(other)
            cosine = feature @ other / length if length else 0.0
            if cosine > highest + 1e-12:
                best, highest = row, cosine
        found.append(captions[list(caption_image).index(best)])
    return found


@pytest.mark.parametrize("rows", [4, 1024])
def test_the_nearest_pictures_first_caption_is_that_of_a_loop(monkeypatch, rows):
    monkeypatch.setattr(captioning, "_ROWS", rows)
    rng = np.random.default_rng(0)
    # Signs: every length is 4, so that equal cosines are equal to the bit; many are.
    test = rng.choice([-1.0, 1.0], (11, 16)).astype(np.float32)
    training = rng.choice([-1.0, 1.0], (30, 16)).astype(np.float32)
    training = np.concatenate([training[:20], training]) * 2
    test[3] = 0
    caption_image = rng.permutation(np.repeat(np.arange(50), 3))
    captions = [f"caption {number}" for number in range(150)]
    found = captioning.nearest_captions(test, training, captions, caption_image)
    assert found == loop_nearest(
        test.astype(float), training.astype(float), captions, caption_image
    )


def test_lengths_of_features_do_not_matter():
    training = np.array([[10.0, 10.0], [0.1, 0.0], [0.0, 0.0]], np.float32)
    test = np.array([[1.0, 0.2], [0.001, 0.001]], np.float32)
    found = captioning.nearest_captions(test, training, ["c", "b", "a"], np.array([2, 1, 0]))
    assert found == ["b", "a"]


def test_more_training_pictures_than_a_block_has():
    rng = np.random.default_rng(1)
    training = rng.standard_normal((5000, 3)).astype(np.float32)
    asked = np.array([4999, 0, 4095, 4096])
    captions = [str(number) for number in range(5000)]
    found = captioning.nearest_captions(training[asked] * 7, training, captions, np.arange(5000))
    assert found == [str(number) for number in asked]


FEATURES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("test", "training", "captions", "owners", "message"),
    [
        (FEATURES, FEATURES[:0], [], [], "no training pictures"),
        (FEATURES, FEATURES, ["a", "b"], [0], "2 captions and the pictures of 1"),
        (FEATURES, FEATURES, ["a", "b"], [0, 2], "of pictures 0 to 2; there are 2"),
        (FEATURES, FEATURES, ["a", "b"], [-1, 1], "of pictures -1 to 1"),
        (FEATURES, FEATURES, ["a", "b"], [1, 1], "1 training pictures have no caption, first 0"),
        (FEATURES, FEATURES, [], [], "2 training pictures have no caption"),
        (FEATURES, FEATURES + np.inf, ["a", "b"], [0, 1], "training picture 0 are not finite"),
        (FEATURES * np.nan, FEATURES, ["a", "b"], [0, 1], "test picture 0 are not finite"),
    ],
)
def test_sets_without_a_nearest_caption_are_refused(test, training, captions, owners, message):
    with pytest.raises(EvaluationError, match=message):
        captioning.nearest_captions(test, training, captions, np.array(owners, int))
