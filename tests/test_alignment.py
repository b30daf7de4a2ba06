"""Words tied to regions: against loops, whole splits against single pairs, and wrong inputs."""

import dataclasses
import itertools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vse_jax
from vse_jax import alignment, alignment_evaluation, assembly
from vse_jax.alignment import AlignmentError
from vse_jax.data import pipeline, proposals
from vse_jax.data.regions import Regions
from vse_jax.data.shapes.mentions import mentions
from vse_jax.data.split import DataError
from vse_jax.encoding import Encoding
from vse_jax.models.image import parts_of

BOXES = [[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.3, 0.3, 0.9, 1.0]]
# The whole picture comes last, however it was given.
LOOKED_AT = np.array([BOXES[0], BOXES[2], BOXES[1]], np.float32)


@pytest.fixture(scope="module")
def model(trained_dvsa):
    return vse_jax.load(trained_dvsa)


@pytest.fixture(scope="module")
def run_and_state(trained_dvsa, opened):
    return opened(trained_dvsa)


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def encodings(lengths, regions, width=5):
    rng = np.random.default_rng(0)

    def of(counts):
        mask = np.arange(max(max(counts), 1))[None] < np.array(counts)[:, None]
        local = rng.normal(size=(*mask.shape, width)).astype(np.float32)
        return Encoding(np.where(mask[..., None], local, 0), mask, local.sum(axis=1))

    return of(regions), of(lengths)


def energy(scores, chosen, beta):
    own = sum(scores[t, i] for t, i in enumerate(chosen))
    return own + beta * sum(a == b for a, b in itertools.pairwise(chosen))


@pytest.mark.parametrize("beta", [0.0, 0.7, 50.0])
def test_pairs_are_aligned_row_by_row(beta):
    lengths, regions = [3, 0, 4, 1], [2, 3, 3, 1]
    images, texts = encodings(lengths, regions)
    found = alignment.align_pairs(images, texts, beta=beta)
    for row, (length, count, pair) in enumerate(zip(lengths, regions, found, strict=True)):
        assert pair.scores.shape == (length, count)
        for t, i in itertools.product(range(length), range(count)):
            expected = sum(images.local[row, i] * texts.local[row, t])
            np.testing.assert_allclose(pair.scores[t, i], expected, rtol=1e-5, atol=1e-5)
        best = max(
            itertools.product(range(count), repeat=length),
            key=lambda chosen, scores=pair.scores: energy(scores, chosen, beta),
        )
        assert tuple(pair.regions) == best
        spelt = [segment.region for segment in pair.segments for _ in range(*segment[:2])]
        assert spelt == list(best)


def test_sentences_without_any_words_have_no_segments():
    images, texts = encodings([1, 1], [2, 3])
    nothing = Encoding(texts.local[:, :0], texts.mask[:, :0], texts.pooled)
    for pair, count in zip(alignment.align_pairs(images, nothing, beta=1.0), [2, 3], strict=True):
        assert pair.scores.shape == (0, count)
        assert pair.segments == []


def test_scores_are_products_of_what_the_encoders_give(model, picture):
    sentence = "A big, RED xyzzy circle above a square!"
    found = model.align(picture, sentence, BOXES, beta=0.0)
    image = model.encode_images([picture], boxes=[BOXES])
    text = model.encode_texts([sentence])
    words, regions = text.local[0][text.mask[0]], image.local[0][image.mask[0]]
    expected = [[sum(v * s) for v in regions] for s in words]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.regions, np.argmax(expected, axis=1))
    assert found.words == ["a", "big", "red", "circle", "above", "a", "square"]
    np.testing.assert_array_equal(found.boxes, LOOKED_AT)
    assert " ".join(segment.text for segment in found.segments) == " ".join(found.words)
    # With beta 0 they are what the pair is ranked by.
    total = sum(segment.score for segment in found.segments)
    np.testing.assert_allclose(total, model.similarity(image, text)[0, 0], rtol=1e-4)


def test_a_segment_is_of_words_about_one_region(model, picture):
    found = model.align(picture, "a red circle above a blue square", BOXES, beta=1e3)
    [segment] = found.segments
    [region] = set(found.regions.tolist())
    assert region == np.argmax(found.scores.sum(axis=0))
    assert segment.text == "a red circle above a blue square"
    np.testing.assert_array_equal(segment.box, found.boxes[region])
    np.testing.assert_allclose(segment.score, found.scores[:, region].sum(), rtol=1e-5)


