"""FAISS finds with our codebook and codes what our own look-up finds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.codebook import Codebook, quantize
from vse_jax.evaluators import codes
from vse_jax.index import faiss_export

faiss = pytest.importorskip("faiss", reason="needs the extra [search] or [bench]")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("k", [256, 16, 4])
def test_the_neighbours_are_the_same(k, turned):
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(8, k, 4)).astype(np.float32)
    rotation = None
    if turned:
        rotation = np.linalg.qr(rng.normal(size=(32, 32)))[0].astype(np.float32)
    codebook = Codebook(centroids, rotation)
    items = rng.normal(size=(300, 32)).astype(np.float32)
    queries = rng.normal(size=(20, 32)).astype(np.float32)
    index = faiss_export.index_pq(codebook, items)
    found = quantize(items, codebook)
    squares, numbers = index.search(queries, 10)
    scores = np.asarray(codes.asymmetric(*jax.tree.map(jnp.asarray, (codebook, queries, found))))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    expected = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_allclose(np.sqrt(squares), -expected, rtol=1e-4)
    # Items of equal codes are at equal distance; their order is FAISS's own.
    clear = np.abs(np.diff(expected, axis=1)).min(axis=1) > 1e-4
    assert clear.any()
    np.testing.assert_array_equal(numbers[clear], order[clear])


def test_codes_that_no_bits_fit_are_refused():
    codebook = Codebook(np.zeros((2, 5, 2), np.float32))
    with pytest.raises(ValueError, match="5 codes a part; FAISS takes powers of two"):
        faiss_export.index_pq(codebook, np.zeros((3, 4), np.float32))


def test_a_model_without_a_codebook():
    rows = np.zeros((3, 8), np.float32)
    for use in (faiss_export.index_pq, partial(faiss_export.extend, object())):
        with pytest.raises(
            ValueError, match=r"no codebook: train with objective\.quantizer\.weight"
        ):
            use(None, rows)


def test_embeddings_of_another_width():
    codebook = Codebook(np.random.default_rng(0).normal(size=(4, 16, 2)).astype(np.float32))
    with pytest.raises(ValueError, match=r"the embeddings are \[3, 4\]; expected \[n, 8\]"):
        faiss_export.index_pq(codebook, np.zeros((3, 4), np.float32))


def test_an_embedding_that_is_not_finite_is_named():
    codebook = Codebook(np.random.default_rng(0).normal(size=(4, 16, 2)).astype(np.float32))
    embeddings = np.zeros((3, 8), np.float32)
    embeddings[2, 5] = np.nan
    with pytest.raises(ValueError, match="embedding 2 is not finite"):
        faiss_export.index_pq(codebook, embeddings)


def test_an_index_of_something_else_is_refused():
    codebook = Codebook(np.zeros((4, 16, 2), np.float32))
    with pytest.raises(ValueError, match="the index is a IndexFlatL2; expected one of `index_pq`"):
        faiss_export.extend(faiss.IndexFlatL2(8), codebook, np.zeros((1, 8), np.float32))


def test_items_join_those_of_the_same_codebook_alone():
    rng = np.random.default_rng(1)
    centroids, others = rng.normal(size=(2, 4, 16, 2)).astype(np.float32)
    rotation, turn = np.linalg.qr(rng.normal(size=(2, 8, 8)))[0].astype(np.float32)
    items = rng.normal(size=(7, 8)).astype(np.float32)
    for codebook, strangers in (
        (Codebook(centroids), (Codebook(others), Codebook(centroids, rotation))),
        (Codebook(centroids, rotation), (Codebook(centroids, turn), Codebook(centroids))),
    ):
        index = faiss_export.index_pq(codebook, items[:4])
        for other in strangers:
            with pytest.raises(ValueError, match="codes of another codebook"):
                faiss_export.extend(index, other, items[4:])
        assert index.ntotal == 4
        faiss_export.extend(index, codebook, items[4:])
        assert index.ntotal == 7
        whole = faiss_export.index_pq(codebook, items)
        for left, right in zip(index.search(items, 7), whole.search(items, 7), strict=True):
            np.testing.assert_array_equal(left, right)
