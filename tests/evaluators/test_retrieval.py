"""Retrieval metrics against loops written from the definition, and against cheating by ties."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from vse_jax.evaluators import retrieval
from vse_jax.evaluators.retrieval import EvaluationError
from vse_jax.similarity import dot, look_up, negative_euclidean


def loop_ranks(scores, caption_image):
    """Both ways, from the definition: 1 + the wrong items that reach the best right one."""
    n, m = scores.shape
    i2t, t2i = [], []
    for i in range(n):
        best = max(scores[i, j] for j in range(m) if caption_image[j] == i)
        i2t.append(1 + sum(scores[i, j] >= best for j in range(m) if caption_image[j] != i))
    for j in range(m):
        right = scores[caption_image[j], j]
        t2i.append(1 + sum(scores[i, j] >= right for i in range(n) if i != caption_image[j]))
    return i2t, t2i


def loop_metrics(scores, caption_image):
    found = {}
    for way, values in zip(("i2t", "t2i"), loop_ranks(scores, caption_image), strict=True):
        for k in (1, 5, 10):
            found[f"{way}/R@{k}"] = 100 * sum(rank <= k for rank in values) / len(values)
        ordered, half = sorted(values), len(values) // 2
        median = (ordered[half] + ordered[~half]) / 2
        found[f"{way}/MedR"] = math.floor(median)
        found[f"{way}/MeanR"] = sum(values) / len(values)
    found["rsum"] = sum(value for name, value in found.items() if "R@" in name)
    return found


def unequal_set(seed, n=23, extra=31, d=8, levels=None):
    """Images, captions, and 1 to many captions an image in any order; `levels` makes ties."""
    rng = np.random.default_rng(seed)
    caption_image = rng.permutation(np.concatenate([np.arange(n), rng.integers(0, n, extra)]))
    images = rng.standard_normal((n, d)).astype(np.float32)
    captions = rng.standard_normal((n + extra, d)).astype(np.float32) + images[caption_image]
    if levels:
        images, captions = np.round(images * levels), np.round(captions * levels)
    return images, captions, caption_image.astype(np.int32)


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("chunk", [1, 7, 16, 53, 54, 1000])
@pytest.mark.parametrize("budget", [0, 2**30])
def test_ranks_are_those_of_the_definition_for_every_chunk_and_budget(levels, chunk, budget):
    images, captions, caption_image = unequal_set(chunk, levels=levels)
    found = retrieval.ranks(
        images, captions, np.arange(23), caption_image, chunk=chunk, budget=budget
    )
    i2t, t2i = loop_ranks(images @ captions.T, caption_image)
    np.testing.assert_array_equal(found.i2t, i2t)
    np.testing.assert_array_equal(found.t2i, t2i)


SIMILARITIES = {
    "dot": (dot.matrix, lambda x, y: x @ y),
    "euclidean": (negative_euclidean.matrix, lambda x, y: -np.linalg.norm(x - y)),
}


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_equal_a_loop(name):
    score, one = SIMILARITIES[name]
    images, captions, caption_image = unequal_set(3)
    expected = np.array([[one(x, y) for y in captions] for x in images])
    found = score(jnp.asarray(images), jnp.asarray(captions))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    found = retrieval.evaluate("set_23", images, captions, caption_image, score=score, chunk=20)
    assert found == pytest.approx(loop_metrics(expected, caption_image))


def test_a_score_may_take_trees_and_carry_parameters():
    images, captions, caption_image = unequal_set(4)
    weight = np.linspace(0.1, 2.0, 8, dtype=np.float32)

    def weighted(weight, one, other):
        return dot.matrix(one["local"] * weight[None], other["local"]) + other["bias"][None]

    bias = captions[:, 0]
    found = retrieval.evaluate(
        "set_23",
        {"local": images},
        {"local": captions, "bias": bias},
        caption_image,
        score=jax.tree_util.Partial(weighted, weight),
        chunk=11,
    )
    expected = loop_metrics((images * weight) @ captions.T + bias, caption_image)
    assert found == pytest.approx(expected)


# scores (images x captions), image of each caption, ranks of images, ranks of captions
MATRICES = {
    "right on the diagonal": ([[2, 1], [1, 2]], [0, 1], [1, 1], [1, 1]),
    "wrong everywhere": ([[1, 2], [2, 1]], [0, 1], [2, 2], [2, 2]),
    "all tied": ([[1, 1, 1], [1, 1, 1], [1, 1, 1]], [0, 1, 2], [3, 3, 3], [3, 3, 3]),
    "other right captions never count": ([[3, 2, 1], [0, 0, 5]], [0, 0, 1], [1, 1], [1, 1, 1]),
    "the best of the right captions": ([[1, 4, 3], [0, 0, 5]], [0, 0, 1], [1, 1], [1, 1, 1]),
    "two right ones tied, one wrong too": ([[2, 2, 2], [0, 0, 9]], [0, 0, 1], [2, 1], [1, 1, 1]),
    "captions in any order": ([[0, 7, 1], [5, 2, 6]], [1, 0, 1], [1, 1], [1, 1, 1]),
    "one image": ([[1, 1]], [0, 0], [1], [1, 1]),
    "tie with one": ([[3, 3, 0], [0, 4, 0], [0, 0, 1]], [0, 1, 2], [2, 1, 1], [1, 1, 1]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_hand_made_matrices(name):
    scores, caption_image, i2t, t2i = MATRICES[name]
    scores = np.array(scores, np.float32)
    found = retrieval.ranks(
        scores,
        np.arange(scores.shape[1]),
        np.arange(scores.shape[0]),
        caption_image,
        score=look_up.matrix,
        chunk=2,
    )
    assert found.i2t.tolist() == i2t
    assert found.t2i.tolist() == t2i


def test_metrics_of_hand_made_ranks():
    found = retrieval.rank_metrics(np.array([1, 2, 5, 6, 10, 11, 100, 1000]))
    assert found == {"R@1": 12.5, "R@5": 37.5, "R@10": 62.5, "MedR": 8.0, "MeanR": 141.875}
    assert retrieval.rank_metrics(np.array([1, 4]))["MedR"] == 2.0
    with pytest.raises(EvaluationError, match="empty"):
        retrieval.rank_metrics(np.array([], np.int32))


@pytest.mark.parametrize("score", [dot.matrix, negative_euclidean.matrix])
@pytest.mark.parametrize(("n", "m", "chunk"), [(203, 1013, 4096), (203, 1013, 100), (64, 320, 64)])
@pytest.mark.parametrize("budget", [0, 2**30])
def test_a_collapsed_model_scores_nothing(score, n, m, chunk, budget):
    vector = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    caption_image = np.arange(m, dtype=np.int32) % n
    found = retrieval.evaluate(
        f"collapsed_{n}",
        np.tile(vector, (n, 1)),
        np.tile(vector, (m, 1)),
        caption_image,
        score=score,
        chunk=chunk,
        budget=budget,
    )
    assert found["rsum"] == 0.0
    own = np.bincount(caption_image)
    assert found["i2t/MeanR"] == pytest.approx(np.mean(1 + m - own))
    assert found["t2i/MeanR"] == n


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["images", "captions"])
def test_values_that_are_not_finite_are_an_error(value, side):
    images, captions, caption_image = unequal_set(5)
    {"images": images, "captions": captions}[side][13, 2] = value
    with pytest.raises(EvaluationError, match=f"{side} have values .* not finite, in rows 13"):
        retrieval.evaluate("set_23", images, captions, caption_image)


def test_scores_that_overflow_are_an_error():
    images, captions, caption_image = unequal_set(5)
    captions[50] = 3e38
    with pytest.raises(EvaluationError, match="scores of captions"):
        retrieval.evaluate("set_23", images, captions, caption_image, chunk=10)


BAD_IDS = {
    "duplicate image": ([1, 1, 3], [1, 1, 3], None, "duplicate image ids: 1"),
    "image without caption": ([1, 2, 3], [1, 1, 3], None, "images without any caption: 2"),
    "caption without image": ([1, 2, 3], [1, 2, 9], None, "not in the set: 2, of images 9"),
    "duplicate caption": ([1, 2, 3], [1, 2, 3], ["a", "b", "a"], "duplicate caption ids: a"),
    "too few caption ids": ([1, 2, 3], [1, 2, 3], ["a"], "1 caption ids for 3 captions"),
    "too few image ids": ([1, 2], [1, 2, 2], None, "3 images for 2 ids"),
    "too few captions' images": ([1, 2, 3], [1, 2, 3, 3], None, "3 captions for 4 ids"),
    "nothing": ([], [], None, "nothing to rank"),
}


@pytest.mark.parametrize("name", BAD_IDS)
def test_bad_ids_are_an_error(name):
    image_ids, caption_image_ids, caption_ids, message = BAD_IDS[name]
    items = np.eye(3, dtype=np.float32)
    with pytest.raises(EvaluationError, match=message):
        retrieval.ranks(items, items, image_ids, caption_image_ids, caption_ids)


def test_ids_of_any_kind_mean_the_same_as_row_numbers():
    images, captions, caption_image = unequal_set(6)
    names = np.array([f"{(7 * row) % 23:02}.jpg" for row in range(23)])
    by_name = retrieval.ranks(images, captions, names, names[caption_image], np.arange(54))
    by_row = retrieval.ranks(images, captions, np.arange(23), caption_image)
    np.testing.assert_array_equal(by_name.i2t, by_row.i2t)
    np.testing.assert_array_equal(by_name.t2i, by_row.t2i)


def test_a_score_of_the_wrong_shape_and_a_chunk_of_nothing_are_errors():
    images, captions, caption_image = unequal_set(7)
    with pytest.raises(EvaluationError, match=r"gives \[54, 23\] .* must give \[23, 54\]"):
        retrieval.evaluate(
            "set_23", images, captions, caption_image, score=lambda x, y: dot.matrix(y, x)
        )
    with pytest.raises(ValueError, match="chunk is 0"):
        retrieval.evaluate("set_23", images, captions, caption_image, chunk=0)
    with pytest.raises(EvaluationError, match="share their first axis"):
        retrieval.evaluate("set_23", (images, captions), captions, caption_image)


@pytest.mark.parametrize(
    ("name", "images", "folds"),
    [
        ("flickr8k_1k", 1000, 1),
        ("flickr30k_1k", 1000, 1),
        ("coco_5k", 5000, 1),
        ("coco_1k_5fold", 5000, 5),
        ("shapes_500", 500, 1),
        ("my_own_photos_123", 123, 1),
    ],
)
def test_names_say_the_protocol(name, images, folds):
    assert retrieval.protocol(name) == (images, folds)


@pytest.mark.parametrize("name", ["coco_2k", "shapes", "shapes_0", "_5", ""])
def test_an_unknown_protocol_lists_the_known(name):
    with pytest.raises(EvaluationError, match="known: flickr8k_1k, flickr30k_1k, coco_5k"):
        retrieval.protocol(name)


@pytest.mark.parametrize("name", ["flickr8k_1k", "coco_1k_5fold", "shapes_22"])
def test_a_set_of_the_wrong_size_is_refused(name):
    images, captions, caption_image = unequal_set(8)
    with pytest.raises(EvaluationError, match=f"'{name}' is defined on .* images, this set has 23"):
        retrieval.evaluate(name, images, captions, caption_image)


def test_five_folds_are_the_mean_of_five_sets(monkeypatch):
    monkeypatch.setattr(retrieval, "PROTOCOLS", {"small_5fold": retrieval.Protocol(20, folds=5)})
    images, captions, caption_image = unequal_set(9, n=20)
    scores = images @ captions.T
    folds = []
    for first in range(0, 20, 4):
        columns = [j for j, i in enumerate(caption_image) if first <= i < first + 4]
        fold = scores[first : first + 4][:, columns]
        folds.append(loop_metrics(fold, caption_image[columns] - first))
    expected = {key: np.mean([fold[key] for fold in folds]) for key in folds[0]}
    found = retrieval.evaluate("small_5fold", images, captions, caption_image, chunk=6)
    assert found == pytest.approx(expected)
    given = retrieval.evaluate_scores("small_5fold", scores, caption_image, chunk=6)
    assert given == pytest.approx(expected)


def test_the_true_coco_protocol_has_folds_of_a_thousand():
    images = np.eye(5000, 1000, dtype=np.float32) + np.eye(5000, 1000, -1000, dtype=np.float32)
    images[2000:] = np.tile(np.eye(1000, dtype=np.float32), (3, 1))
    found = retrieval.evaluate("coco_1k_5fold", images, images, np.arange(5000))
    assert found["rsum"] == 600.0
    assert retrieval.evaluate("coco_5k", images, images, np.arange(5000))["i2t/R@1"] == 0.0


@pytest.mark.parametrize("chunk", [1, 5, 54, 4096])
def test_top_k_is_the_head_of_a_stable_sort(chunk):
    images, captions, _ = unequal_set(10, levels=1)
    rows, scores = retrieval.top_k(images, captions, 6, chunk=chunk)
    all_scores = images @ captions.T
    expected = np.argsort(-all_scores, axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(all_scores, expected, axis=1), 1e-5)


@pytest.mark.parametrize("k", [0, 55])
def test_top_k_of_too_many_is_an_error(k):
    images, captions, _ = unequal_set(10)
    with pytest.raises(EvaluationError, match="from 1 to the 54 keys"):
        retrieval.top_k(images, captions, k)


@settings(max_examples=20, deadline=None)
@examples(st.permutations(range(54)), st.sampled_from([None, 1]))
def test_the_order_of_captions_changes_nothing(order, levels):
    images, captions, caption_image = unequal_set(11, levels=levels)
    order = np.array(order)
    found = retrieval.evaluate("set_23", images, captions[order], caption_image[order], chunk=20)
    assert found == retrieval.evaluate("set_23", images, captions, caption_image, chunk=20)


def test_chance_is_the_mean_over_orders_drawn_at_random():
    caption_image = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 5, 6])
    rng = np.random.default_rng(0)
    drawn = [
        retrieval.evaluate_scores("all_7", rng.random((7, 13), np.float32), caption_image)
        for _ in range(300)
    ]
    found = retrieval.chance(caption_image)
    assert found.keys() == {key for key in drawn[0] if "/R@" in key} | {"rsum"}
    for key, value in found.items():
        assert abs(value - np.mean([one[key] for one in drawn])) < (10 if key == "rsum" else 3)
    assert found["t2i/R@10"] == 100.0
