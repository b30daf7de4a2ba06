"""Retrieval from codes against loops over what the codes stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.codebook import Codebook, quantize
from vse_jax.evaluators import codes, retrieval
from vse_jax.similarity import negative_euclidean

M, K, P = 4, 6, 3
CAPTION_IMAGE = np.repeat(np.arange(8), [1, 2, 3, 1, 2, 2, 1, 3])


def data(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(8, M * P)).astype(np.float32)
    captions = images[CAPTION_IMAGE] + 0.7 * rng.normal(size=(15, M * P)).astype(np.float32)
    return (
        images,
        captions.astype(np.float32),
        Codebook(rng.normal(size=(M, K, P)).astype(np.float32)),
    )


def nearest(rows, codebook):
    parts = rows.reshape(len(rows), M, 1, P)
    return np.argmin(np.sum((parts - codebook.centroids[None]) ** 2, axis=3), axis=2)


def decoded(found, codebook):
    return np.concatenate([codebook.centroids[m][found[:, m]] for m in range(M)], axis=1)


def distances(a, b):
    return np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=2)


def test_table_look_ups_are_distances():
    images, captions, codebook = data()
    found = quantize(captions, codebook)
    own = quantize(images, codebook)
    book = jax.tree.map(jnp.asarray, codebook)
    scores = codes.asymmetric(book, jnp.asarray(images), jnp.asarray(found))
    expected = distances(images, decoded(found, codebook))
    np.testing.assert_allclose(scores, -expected, rtol=1e-4)
    scores = codes.symmetric(book, jnp.asarray(own), jnp.asarray(found))
    expected = distances(decoded(own, codebook), decoded(found, codebook))
    np.testing.assert_allclose(scores, -expected, rtol=1e-4, atol=1e-3)


def test_each_way_searches_among_codes():
    images, captions, codebook = data()
    found = codes.evaluate("all_8", images, captions, CAPTION_IMAGE, codebook)
    rough_images = decoded(nearest(images, codebook), codebook)
    rough_captions = decoded(nearest(captions, codebook), codebook)
    ways = {
        "i2t": -distances(images, rough_captions),
        "t2i": -distances(rough_images, captions),
    }
    rsum = 0.0
    for way, scores in ways.items():
        expected = retrieval.evaluate_scores("all_8", scores.astype(np.float32), CAPTION_IMAGE)
        for key, value in expected.items():
            if key.startswith(way):
                assert found[f"codes/asymmetric/{key}"] == pytest.approx(value)
                rsum += value if "/R@" in key else 0.0
    assert found["codes/asymmetric/rsum"] == pytest.approx(rsum)
    both = retrieval.evaluate(
        "all_8", rough_images, rough_captions, CAPTION_IMAGE, score=negative_euclidean.matrix
    )
    assert found["codes/symmetric/rsum"] == pytest.approx(both["rsum"])


def test_a_code_for_every_embedding_loses_nothing():
    images, captions, _ = data()
    everything = np.concatenate([images, captions])
    codebook = Codebook(np.swapaxes(everything.reshape(23, M, P), 0, 1))
    found = codes.evaluate("all_8", images, captions, CAPTION_IMAGE, codebook)
    expected = retrieval.evaluate(
        "all_8", images, captions, CAPTION_IMAGE, score=negative_euclidean.matrix
    )
    assert found["codes/asymmetric/rsum"] == pytest.approx(expected["rsum"])
    assert found["codes/symmetric/rsum"] == pytest.approx(expected["rsum"])


def test_the_use_of_codes_is_ranked_part_by_part():
    images, captions, codebook = data()
    rows = np.concatenate([images, captions])
    found = nearest(rows, codebook)
    expected = np.zeros(K)
    for m in range(M):
        counts = sorted(((found[:, m] == k).sum() for k in range(K)), reverse=True)
        expected += np.asarray(counts) / len(rows) * K / M
    np.testing.assert_allclose(codes.usage(rows, codebook), expected, rtol=1e-6)


def test_a_rotation_changes_the_parts_and_not_the_distances():
    images, captions, (centroids, _) = data()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(M * P,) * 2))[0].astype(np.float32)
    rotated = codes.evaluate("all_8", images, captions, CAPTION_IMAGE, Codebook(centroids, turn))
    expected = codes.evaluate(
        "all_8", images @ turn, captions @ turn, CAPTION_IMAGE, Codebook(centroids)
    )
    assert rotated == pytest.approx(expected)
    assert rotated != codes.evaluate("all_8", images, captions, CAPTION_IMAGE, Codebook(centroids))
