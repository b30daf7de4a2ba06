import dataclasses
import json

import jax
import numpy as np
import pytest

from vse_jax import evaluation, experiment
from vse_jax.checkpoint import CheckpointError
from vse_jax.config import default_config
from vse_jax.data.split import Split
from vse_jax.encode import Encoder
from vse_jax.evaluators.retrieval import EvaluationError
from vse_jax.parallel import Devices
from vse_jax.report import content
from vse_jax.similarity import dot, negative_euclidean

MEASURES = {f"{way}/{m}" for way in ("i2t", "t2i") for m in ("R@1", "R@5", "R@10", "MedR", "MeanR")}


def split_of(caption_image, pictures):
    return Split(
        images=[f"{n}.jpg" for n in range(pictures)],
        captions=[f"caption {n}" for n in range(len(caption_image))],
        caption_image=np.asarray(caption_image, np.int32),
        read=lambda numbers: [b"" for _ in numbers],
    )


@pytest.fixture(scope="module")
def found(trained, opened):
    return opened(trained)


@pytest.fixture(scope="module")
def run(found):
    return found[0]


@pytest.fixture(scope="module")
def best(found):
    return found[1]


@pytest.fixture(scope="module")
def report(trained):
    return json.loads((trained / "report.json").read_text())


def test_measure_ranks_every_picture_and_caption_of_the_split():
    images = np.eye(3, dtype=np.float32)
    # The second caption of picture 0 is nearest to picture 2.
    captions = np.asarray([[1, 0, 0], [0.1, 0, 1], [0, 1, 0], [0, 0, 2]], np.float32)
    embeddings = evaluation.Embeddings(images, captions, dot)
    found = evaluation.measure(split_of([0, 0, 1, 2], 3), embeddings)
    assert found.keys() == MEASURES | {"rsum"}
    assert found["i2t/R@1"] == 100.0
    assert found["t2i/R@1"] == 75.0
    assert found["t2i/MeanR"] == 1.25
    assert found["rsum"] == 575.0


def test_measure_refuses_a_split_of_another_size_than_the_protocol():
    eye = np.eye(2, dtype=np.float32)
    embeddings = evaluation.Embeddings(eye, eye, dot)
    with pytest.raises(EvaluationError, match="defined on 1000 images, this set has 2"):
        evaluation.measure(split_of([0, 1], 2), embeddings, "flickr8k_1k")


def test_the_oracle_ranks_by_meaning_and_only_where_it_is_known(run):
    split = run.dataset.splits["test"]
    found = evaluation.oracle(split)
    assert found is not None
    assert found.keys() == MEASURES | {"rsum"}
    assert found["i2t/R@10"] == 100.0
    assert found["rsum"] > 400
    assert evaluation.oracle(dataclasses.replace(split, meanings=None)) is None


def test_embeddings_are_of_unit_length_and_in_order(run, best):
    split = run.dataset.splits["test"]
    found = evaluation.encode(run, best, "test")
    assert found.images.shape == (16, 16)
    assert found.captions.shape == (len(split.captions), 16)
    for rows in (found.images, found.captions):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)


def test_any_number_of_devices_counts_every_example_once(run, best):
    """Three do not share the batch of 16, nor the 16 pictures, equally."""
    expected = evaluation.encode(run, best, "test")
    three = Devices("shard_map", tuple(jax.devices()[:3]))
    shared = dataclasses.replace(run, devices=three, encoder=Encoder(run.built.model, three))
    found = evaluation.encode(shared, best, "test")
    np.testing.assert_allclose(found.images, expected.images, atol=1e-6)
    np.testing.assert_allclose(found.captions, expected.captions, atol=1e-6)


