"""FAISS's indices over a store find what the exact search finds, or most of it."""

import numpy as np
import pytest
from stores import WIDTH, add, clustered, empty, exactly, keep

from vse_jax.codebook import Codebook, quantize
from vse_jax.index import approximate
from vse_jax.index import store as stores
from vse_jax.index.database import StoreError

faiss = pytest.importorskip("faiss", reason="needs the extra [search] or [bench]")
ITEMS, K = 2000, 10
# Of the ten best, at least.
RECALL = {"flat": 1.0, "hnsw": 0.98, "ivfpq": 0.8}


@pytest.fixture(params=["dot", "negative_euclidean"])
def store(tmp_path, monkeypatch, request):
    """Items in shards of 300 rows."""
    monkeypatch.setattr(stores, "SHARD", 300)
    found = empty(tmp_path, request.param)
    add(found, clustered(ITEMS, 1), "a")
    return found


def share_of_the_best(store, found, queries):
    """Recall@K."""
    expected = exactly(store, queries, K)
    right = [
        len({*one} & {*other}) for one, other in zip(found.numbers, expected.numbers, strict=True)
    ]
    return np.mean(right) / K


@pytest.mark.parametrize("kind", RECALL)
def test_most_of_the_best_are_found(store, kind):
    queries = clustered(50, 2)
    approximate.build(kind, store)
    found = approximate.search(approximate.load(kind, store), queries, K)
    assert share_of_the_best(store, found, queries) >= RECALL[kind]
    if kind == "flat":
        np.testing.assert_allclose(found.scores, exactly(store, queries, K).scores, atol=1e-5)
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_codes_of_the_learned_codebook(store):
    codebook = Codebook(np.random.default_rng(3).normal(size=(4, 16, 4)).astype(np.float32) / 4)
    if store.about["similarity"] == "dot":
        with pytest.raises(StoreError, match="of models that compare by distance"):
            approximate.build("pq", store, codebook)
        return
    approximate.build("pq", store, codebook)
    queries, rows = clustered(20, 2), store.embeddings(np.arange(ITEMS))
    found = approximate.search(approximate.load("pq", store), queries, K)
    codes = quantize(rows, codebook)
    decoded = codebook.centroids[np.arange(4), codes].reshape(ITEMS, WIDTH)
    scores = -np.linalg.norm(queries[:, None] - decoded[None], axis=2)
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :K], rtol=1e-4)


def test_an_index_of_other_items_is_refused(store):
    with pytest.raises(StoreError, match="has no index of the kind 'hnsw': give --kind=hnsw"):
        approximate.load("hnsw", store)
    approximate.build("hnsw", store)
    assert approximate.built(store) == ["hnsw"]
    assert approximate.is_current("hnsw", store)
    add(store, clustered(3, 4), "b")
    assert not approximate.is_current("hnsw", store)
    with pytest.raises(StoreError, match=r"hnsw\.faiss was built before the last changes"):
        approximate.load("hnsw", store)
    approximate.build("hnsw", store)
    assert approximate.load("hnsw", store).index.ntotal == ITEMS + 3


@pytest.mark.parametrize("kind", approximate.KINDS)
def test_what_is_new_is_added_to_an_index(tmp_path, kind, monkeypatch):
    """It is made anew where something has gone, or where "ivfpq" has outgrown its training."""
    monkeypatch.setattr(stores, "SHARD", 300)
    codebook = Codebook(np.random.default_rng(3).normal(size=(4, 16, 4)).astype(np.float32) / 4)
    store, whole, made = empty(tmp_path), approximate._empty, []

    def watched(*arguments):
        made.append(len(store))
        return whole(*arguments)

    def found_when_built():
        approximate.build(kind, store, codebook)
        return approximate.search(approximate.load(kind, store), queries, K)

    monkeypatch.setattr(approximate, "_empty", watched)
    add(store, clustered(400, 1), "a")
    approximate.build(kind, store, codebook)
    add(store, clustered(250, 2), "b")
    queries = clustered(250, 2)[::5]
    found = found_when_built()
    assert made == [400]
    if kind == "pq":
        (tmp_path / "pq.json").unlink()
        np.testing.assert_array_equal(found.scores, found_when_built().scores)
    else:
        assert share_of_the_best(store, found, queries) >= RECALL[kind]
    if kind != "ivfpq":
        keep(store, [f"a{number}.png" for number in range(1, 400)])
    add(store, clustered(300, 3), "c")
    found_when_built()
    assert made[-1] == len(store) == approximate.load(kind, store).index.ntotal
    assert len(store) == (950 if kind == "ivfpq" else 699)


def test_a_damaged_index_is_told(store):
    approximate.build("flat", store)
    path = store.folder / "flat.faiss"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"flat\.faiss cannot be read; index again"):
        approximate.load("flat", store)


@pytest.mark.parametrize("damage", ["gone", "cut", "not told"])
def test_a_damaged_index_is_built_again(store, damage):
    approximate.build("flat", store)
    path = store.folder / "flat.faiss"
    assert approximate.is_current("flat", store)
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[:100])
    else:
        (store.folder / "flat.json").write_text("{}")
    assert not approximate.is_current("flat", store)
    approximate.build("flat", store)
    assert approximate.is_current("flat", store)
    assert path.read_bytes() == whole


def test_what_faiss_says_is_told(store, monkeypatch):
    def failed(*_):
        raise RuntimeError("Error in train")

    monkeypatch.setattr(approximate, "_empty", failed)
    with pytest.raises(
        StoreError, match="FAISS cannot build an index of the kind 'hnsw': Error in"
    ):
        approximate.build("hnsw", store)


def test_few_items_are_no_clusters(tmp_path):
    store = empty(tmp_path, "dot")
    add(store, clustered(20, 1), "a")
    with pytest.raises(StoreError, match="has 20 items, an index of the kind 'ivfpq' needs 256"):
        approximate.build("ivfpq", store)
    approximate.build("hnsw", store)
    found = approximate.search(approximate.load("hnsw", store), clustered(1, 2), 30)
    assert (found.numbers[0, :20] >= 0).all()
    assert (found.numbers[0, 20:] == -1).all()
    assert np.isneginf(found.scores[0, 20:]).all()
