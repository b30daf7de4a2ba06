"""The search in codes finds what NumPy finds in what they stand for, and FAISS with them."""

import numpy as np
import pytest
from stores import WIDTH, add, clustered, empty, keep, names

from vse_jax.codebook import Codebook, quantize
from vse_jax.index import exact, learned_codes
from vse_jax.index import store as stores
from vse_jax.index.database import StoreError

ITEMS, K = 500, 10


def drawn(seed, turned=False):
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
    centroids = rng.normal(size=(4, 16, WIDTH // 4)).astype(np.float32) / 4
    return Codebook(centroids, rotation if turned else None)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Items in shards of 150 rows, compared 64 at a time."""
    monkeypatch.setattr(stores, "SHARD", 150)
    monkeypatch.setattr(exact, "ITEMS", 64)
    found = empty(tmp_path)
    add(found, clustered(ITEMS, 1), "a")
    return found


def search(store, codebook, queries, k=K):
    return learned_codes.search(codebook, queries, learned_codes.shards(store, codebook), k)


def decoded(rows, codebook):
    """What the codes of rows stand for, a row and a part at a time."""
    rotation = np.eye(WIDTH) if codebook.rotation is None else codebook.rotation.astype(np.float64)
    found = np.zeros((len(rows), WIDTH))
    for number, row in enumerate(rows.astype(np.float64) @ rotation):
        for part, cut in enumerate(row.reshape(4, -1)):
            distances = ((codebook.centroids[part] - cut) ** 2).sum(axis=1)
            found[number, 4 * part : 4 * part + 4] = codebook.centroids[part][distances.argmin()]
    return found @ rotation.T


@pytest.mark.parametrize("turned", [False, True])
def test_it_finds_what_numpy_and_faiss_find(store, turned):
    codebook, queries = drawn(0, turned), clustered(20, 2)
    learned_codes.build(store, codebook)
    found = search(store, codebook, queries)
    rows = store.embeddings(np.arange(ITEMS))
    scores = -np.linalg.norm(queries[:, None] - decoded(rows, codebook)[None], axis=2)
    best = -np.sort(-scores, axis=1)[:, :K]
    np.testing.assert_allclose(found.scores, best, rtol=1e-4)
    # Items of equal codes are at equal distance: each that was found is as near as is said.
    said = np.take_along_axis(scores, found.numbers, axis=1)
    np.testing.assert_allclose(found.scores, said, rtol=1e-4)
    assert all(len({*numbers}) == K for numbers in found.numbers.tolist())
    pytest.importorskip("faiss", reason="needs the extra [search] or [bench]")
    from vse_jax.index import faiss_export

    squares, _ = faiss_export.index_pq(codebook, rows).search(queries, K)
    np.testing.assert_allclose(-found.scores, np.sqrt(squares), rtol=1e-4)


def test_only_new_shards_are_quantized(store, monkeypatch):
    codebook, seen = drawn(0), []
    learned_codes.build(store, codebook)
    assert learned_codes.is_current(store, codebook)

    def watched(rows, book):
        seen.append(len(rows))
        return quantize(rows, book)

    monkeypatch.setattr(learned_codes.codebooks, "quantize", watched)
    kept = [name for name in names(store) if name != "a7.png"]
    keep(store, kept)
    add(store, clustered(120, 4), "b")
    assert not learned_codes.is_current(store, codebook)
    with pytest.raises(StoreError, match="was built before the last changes: index again with"):
        search(store, codebook, clustered(1, 2))
    learned_codes.build(store, codebook)
    # The first, which has lost one, and the last, which had 50 and got more.
    assert seen == [149, 150, 20]
    # What is gone is found no more, and each of the others by its own codes.
    rows, [query] = store.embeddings(np.arange(len(store))), clustered(1, 2)
    found = search(store, codebook, query[None], len(store) + 3)
    assert "a7.png" not in names(store)
    assert sorted(found.numbers[0].tolist()) == [-1, -1, -1, *range(ITEMS - 1 + 120)]
    distances = np.linalg.norm(query - decoded(rows, codebook), axis=1)
    real = found.numbers[0] >= 0
    np.testing.assert_allclose(-found.scores[0, real], distances[found.numbers[0, real]], rtol=1e-4)
    codes = list(learned_codes.shards(store, codebook))
    assert [(start, len(rows)) for start, rows in codes] == [
        (start, len(rows)) for start, rows in store.shards()
    ]
    assert all(rows.dtype == np.uint8 and rows.shape[1] == 4 for _, rows in codes)


def test_a_build_that_was_stopped_goes_on(store, monkeypatch):
    codebook, calls = drawn(0), []

    def stopped(rows, book):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return quantize(rows, book)

    monkeypatch.setattr(learned_codes.codebooks, "quantize", stopped)
    with pytest.raises(KeyboardInterrupt):
        learned_codes.build(store, codebook)
    learned_codes.build(store, codebook)
    assert calls == [150, 150, 150, 150, 50]
    assert learned_codes.is_current(store, codebook)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damaged_codes_are_made_again(store, damage):
    codebook = drawn(0)
    learned_codes.build(store, codebook)
    second = sorted(store.folder.rglob("codes/*/*.npy"))[1]
    whole = second.read_bytes()
    if damage == "gone":
        second.unlink()
    else:
        second.write_bytes(whole[:-1])
    assert not learned_codes.is_current(store, codebook)
    learned_codes.build(store, codebook)
    assert learned_codes.is_current(store, codebook)
    assert second.read_bytes() == whole


def test_codes_of_another_codebook_are_not_read(store):
    learned_codes.build(store, drawn(0))
    with pytest.raises(StoreError, match="was built before the last changes"):
        search(store, drawn(1), clustered(1, 2))
    learned_codes.build(store, drawn(1))
    assert len(list((store.folder / "codes").iterdir())) == 1
    assert not learned_codes.is_current(store, drawn(0))


def test_what_is_refused(store, tmp_path):
    with pytest.raises(StoreError, match="has no index of the kind 'codes': give --kind=codes"):
        search(store, drawn(0), clustered(1, 2))
    with pytest.raises(ValueError, match="no codebook: train with"):
        learned_codes.build(store, None)
    with pytest.raises(StoreError, match="of models that compare by distance"):
        learned_codes.build(empty(tmp_path / "dot", "dot"), drawn(0))