def test_the_report_keeps_its_contract(trained, run, best, report):
    assert report.keys() >= {"config", "dataset", "split", "protocol", "step", "metrics"}
    assert report["config"]["train"]["steps"] == 3
    assert (report["dataset"], report["split"]) == ("shapes", "test")
    assert report["protocol"] == "shapes_16"
    assert report["step"] == int(best.step) == 3
    scenes = {key for key in report["metrics"] if key.startswith("scenes/")}
    assert report["metrics"].keys() - scenes == MEASURES | {"rsum"}
    assert -1 <= report["metrics"]["scenes/spearman"] <= 1
    assert report["oracle"]["rsum"] >= report["metrics"]["rsum"]
    few = "split has only 16 pictures: its figures say little"
    assert report["warnings"] == [f"the test {few}"]
    assert report["chance"]["t2i/R@1"] == 100 / 16
    split = run.dataset.splits["test"]
    again = evaluation.measure(split, evaluation.encode(run, best, "test"))
    assert {k: report["metrics"][k] for k in again} == pytest.approx(again)
    page = (trained / "report.html").read_text()
    network = report["config"]["model"]["network"]
    assert f"<title>{network} on shapes</title>" in page


def test_the_reports_queries_are_true(trained, run, best):
    queries = json.loads((trained / "queries.json").read_text())
    split = run.dataset.splits["test"]
    embeddings = evaluation.encode(run, best, "test")
    scores = embeddings.images @ embeddings.captions.T
    assert [len(queries[way]) for way in ("i2t", "t2i")] == [3, 3]
    for query in queries["i2t"]:
        picture = split.images.index(query["name"])
        own = {split.captions[c] for c in np.flatnonzero(split.caption_image == picture)}
        assert query["image"].startswith("data:image/jpeg;base64,")
        assert [item["text"] in own for item in query["captions"]] == [
            item["right"] for item in query["captions"]
        ]
        assert (query["rank"] == 1) == query["captions"][0]["right"]
        np.testing.assert_allclose(
            [item["score"] for item in query["captions"]],
            np.sort(scores[picture])[::-1][: content.SHOWN],
            atol=1e-5,
        )
    for query in queries["t2i"]:
        caption = split.captions.index(query["text"])
        column = scores[:, caption]
        assert query["name"] == split.images[split.caption_image[caption]]
        assert [item["name"] == query["name"] for item in query["images"]] == [
            item["right"] for item in query["images"]
        ]
        np.testing.assert_allclose(
            [item["score"] for item in query["images"]],
            np.sort(column)[::-1][: content.SHOWN],
            atol=1e-5,
        )


def test_without_a_test_split_validation_is_reported(run, best, tmp_path):
    splits = {k: v for k, v in run.dataset.splits.items() if k != "test"}
    dataset = dataclasses.replace(run.dataset, splits=splits, skipped={"grey": ("a.jpg",)})
    config = run.config.copy_and_resolve_references()
    config.evaluate.queries = 0
    other = dataclasses.replace(run, config=config, dataset=dataset, workdir=tmp_path)
    metrics = content.report_state(other, best, ["careful"], "python -m vse_jax.main")
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["split"], found["protocol"]) == ("validation", "all_16")
    assert found["metrics"] == metrics
    assert found["skipped"] == {"grey": ["a.jpg"]}
    assert found["command"] == "python -m vse_jax.main"
    assert found["warnings"][0] == "careful"
    assert "the validation split has only 16 pictures" in found["warnings"][1]
    assert json.loads((tmp_path / "queries.json").read_text()) == {"i2t": [], "t2i": []}


def test_a_moving_average_is_what_is_evaluated(run, best):
    """The state of the best checkpoint has one; putting it in as parameters changes nothing."""
    assert best.ema is not None
    merged = best.replace(params=evaluation.train_step.evaluation_params(best), ema=None)
    found, expected = (evaluation.encode(run, state, "validation") for state in (merged, best))
    np.testing.assert_array_equal(found.images, expected.images)
    plain = evaluation.encode(run, best.replace(ema=None), "validation")
    assert not np.allclose(plain.captions, expected.captions)
    assert jax.tree.structure(merged.params) == jax.tree.structure(best.params)