def test_the_run_says_beta(model, picture):
    sentence, beta = "a red circle above a blue square", model.config.evaluate.beta
    found, same = model.align(picture, sentence, BOXES), model.align(picture, sentence, BOXES, beta)
    np.testing.assert_array_equal(found.regions, same.regions)


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_a_split_is_aligned_as_its_captions_one_by_one(run_and_state, model, beta):
    run, state = run_and_state
    split = run.dataset.splits["validation"]
    wanted = np.array([0, 1, 7, 33, 79])
    found = list(
        alignment.align_split(run, state, "validation", beta, captions=wanted, at_a_time=2)
    )
    assert len(found) == len(wanted)
    [batch] = pipeline.image_batches(run.examples["validation"], batch_size=16)
    for caption, some in zip(wanted, found, strict=True):
        number = split.caption_image[caption]
        boxes = split.boxes[number]
        one = model.align(batch["image"][number], split.captions[caption], boxes, beta)
        assert some.words == one.words
        np.testing.assert_array_equal(some.boxes, one.boxes)
        np.testing.assert_array_equal(some.regions, one.regions)
        np.testing.assert_allclose(some.scores, one.scores, rtol=1e-4, atol=1e-4)
        assert [s.text for s in some.segments] == [s.text for s in one.segments]
    everything = list(alignment.align_split(run, state, "validation", beta))
    assert len(everything) == len(split.captions)
    for caption, some in zip(wanted, found, strict=True):
        np.testing.assert_allclose(everything[caption].scores, some.scores, rtol=1e-4, atol=1e-4)


def overlap(a, b):
    """Intersection over union of two boxes, by the definition."""
    sides = [max(min(a[k + 2], b[k + 2]) - max(a[k], b[k]), 0.0) for k in (0, 1)]
    shared = sides[0] * sides[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def test_the_report_tells_how_many_words_were_found(run_and_state, trained_dvsa):
    run, state = run_and_state
    split, right, chances = run.dataset.splits["test"], [], []
    for caption, found in enumerate(alignment.align_split(run, state, "test", 0.0)):
        scene = split.scenes[split.caption_image[caption]]
        about = mentions(found.words, scene)
        for word, meant, region in zip(found.words, about, found.regions, strict=True):
            if meant and word not in ("shape", "shapes", "figure", "figures"):
                boxes = [scene["objects"][number]["box"] for number in meant]
                each = [max(overlap(own, box) for box in boxes) >= 0.5 for own in found.boxes]
                right.append(each[region])
                chances.append(np.mean(each))
    metrics = json.loads((trained_dvsa / "report.json").read_text())["metrics"]
    assert len(right) > 100
    np.testing.assert_allclose(metrics["align/accuracy_beta_0"], 100 * np.mean(right), rtol=1e-6)
    np.testing.assert_allclose(metrics["align/chance"], 100 * np.mean(chances), rtol=1e-6)
    assert 10 < metrics["align/chance"] < 60
    beta = run.config.evaluate.beta
    (again,), _ = alignment_evaluation.accuracies(run, state, "test", [beta])
    np.testing.assert_allclose(metrics["align/accuracy"], again, rtol=1e-6)
    (again,), _ = alignment_evaluation.accuracies(run, state, "validation", [beta])
    np.testing.assert_allclose(metrics["align/accuracy_validation"], again, rtol=1e-6)
    log = trained_dvsa.with_suffix(".log").read_text()
    assert f"test words found: {metrics['align/accuracy']:.1f}% with beta 1.5, " in log
    assert f"validation words found: {again:.1f}% with beta 1.5, " in log


def test_the_report_shows_captions_and_their_boxes(run_and_state, trained_dvsa):
    run, _ = run_and_state
    shown = json.loads((trained_dvsa / "queries.json").read_text())["alignments"]
    assert len(shown) == run.config.evaluate.queries
    first = shown[0]
    split = run.dataset.splits["test"]
    assert first["name"] == split.images[0]
    said = " ".join(segment["text"] for segment in first["segments"])
    assert set(said.split()) <= set(re.sub(r"[^a-z0-9\s]", "", split.captions[0].lower()).split())
    known = split.boxes[0].tolist()
    assert all(segment["box"] in known for segment in first["segments"])
    page = (trained_dvsa / "report.html").read_text()
    assert "Which words go with which region" in page


@pytest.mark.parametrize(("features", "cells"), [("pooled", 4), ("grid", 4), ("pyramid", 3)])
def test_boxes_of_cells_are_as_many_as_the_regions(tiny_dvsa, features, cells):
    config = tiny_dvsa.copy_and_resolve_references()
    config.model.image.features, config.model.image.cells = features, cells
    words = assembly.Words(9, 0, ())
    backbone = assembly.make_model(config, words, assembly.Sources(None, None)).image.backbone
    found = alignment.cell_boxes(config, backbone)

    def parts(key):
        seen, _ = backbone.init_with_output(key, jnp.zeros((1, 32, 32, 3), "u1"), train=False)
        return seen.grid, parts_of(seen, features, cells)

    grid, seen = jax.eval_shape(parts, jax.random.key(0))
    assert found.shape == (seen.shape[1], 4)
    _, height, width, _ = grid.shape
    if features == "grid":
        for row, column in itertools.product(range(height), range(width)):
            corners = [row / height, column / width, (row + 1) / height, (column + 1) / width]
            np.testing.assert_allclose(found[row * width + column], corners, rtol=1e-6)
    else:
        np.testing.assert_array_equal(found[-1], [0, 0, 1, 1])


def test_a_model_of_cells_knows_its_boxes(tiny_dvsa, picture, tmp_path):
    from vse_jax import measuring

    config = tiny_dvsa.copy_and_resolve_references()
    config.model.image.features, config.model.image.cells = "pyramid", 2
    measuring.untrained(config, tmp_path)
    model = vse_jax.load(tmp_path)
    found = model.align(picture, "a red circle")
    assert found.boxes.shape == (5, 4)
    assert found.scores.shape == (3, 5)
    with pytest.raises(ValueError, match=r"features=pyramid: give no boxes"):
        model.align(picture, "a red circle", BOXES)
    assert "align/accuracy" in json.loads((tmp_path / "report.json").read_text())["metrics"]


def test_features_have_the_boxes_of_their_file(run_and_state):
    run, state = run_and_state
    split = run.dataset.splits["test"]
    rows = np.zeros((len(split.images), 3, 7), np.float32)
    boxes = np.random.default_rng(0).random((len(split.images), 3, 4)).astype(np.float32)

    def with_features(boxes):
        regions = dataclasses.replace(split, features=Regions.of(rows, boxes))
        dataset = dataclasses.replace(run.dataset, splits={"test": regions})
        return dataclasses.replace(run, dataset=dataset)

    of_picture = alignment.boxes_of_split(with_features(boxes), "test")
    np.testing.assert_array_equal(of_picture(5), boxes[5])
    with pytest.raises(AlignmentError, match=r"no boxes: put test_boxes\.npy beside them"):
        next(alignment.align_split(with_features(None), state, "test"))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0.1, 0.2, 0.1, 0.6]], r"picture 0: box \[0.1, 0.2, 0.1, 0.6\] is not"),
        ([BOXES[0], [0.1, 0.2, 0.5, 1.5]], r"picture 0: box \[0.1, 0.2, 0.5, 1.5\] is not"),
        ([[0.1, 0.2, 0.5]], r"picture 0: box \[0.1, 0.2, 0.5\] is not"),
        (np.array([0.1, 0.2, 0.5, 0.6]), "picture 0: box 0.1 is not"),
        (np.array([[0.1, 0.2, np.nan, 0.6]]), "picture 0: box .* is not"),
    ],
)
def test_wrong_boxes_are_told(model, picture, boxes, message):
    with pytest.raises(DataError, match=message):
        model.align(picture, "a red circle", boxes)


