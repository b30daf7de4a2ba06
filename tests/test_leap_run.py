"""A run of LEAP from the training to the codes of new embeddings."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import vse_jax
from vse_jax import evaluation, train, training_objective, workdir
from vse_jax.checkpoint import Checkpoints, read_newest

REPORTED = ("R@1", "R@5", "R@10", "MedR", "MeanR")


@pytest.fixture(scope="module")
def model(trained_leap):
    return vse_jax.load(trained_leap)


@pytest.fixture(scope="module")
def found(trained_leap, opened):
    return opened(trained_leap)


@pytest.fixture(scope="module")
def embeddings(found):
    return evaluation.encode(*found, "test")


def test_the_report_has_what_codes_retrieve_and_how_they_are_used(trained_leap, model, embeddings):
    report = json.loads((trained_leap / "report.json").read_text())
    for kind in ("asymmetric", "symmetric"):
        expected = {f"codes/{kind}/{way}/{m}" for way in ("i2t", "t2i") for m in REPORTED}
        assert expected | {f"codes/{kind}/rsum"} <= report["metrics"].keys()
    assert report["scores"]["measure"] == "distance"
    chosen = model.quantize(np.concatenate([embeddings.images, embeddings.captions]))
    # Of each rank the mean over the parts of how often its code is chosen; even is 1.
    counts = np.array([np.sort(np.bincount(part, minlength=8))[::-1] for part in chosen.T])
    np.testing.assert_allclose(report["code_usage"], np.mean(counts, 0) * 8 / len(chosen))
    page = (trained_leap / "report.html").read_text()
    titles = [
        "leap: margin", "leap: code perplexity", "Distance", "Distance of right and wrong pairs",
        "Use of the codes", "Quantizer, bytes",
    ]  # fmt: skip
    for drawn in titles:
        assert drawn in page


def test_the_margin_and_the_codes_are_logged(trained_leap):
    rows = [row for row in workdir.read_metrics(trained_leap) if "loss" in row]
    margins = [row["leap/margin"] for row in rows]
    assert len(margins) == 4
    assert margins[0] == pytest.approx(0.2)
    assert len(set(margins)) == 4
    assert all(1.0 <= row["leap/code_perplexity"] <= 8.0 for row in rows)


def test_embeddings_are_quantized_to_the_nearest_codes(model, embeddings):
    book = model.codebook
    assert book.centroids.shape == (4, 8, 4)
    found = model.quantize(embeddings.images)
    assert (found.shape, found.dtype) == ((16, 4), np.uint8)
    for row, codes in zip(embeddings.images.astype(np.float64) @ book.rotation, found, strict=True):
        for part in range(4):
            apart = np.sum((book.centroids[part] - row[4 * part : 4 * part + 4]) ** 2, axis=1)
            assert apart[codes[part]] <= np.min(apart) + 1e-6


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 5)), r"embeddings is \[2, 5\]; expected embeddings \[n, 16\]"),
        (np.zeros(16), r"embeddings is \[16\]; expected embeddings \[n, 16\]"),
        (np.where(np.eye(3, 16) > 0, np.nan, 0.0)[::-1], r"embedding 0 is not finite"),
        (np.where(np.eye(3, 16) > 0, 1e300, 0.0)[1:], r"embedding 0 is not finite"),
        (np.zeros((2, 16), object), "embeddings is of object; expected floats"),
        (np.zeros((2, 16), complex), "embeddings is of complex128; expected floats"),
    ],
)
def test_what_is_no_embedding_is_not_quantized(model, rows, message):
    with pytest.raises(ValueError, match=message):
        model.quantize(rows)


def test_what_is_no_number_is_close_to_nothing(model, embeddings):
    bad = embeddings.captions[:3].copy()
    bad[1, 2] = np.inf
    with pytest.raises(ValueError, match="text 1 is not finite"):
        model.similarity(embeddings.images, bad)
    with pytest.raises(ValueError, match="image 1 is not finite"):
        model.similarity(bad, embeddings.captions)


def test_the_queries_of_the_report_have_distances(trained_leap):
    queries = json.loads((trained_leap / "queries.json").read_text())
    for way, found in (("i2t", "captions"), ("t2i", "images")):
        for query in queries[way]:
            distances = [item["score"] for item in query[found]]
            assert distances == sorted(distances)
            assert distances[0] >= 0.0


def test_a_warm_up_as_long_as_the_training_is_told(trained_leap):
    """Four steps of an epoch of twenty, of which a quarter are for the cross-entropy."""
    (told,) = (
        warning
        for warning in json.loads((trained_leap / "report.json").read_text())["warnings"]
        if "never mined" in warning
    )
    assert "training of 0.2 epochs ends before 'objective.leap.warmup_epochs' = 0.25" in told


def test_the_log_says_how_the_codes_do(trained_leap, shared_folder):
    metrics = json.loads((trained_leap / "report.json").read_text())["metrics"]
    log = (shared_folder / "trained_leap.log").read_text()
    assert (
        f"from codes of 4 bytes: rsum {metrics['codes/asymmetric/rsum']:.1f}, of queries quantized "
        f"too {metrics['codes/symmetric/rsum']:.1f}"
    ) in log
    assert "codes fitted to 320 training pairs" in log


def test_closeness_is_minus_the_distance(model, embeddings):
    found = model.similarity(embeddings.images[:3], embeddings.captions[:4])
    for i in range(3):
        for j in range(4):
            apart = np.linalg.norm(embeddings.images[i] - embeddings.captions[j])
            assert found[i, j] == pytest.approx(-apart, abs=1e-5)


def test_without_a_quantizer_nothing_is_quantized(trained):
    with pytest.raises(ValueError, match=r"no codebook: train with objective\.quantizer\.weight"):
        vse_jax.load(trained).quantize(np.zeros((1, 16), np.float32))


def test_the_codebook_is_that_of_the_best_state(found, model):
    expected = training_objective.codebook_of(found[1].objective_state)
    for left, right in zip(model.codebook, expected, strict=True):
        np.testing.assert_array_equal(left, right)
        assert np.any(right)


def test_the_best_codebook_is_fitted_to_training_pairs_as_they_are_searched(found, trained_leap):
    """K-means by a loop from the codebook of the last step, which was the best."""
    run, best = found
    last = Checkpoints(trained_leap / "checkpoints" / "last", keep=2)
    as_trained = last.restore(best)
    last.close()
    assert as_trained.step == best.step
    book = training_objective.codebook_of(as_trained.objective_state)
    every = evaluation.encode(run, as_trained, "train")
    pairing = run.dataset.splits["train"].caption_image
    z = np.concatenate([every.images[pairing], every.captions]).astype(np.float64) @ book.rotation
    expected = book.centroids.astype(np.float64)
    for _ in range(run.config.train.refit_codes):
        for m in range(4):
            part = z[:, 4 * m : 4 * m + 4]
            nearest = np.argmin([np.sum((part - e) ** 2, axis=1) for e in expected[m]], axis=0)
            for k in set(nearest.tolist()):
                expected[m, k] = np.mean(part[nearest == k], axis=0)
    refitted = training_objective.codebook_of(best.objective_state)
    # What lies between two codes may go to either by rounding, and moves both by a hair.
    apart = np.max(np.abs(refitted.centroids - expected), axis=-1)
    assert np.mean(apart < 1e-4) > 0.9
    assert np.max(apart) < 2e-3
    assert np.max(np.abs(refitted.centroids - book.centroids)) > 0.01
    # Nothing else is touched.
    kept = best.replace(
        objective_state=training_objective.with_codebook(best.objective_state, book)
    )
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(as_trained), strict=True):
        np.testing.assert_array_equal(one, other)


def test_codes_are_fitted_once(trained_leap, tmp_path, monkeypatch):
    """The best checkpoint stays; one with its codes refitted is made anew only where it is gone."""
    folder = tmp_path / "run"
    shutil.copytree(trained_leap, folder)
    best, config = folder / "checkpoints" / "best", workdir.read_config(folder)
    assert {path.name for path in best.iterdir()} == {"4", "5"}
    expected = read_newest(best)
    with monkeypatch.context() as patched:
        patched.setattr(train, "refitted", lambda *_: pytest.fail("fitted again"))
        assert train.train(config, folder)
    shutil.rmtree(best / "5")
    as_trained = read_newest(best)
    assert train.train(config, folder)
    found = read_newest(best)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    codebooks = [
        training_objective.codebook_of(tree["objective_state"]) for tree in (found, as_trained)
    ]
    assert np.any(codebooks[0].centroids != codebooks[1].centroids)
    assert found["step"] == as_trained["step"] == 4


def test_codes_are_fitted_only_where_there_are_any_and_they_should_be(found, trained, opened):
    run, best = found
    config = run.config.copy_and_resolve_references()
    config.train.refit_codes = 0
    assert train.with_refitted_codes(dataclasses.replace(run, config=config), best) is best
    plain = opened(trained)
    assert train.with_refitted_codes(*plain) is plain[1]


def test_training_pairs_are_drawn_by_the_seed(found):
    run, best = found
    every = evaluation.encode(run, best, "train")
    pairing = run.dataset.splits["train"].caption_image
    pairs = evaluation.encode_pairs(run, best, 10)
    rows = [
        int(np.argmin(np.sum((every.captions - caption) ** 2, axis=1)))
        for caption in pairs.captions
    ]
    np.testing.assert_allclose(pairs.captions, every.captions[rows], atol=1e-5)
    np.testing.assert_allclose(pairs.images, every.images[pairing[rows]], atol=1e-5)
    assert len(pairs.captions) == 10
    assert len(set(rows)) > 5  # some captions are alike
    everyone = evaluation.encode_pairs(run, best, 1000)
    np.testing.assert_allclose(everyone.captions, every.captions, atol=1e-5)
    np.testing.assert_allclose(everyone.images, every.images[pairing], atol=1e-5)


def test_scenes_are_judged_by_the_caption_that_is_compared(found, embeddings):
    """Spearman's correlation, over the same pairs, from the definition."""
    from vse_jax.data.shapes.similarity import scene_similarity

    run, _ = found
    split = run.dataset.splits["test"]
    judged = evaluation.judged(run.config.evaluate, split, embeddings)
    shape = len(split.images), len(split.captions)
    pairs = np.random.default_rng(0).integers(0, shape, (evaluation.JUDGED, 2))
    truth = np.array([scene_similarity(split.meanings[c], split.scenes[i]) for i, c in pairs])
    apart = np.linalg.norm(
        embeddings.images[pairs[:, 0]] - embeddings.captions[pairs[:, 1]], axis=1
    )

    def ranks(values):
        values = np.round(values, 5)
        return np.array([np.sum(values < v) + np.sum(values == v) / 2 for v in values])

    expected = np.corrcoef(ranks(-apart), ranks(truth))[0, 1]
    assert judged["scenes/spearman"] == pytest.approx(expected, abs=1e-3)