def test_a_workdir_without_a_checkpoint_says_so(run, best, tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint yet: train it first"):
        evaluation.best_state(dataclasses.replace(run, workdir=tmp_path), best)


def test_judgements_of_pairs_in_the_split_are_correlated_with_distances(tmp_path, caplog):
    """The pairs of other splits are left out; the caption's number is that in its picture."""
    images = np.eye(4, dtype=np.float32)
    captions = images[[0, 0, 1, 2, 3]] * np.asarray([1, 0.9, 1, 0.5, 1], np.float32)[:, None]
    split = split_of([0, 0, 1, 2, 3], 4)
    lines = [
        (split.images[0], f"{split.images[0]}#1", 4, 4, 4),
        (split.images[1], f"{split.images[1]}#0", 4, 4, 4),
        (split.images[2], f"{split.images[2]}#0", 3, 3, 3),
        (split.images[2], f"{split.images[0]}#0", 1, 1, 1),
        (split.images[3], f"{split.images[1]}#0", 1, 1, 2),
        ("elsewhere.jpg", f"{split.images[0]}#0", 4, 1, 1),
        (split.images[0], f"{split.images[0]}#2", 1, 1, 1),
    ]
    path = tmp_path / "expert.txt"
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    config = default_config().evaluate
    config.expert = str(path)
    found = evaluation.judged(
        config, split, evaluation.Embeddings(images, captions, negative_euclidean)
    )
    assert found["expert/pairs"] == 5
    assert found["expert/spearman"] > 0.8
    assert found["expert/kendall"] > 0.7
    assert not any(key.startswith("scenes/") for key in found)
    # Without a correlation there is none, and no error after hours of training: with none of the
    # split's pairs, with grades all alike, and with a model that has collapsed.
    everything = path.read_text()
    path.write_text("\t".join(map(str, lines[5])) + "\n")
    assert not evaluation.judged(
        config, split, evaluation.Embeddings(images, captions, negative_euclidean)
    )
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines[:2]))
    assert not evaluation.judged(
        config, split, evaluation.Embeddings(images, captions, negative_euclidean)
    )
    path.write_text(everything)
    assert not evaluation.judged(
        config,
        split,
        evaluation.Embeddings(images[[0] * 4], captions[[0] * 5], negative_euclidean),
    )
    assert [
        line.partition(";")[0] for line in caplog.messages if line.endswith("it is left out")
    ] == [
        "expert: 0 judged pairs, a correlation needs two at least",
        "expert: relevance of all judged pairs are the same",
        "expert: distances of all judged pairs are the same",
    ]


def test_a_file_of_judgements_is_looked_at_before_the_training(tiny_shapes, tmp_path):
    config = tiny_shapes.copy_and_resolve_references()
    config.evaluate.crowdflower = str(tmp_path / "nowhere.txt")
    with pytest.raises(EvaluationError, match=r"nowhere\.txt cannot be read"):
        experiment.prepare(config, tmp_path / "w")


def test_right_pairs_and_wrong_ones_are_counted_apart():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 8)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    owners = np.repeat(np.arange(40), 3)
    captions = images[owners]
    embeddings = evaluation.Embeddings(images, captions, negative_euclidean)
    found = content.score_histograms(split_of(owners, 40), embeddings)
    edges, right, wrong = (np.asarray(found[name]) for name in ("edges", "right", "wrong"))
    assert len(edges) == len(right) + 1 == len(wrong) + 1
    assert found["measure"] == "distance"
    assert right.sum() == pytest.approx(100.0)
    assert wrong.sum() == pytest.approx(100.0)
    # Captions lie on their pictures; no wrong pair is a right one.
    assert right[0] == pytest.approx(100.0)
    assert wrong[0] == 0.0
    apart = np.linalg.norm(images[:, None] - images[None], axis=2)[~np.eye(40, dtype=bool)]
    mean = wrong @ (edges[1:] + edges[:-1]) / 200
    assert mean == pytest.approx(apart.mean(), rel=0.05)
    one = evaluation.Embeddings(images[:1], captions[:3], negative_euclidean)
    assert content.score_histograms(split_of([0, 0, 0], 1), one) is None