def test_without_boxes_those_of_selective_search_are_looked_at(model, picture, monkeypatch):
    found = model.align(picture, "a red circle")
    candidates = proposals.selective_search(picture)
    assert len(candidates) > 1
    # A backbone that was trained from nothing has no classifier: the largest come first.
    largest = -np.arange(len(candidates), dtype=np.float32)
    expected = proposals.top_boxes(candidates, largest, proposals.REGIONS - 1)
    np.testing.assert_array_equal(found.boxes, expected)
    given = model.align(picture, "a red circle", expected)
    np.testing.assert_array_equal(given.boxes, expected)
    np.testing.assert_allclose(found.scores, given.scores, atol=1e-5)
    grey = np.full((40, 60, 3), 128, np.uint8)
    assert model.align(grey, "a red circle").boxes.tolist() == [[0, 0, 1, 1]]
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[regions\]'"):
        model.align(picture, "a red circle")


def test_boxes_are_given_to_models_that_look_at_them_alone(model, trained, picture):
    with pytest.raises(DataError, match="2 pictures and the boxes of 1"):
        model.encode_images([picture, picture], boxes=[BOXES])
    other = vse_jax.load(trained)
    with pytest.raises(ValueError, match="was not trained on boxes"):
        other.encode_images([picture], boxes=[BOXES])
    with pytest.raises(AlignmentError, match=r"network 'vsepp'.*train with model\.network=dvsa"):
        other.align(picture, "a red circle")


def test_pictures_with_few_and_many_boxes_are_encoded_alike(model, picture):
    both = model.encode_images([picture] * 2, boxes=[BOXES[:1], BOXES])
    alone = model.encode_images([picture], boxes=[BOXES[:1]])
    np.testing.assert_array_equal(both.mask, [[True, True, False], [True, True, True]])
    np.testing.assert_allclose(both.local[0, :2], alone.local[0], atol=1e-5)
    whole = model.encode_images([picture], boxes=[[]])
    assert whole.local.shape[1] == 1


def test_wrong_sentences_and_betas_are_told(model, picture):
    for sentence in ("xyzzy", "", "?!"):
        with pytest.raises(DataError, match="no word that the model knows") as told:
            model.align(picture, sentence, BOXES)
        assert repr(sentence) in str(told.value)
    with pytest.raises(ValueError, match="beta is -1"):
        model.align(picture, "a red circle", BOXES, beta=-1.0)
