"""Caption semantics against TF-IDF and a dense singular value decomposition in NumPy."""

import collections
import os

import numpy as np
import pytest

from vse_jax.data import semantics
from vse_jax.data.split import DataError

CAPTIONS = [
    "A dog runs through the snow .",
    "Two dogs are running in snow!",
    "The cat doesn't sleep, it's playing #outside",
    "A cat plays with a small ball .",
    "The of and",
    "Small dogs play",
    "A DOG, a dog; a ball",
]


def tf_idf(captions):
    """Rows of length 1, or 0: count x (log((1 + m) / (1 + df)) + 1), words of two letters."""
    rows = [
        collections.Counter(w for w in semantics.stems(c).replace("#", " ").split() if len(w) > 1)
        for c in captions
    ]
    words = sorted(set().union(*rows))
    found = np.zeros((len(rows), len(words)))
    for i, row in enumerate(rows):
        for word, count in row.items():
            df = sum(word in other for other in rows)
            found[i, words.index(word)] = count * (np.log((1 + len(rows)) / (1 + df)) + 1)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(lengths, lengths, 1.0)


def test_stems_are_what_is_left_of_the_words_that_count():
    assert semantics.stems(CAPTIONS[0]) == "dog run snow"
    assert semantics.stems(CAPTIONS[1]) == "two dog run snow"
    assert semantics.stems(CAPTIONS[2]) == "cat sleep play #outsid"
    assert semantics.stems("The of and 12") == ""


@pytest.mark.parametrize("width", [3, 400])
def test_products_are_those_of_the_truncated_decomposition(width, monkeypatch):
    monkeypatch.setattr(semantics, "WIDTH", width)
    found = semantics.latent(CAPTIONS)
    counts = tf_idf(CAPTIONS)
    u, s, _ = np.linalg.svd(counts, full_matrices=False)
    kept = min(width, *(side - 1 for side in counts.shape))
    expected = (u[:, :kept] * s[:kept]) @ (u[:, :kept] * s[:kept]).T
    assert found.shape == (7, kept)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found @ found.T, expected, atol=1e-5)
    assert not found[4].any()


def test_they_are_computed_once(tmp_path, monkeypatch):
    first = semantics.of_captions(CAPTIONS, tmp_path)
    monkeypatch.setattr(semantics, "latent", lambda _: pytest.fail("computed again"))
    np.testing.assert_array_equal(semantics.of_captions(CAPTIONS, tmp_path), first)
    with pytest.raises(pytest.fail.Exception):
        semantics.of_captions(CAPTIONS[::-1], tmp_path)


def test_a_damaged_cache_is_computed_anew(tmp_path, caplog):
    first = semantics.of_captions(CAPTIONS, tmp_path)
    (path,) = (tmp_path / "semantics").iterdir()
    for damage in (path.read_bytes()[:-9], b"", b"nothing of the kind"):
        path.write_bytes(damage)
        np.testing.assert_array_equal(semantics.of_captions(CAPTIONS, tmp_path), first)
        assert "damaged" in caplog.text
        caplog.clear()
    assert [file.name for file in (tmp_path / "semantics").iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "semantics").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*semantics.*; data\.data_dir must name"):
        semantics.of_captions(CAPTIONS, tmp_path)


@pytest.mark.parametrize("captions", [["the of", "and"], ["dog", "dog"], ["a dog in snow"]])
def test_captions_that_say_too_little(captions, tmp_path):
    with pytest.raises(DataError, match="training caption"):
        semantics.of_captions(captions, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_vectors_of_ones_own(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(4, 3))
    np.save(tmp_path / "own.npy", vectors)
    found = semantics.from_file(tmp_path / "own.npy", list("abcd"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, vectors, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 3)), r"float64\[5, 3\]; expected floats \[4, width\]"),
        (np.zeros(4), r"float64\[4\]; expected floats \[4, width\]"),
        (np.zeros((4, 3), int), r"int64\[4, 3\]; expected floats"),
        (np.zeros((4, 0)), r"float64\[4, 0\]; expected floats \[4, width\].*of width 1 or more"),
        (np.where(np.eye(4)[:, :3] > 0, np.nan, 0.0)[::-1], "row 1 is not finite"),
        # Finite, but not as float32.
        (np.where(np.eye(4)[:, :3] > 0, 1e300, 0.0), "row 0 is not finite"),
    ],
)
def test_vectors_that_fit_no_captions(array, message, tmp_path):
    np.save(tmp_path / "own.npy", array)
    with pytest.raises(DataError, match=message):
        semantics.from_file(tmp_path / "own.npy", list("abcd"))


def test_files_that_are_no_vectors(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.npy: no array of caption semantics"):
        semantics.from_file(tmp_path / "nowhere.npy", list("abcd"))
    (tmp_path / "text.npy").write_text("0.1 0.2")
    with pytest.raises(DataError, match="no array of caption semantics"):
        semantics.from_file(os.fspath(tmp_path / "text.npy"), list("abcd"))
    np.savez(tmp_path / "other.npz", vectors=np.zeros((4, 3)))
    with pytest.raises(DataError, match=r"other\.npz: no array of caption semantics: 'semantics"):
        semantics.from_file(tmp_path / "other.npz", list("abcd"))


@pytest.mark.parametrize("length", [0, 3, 6, 0.5, -5])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_a_file_cut_short(tmp_path, length, suffix):
    """As a copy that was stopped leaves it; 6 bytes are a signature and no more."""
    path = tmp_path / f"own.{suffix}"
    if suffix == "npz":
        semantics.to_file(path, list("abcd"), np.ones((4, 3)))
    else:
        np.save(path, np.ones((4, 3)))
    data = path.read_bytes()
    path.write_bytes(data[: int(length * len(data)) if isinstance(length, float) else length])
    with pytest.raises(DataError, match=rf"own\.{suffix}: no array of caption semantics"):
        semantics.from_file(path, list("abcd"))


def test_a_file_with_a_byte_altered(tmp_path):
    """It is what it was, or it is refused with its name: no byte ends in a trace."""
    path, captions = tmp_path / "own.npz", list("abcd")
    semantics.to_file(path, captions, np.ones((4, 3)))
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            np.testing.assert_array_equal(semantics.from_file(path, captions), 1.0)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 (some bytes do not matter)
            refused += 1
    assert refused > len(whole) // 2


def test_a_file_that_knows_its_captions_is_refused_for_others(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    semantics.to_file(tmp_path / "own.npz", list("abcd"), vectors)
    found = semantics.from_file(tmp_path / "own.npz", list("abcd"))
    np.testing.assert_array_equal(found, vectors)
    for others in ("abdc", "abce", "abc"):
        with pytest.raises(DataError, match=r"own\.npz: the semantics of other captions than the"):
            semantics.from_file(tmp_path / "own.npz", list(others))
