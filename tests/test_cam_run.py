"""A model that tells classes and writes captions, from its config to its report."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import photos
import pytest

from vse_jax import (
    cam_evaluation,
    caption_evaluation,
    experiment,
    measuring,
    train,
    train_step,
)
from vse_jax.config import ConfigError
from vse_jax.config_checks import validate
from vse_jax.data import pipeline
from vse_jax.data.split import DataError, Split
from vse_jax.encoding import Encoding
from vse_jax.evaluators import captioning
from vse_jax.objectives.classification import classification
from vse_jax.objectives.disagreement import disagreement
from vse_jax.objectives.generation import generation
from vse_jax.objectives.joint_embedding import joint_embedding
from vse_jax.parallel import Devices
from vse_jax.workdir import WorkdirError

B, CELLS, CLASSES = 8, 5, 3
COLOURS, THINGS = ("red", "green", "blue"), ("star", "ring", "moon")


def outputs_and_batch():
    """Rows of every kind: without a class, a caption, content words, or padding."""
    rng = np.random.default_rng(0)
    maps = rng.uniform(0, 1, (2, B, CELLS)).astype(np.float32)
    maps[0, 3] = 0
    outputs = {
        "logits": rng.normal(size=(B, CLASSES)).astype(np.float32),
        "class_map": maps[0],
        "caption_map": maps[1],
        "has_caption_map": np.array([1, 1, 0, 1, 1, 0, 1, 1], bool),
        "generation": rng.uniform(1, 9, B).astype(np.float32),
        "image": rng.normal(size=(B, 4)).astype(np.float32),
        "text": rng.normal(size=(B, 4)).astype(np.float32),
    }
    batch = {
        "label": np.array([0, 2, 1, 1, -1, 0, -1, 2], np.int32),
        "token_mask": np.arange(3)[None] < np.array([3, 2, 2, 3, 3, 0, 0, 3])[:, None],
        "weight": np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32),
        # The first two are captions of one picture.
        "image_id": np.array([0, 0, 2, 3, 4, 5, 6, 7], np.int32),
    }
    return outputs, batch


def cosine(a, b):
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / length if length else 0.0


def expected_losses():
    """Loops over the rows that count, in float64."""
    outputs, batch = outputs_and_batch()
    outputs = {name: np.asarray(value, np.float64) for name, value in outputs.items()}
    rows = [row for row in range(B) if batch["weight"][row]]
    labelled = [row for row in rows if batch["label"][row] >= 0]
    captioned = [row for row in rows if batch["token_mask"][row].any()]
    logits = outputs["logits"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    images = outputs["image"]
    close = np.array([[cosine(np.tanh(i), t) for t in outputs["text"]] for i in images])

    def picked(close, row):
        """-log of the share of the right one among those that are no others of its picture."""
        ids = batch["image_id"]
        among = [r for r in captioned if r == row or ids[r] != ids[row]]
        return np.log(np.exp(close[row, among] / 0.2).sum()) - close[row, row] / 0.2

    both = [row for row in labelled if outputs["has_caption_map"][row]]
    assert len(labelled) == 5 and len(captioned) == 5 and len(both) == 3  # noqa: PT018
    return {
        "classification": np.mean([-np.log(shares[r, batch["label"][r]]) for r in labelled]),
        "generation": np.mean(outputs["generation"][captioned]),
        "disagreement": np.mean(
            [1 - cosine(outputs["class_map"][r], outputs["caption_map"][r]) for r in both]
        ),
        "cosine": np.mean([1 - close[r, r] for r in captioned]),
        "contrast": np.mean([(picked(close, r) + picked(close.T, r)) / 2 for r in captioned]),
    }


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("classification", classification()),
        ("generation", generation()),
        ("disagreement", disagreement("cosine")),
        ("cosine", joint_embedding("cosine")),
        ("contrast", joint_embedding("contrast", 0.2, 3)),
    ],
)
def test_losses_are_means_over_the_rows_that_can_serve_them(name, objective, count):
    devices = Devices("shard_map", tuple(jax.devices()[:count]))

    def step(outputs, batch):
        given = dict(outputs)
        for side in ("image", "text"):
            rows = given[side]
            given[side] = Encoding(rows[:, None], jnp.ones((len(rows), 1), bool), rows)
        loss, _, metrics = objective.apply({}, given, batch)
        return jax.lax.pmean(loss, "data"), metrics

    mapped = devices.map(step, ("split", "split"), ("replicated", "replicated"))
    loss, metrics = devices.fetch(mapped(*map(devices.split, outputs_and_batch())))
    np.testing.assert_allclose(loss, expected_losses()[name], rtol=1e-5)
    told = [key for key in metrics if key.startswith("loss")]
    np.testing.assert_allclose(metrics[told[0]], loss, rtol=1e-6)


def lines(folder, count=40):
    """A file of pictures of noise of three classes, some with a class or captions alone."""
    said = []
    for number in range(count):
        name = f"{number:02d}.jpg"
        thing, colour = number % 3, number // 3 % 3
        split = "train" if number < 24 else "validation" if number < 32 else "test"
        line = {"image": name, "split": split, "label": THINGS[thing]}
        # A word that says something and is more frequent than the end of a caption: by the mean
        # over tokens, what is hardly trained writes that.
        line["captions"] = [
            f"a bright {COLOURS[colour]} {THINGS[thing]}",
            f"one bright bright {THINGS[thing]} is here",
        ]
        line["boxes"] = [[0.1, 0.1, 0.6, 0.7]]
        if number % 6 == 4:
            line["captions"] = []
        if number % 6 == 5:
            del line["label"]
        if number % 8 == 1:
            del line["boxes"]
        said.append(line)
    photos.write(folder, [line["image"] for line in said])
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in said))
    return path


@pytest.fixture(scope="module")
def config(preset, tiny_shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    config = preset("shapes", "cam")
    config.data.update({"dataset": "custom", "path": str(lines(folder)), "image_size": 32})
    config.data.data_dir, config.data.max_tokens = str(folder / "data"), 10
    config.train.update({"steps": 3, "batch_size": 16, "log_every": 1, "validate_every": 0.4})
    config.evaluate = tiny_shapes.evaluate
    config.evaluate.beams, config.evaluate.length_power = 2, 1.0
    config.model.dimension, config.model.hidden, config.model.text.words = 16, 8, 8
    return config


@pytest.fixture(scope="module")
def own(config, tmp_path_factory):
    """Workdir, report, log lines of a training on own data."""
    folder = tmp_path_factory.mktemp("runs") / "cam"
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("vse_jax")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning.shutil, "which", lambda _: None)  # Java would take seconds.
        assert train.train(config, folder)
    log.removeHandler(handler)
    return folder, json.loads((folder / "report.json").read_text()), said


def test_pictures_serve_the_tasks_that_they_can(own):
    folder, report, said = own
    assert "custom" in report["protocol"]
    told = "\n".join(said)
    assert "photo without captions, for their class only: 6 (04.jpg" in told
    assert "without a class, for captions: 6 (05.jpg" in told
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "loss" in row:
            assert all(np.isfinite(value) for value in row.values())
            assert 0 <= row["classification/accuracy"] <= 100
            assert -1 <= row["disagreement/agreement"] <= 1
    assert {"classify/accuracy", "caption/perplexity", "cost"} <= {
        key.removeprefix("validation/") for row in rows for key in row
    }


def looked(run, state, split, labels, sentences):
    """What `looks` tells, one picture at a time, by the model itself."""
    variables = {
        "params": jax.tree.map(jnp.asarray, train_step.evaluation_params(state)),
        "batch_stats": state.batch_stats,
    }
    tokens, mask = run.tokenizer.tokenize(sentences)
    pixels = next(pipeline.image_batches(run.examples[split], batch_size=len(labels)))["image"]

    @jax.jit
    def of_one(image, label, tokens, mask):
        batch = {"image": image, "label": label, "tokens": tokens, "token_mask": mask}
        batch = {name: rows[None] for name, rows in batch.items()}
        return run.built.model.apply(variables, batch, method="looks")

    rows = [of_one(*row) for row in zip(pixels, jnp.asarray(labels), tokens, mask, strict=True)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def cosines(a, b):
    return np.array([cosine(*pair) for pair in zip(a.astype(float), b.astype(float), strict=True)])


def points(shown, boxes, side):
    """Whether the highest cell of each map has its middle in the box."""
    found = []
    for values, (y0, x0, y1, x1) in zip(shown, boxes, strict=True):
        y, x = ((np.array(divmod(int(values.argmax()), side)) + 0.5) / side).tolist()
        found.append(values.max() > 0 and y0 <= y <= y1 and x0 <= x <= x1)
    return 100 * np.mean(found)


def test_the_report_is_what_the_model_tells_picture_by_picture(own, opened):
    folder, report, _ = own
    run, state = opened(folder)
    split, metrics = run.dataset.splits["test"], report["metrics"]
    assert run.dataset.classes == ("moon", "ring", "star")
    labels, unknown = split.labels, np.full(len(split.images), -1)
    assert (labels == -1).sum() == 1
    written = caption_evaluation.write(run, state, "test", 2).sentences
    said = [next(iter(split.captions_of(number)), "") for number in range(len(labels))]
    assert "" in said
    assert len(set(said)) > 3
    ours, true = (
        looked(run, state, "test", *given) for given in ((unknown, written), (labels, said))
    )
    known, captioned = labels >= 0, ours["has_caption_map"]
    right = ours["logits"].argmax(axis=1) == labels
    assert metrics["classify/accuracy"] == pytest.approx(100 * np.mean(right[known]))
    agree = cosines(true["class_map"], true["caption_map"])
    where = known & true["has_caption_map"]
    assert metrics["maps/agreement_truth"] == pytest.approx(agree[where].mean(), rel=1e-4)
    assert all(sentence.startswith("bright") for sentence in written)
    assert captioned.all()
    assert (ours["caption_map"].max(axis=1) > 0).any()
    agree = cosines(ours["class_map"], ours["caption_map"])
    assert metrics["maps/agreement"] == pytest.approx(agree.mean(), rel=1e-4)
    shown = json.loads((folder / "queries.json").read_text())["looks"]
    assert len(shown) == run.config.evaluate.queries
    assert all(item["caption_image"].startswith("data:image/jpeg;base64,") for item in shown)
    assert "no content word in it" not in (folder / "report.html").read_text()
    # As `evaluate` asks for them, in batches of another size.
    with run.config.unlocked():
        run.config.evaluate.batch_size = 3
    again = cam_evaluation.looks(run, state, "test", labels, said)
    np.testing.assert_allclose(again.class_maps, true["class_map"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(again.caption_maps, true["caption_map"], rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(again.captioned, true["has_caption_map"])
    found = cam_evaluation.evaluate(run, state, "test", said).metrics
    own_maps = looked(run, state, "test", unknown, said)
    boxed = np.array([len(boxes) == 1 for boxes in split.boxes])
    where = boxed & known & own_maps["has_caption_map"]
    assert 3 < where.sum() < len(where)
    boxes = [split.boxes[number][0] for number in np.flatnonzero(where)]
    side = round(own_maps["class_map"].shape[1] ** 0.5)
    assert found["maps/class_pointing"] == pytest.approx(
        points(true["class_map"][where], boxes, side)
    )
    assert found["maps/caption_pointing"] == pytest.approx(
        points(own_maps["caption_map"][where], boxes, side)
    )
    both = own_maps["has_caption_map"]
    others = np.roll(own_maps["caption_map"], 1, axis=0)
    where = np.roll(both, 1)
    assert found["maps/agreement_chance"] == pytest.approx(
        cosines(own_maps["class_map"], others)[where].mean(), rel=1e-4
    )
    agree = cosines(own_maps["class_map"], own_maps["caption_map"])
    assert found["maps/agreement"] == pytest.approx(agree[both].mean(), rel=1e-4)


def test_the_true_box_is_that_of_the_largest_object_or_the_only_one():
    thing = {"box": [0.1, 0.1, 0.2, 0.2]}, {"box": [0.3, 0.3, 0.9, 0.9]}
    split = Split(["a"], ["b"], np.array([0]), None, scenes=[{"objects": thing, "main": 1}])
    [[box]] = cam_evaluation.true_boxes(split)
    np.testing.assert_allclose(box, [0.3, 0.3, 0.9, 0.9])
    one, two = np.array([[0, 0, 1, 0.5]]), np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5]])
    split = Split(["a", "b", "c"], [], np.array([]), None, boxes=[one, two, one[:0]])
    assert [len(boxes) for boxes in cam_evaluation.true_boxes(split)] == [1, 0, 0]
    assert cam_evaluation.true_boxes(dataclasses.replace(split, boxes=[two] * 3)) is None


def test_the_best_checkpoint_has_the_least_share_of_errors_plus_log_perplexity(own):
    folder, report, _ = own
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "validation/cost" in row]
    assert len(rows) > 1
    for row in rows:
        wrong = 1 - row["validation/classify/accuracy"] / 100
        expected = wrong + np.log(row["validation/caption/perplexity"])
        assert row["validation/cost"] == pytest.approx(expected)
    assert report["step"] == min(rows, key=lambda row: row["validation/cost"])["step"]


def test_the_captioner_alone(config, preset, tmp_path, monkeypatch):
    """The classifier alone: test_cam_photo_sets.py."""
    monkeypatch.setattr(captioning.shutil, "which", lambda _: None)
    config = config.copy_and_resolve_references()
    config.objective = preset("shapes", "cam,objective=captioner").objective
    config.train.steps = 2
    assert train.train(config, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "report.json").read_text())["metrics"]
    assert "caption/perplexity" in metrics
    missing = ("classify/", "maps/agreement", "maps/class")
    assert not [name for name in metrics if name.startswith(missing)]


def test_a_workdir_is_measured_again_and_not_with_others(own, tmp_path, monkeypatch):
    folder, report, _ = own
    with pytest.raises(WorkdirError, match="tells classes"):
        measuring.together([folder, folder], tmp_path / "both")
    monkeypatch.setattr(captioning.shutil, "which", lambda _: None)
    copy = shutil.copytree(folder, tmp_path / "again")
    (copy / "report.json").unlink()
    assert measuring.again(copy) == pytest.approx(report["metrics"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective.triplet.weight": 1.0}, "set it to 0"),
        ({"model.image.features": "pooled"}, "draws maps of where it looks: set it to 'grid'"),
        (
            {"objective.classification.weight": 0.0},
            "'objective.disagreement.weight' is 1.0, which compares",
        ),
        (
            {f"objective.{name}.weight": 0.0
             for name in ("classification", "generation", "disagreement", "embedding")},
            "nothing else teaches the network 'cam'",
        ),
        (
            {"objective.generation.weight": 0.0, "objective.disagreement.weight": 0.0},
            "of the sentences that a captioner learns from",
        ),
        ({"model.image.normalize_features": True}, "of a mean over cells as they are"),
        ({"objective.disagreement.kind": "angle"}, "'cosine' or 'kl' or 'l2'"),
        ({"model.text.backbone": "bert"}, "has words of its own"),
        ({"model.network": "multimodal_rnn"}, "a term of the network 'cam'"),
    ],
)  # fmt: skip
def test_fields_that_contradict_each_other_are_refused(config, changes, told):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=told):
        validate(config)


def test_data_without_classes_are_told_before_training(config, tmp_path):
    config = config.copy_and_resolve_references()
    said = [json.loads(line) for line in Path(config.data.path).read_text().splitlines()]
    for line in said:
        line.pop("label", None)
        line["captions"] = line["captions"] or ["a picture"]
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in said))
    config.data.path, config.data.images = str(path), config.data.path.rsplit("/", 1)[0]
    with pytest.raises(DataError, match="are of 0 classes: bring labels of two or more"):
        experiment.prepare(config, tmp_path / "run", training=True)
    assert not (tmp_path / "run").exists()


def test_pictures_without_a_caption_are_told_to_serve_the_classes_alone(config, tmp_path):
    config = config.copy_and_resolve_references()
    said = [json.loads(line) for line in Path(config.data.path).read_text().splitlines()]
    path = tmp_path / "plain.jsonl"
    bare = (line | {"label": line.get("label", THINGS[0]), "captions": []} for line in said)
    path.write_text("".join(json.dumps(line) + "\n" for line in bare))
    config.data.path, config.data.images = str(path), config.data.path.rsplit("/", 1)[0]
    with pytest.raises(DataError, match=r"has a caption: bring some, or tell classes alone"):
        experiment.prepare(config, tmp_path / "run", training=True)


def test_where_no_caption_has_a_map_the_class_alone_points(own, opened, monkeypatch):
    run, _ = opened(own[0])
    truth = [np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)] * 3
    cells = np.ones((3, 1), np.float32)
    shown = cam_evaluation.Looks(cells, cells, np.zeros(3, bool))
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    monkeypatch.setattr(cam_evaluation.alignment, "cell_boxes", lambda *_: whole)
    found = cam_evaluation._pointing(run, truth, np.array([0, 1, -1]), shown, shown)
    assert found == {"maps/class_pointing": 100.0, "maps/chance_pointing": 100.0}
    silent = shown._replace(class_maps=None)
    assert cam_evaluation._pointing(run, truth, np.array([0, 1, -1]), silent, silent) == {}


def test_classes_and_captions_where_they_are_learned(config, tmp_path):
    """Labels, or captions, of other splits alone teach nothing."""
    said = [json.loads(line) for line in Path(config.data.path).read_text().splitlines()]

    def prepared(change):
        changed = config.copy_and_resolve_references()
        path = tmp_path / "changed.jsonl"
        path.write_text("".join(json.dumps(change(dict(line))) + "\n" for line in said))
        changed.data.path, changed.data.images = str(path), config.data.path.rsplit("/", 1)[0]
        return experiment.prepare(changed, tmp_path / "run", training=True)

    def one_class(line):
        return line | ({"label": "star"} if line["split"] == "train" else {})

    with pytest.raises(DataError, match="the training pictures of changed are of 1 classes"):
        prepared(one_class)

    def silent(line):
        return line | ({"captions": [], "label": "star"} if line["split"] == "test" else {})

    with pytest.raises(DataError, match="none of the 8 pictures of the test split has a caption"):
        prepared(silent)


def test_a_class_without_training_pictures_is_told(config, tmp_path, caplog):
    config = config.copy_and_resolve_references()
    said = [json.loads(line) for line in Path(config.data.path).read_text().splitlines()]
    said[-2]["label"] = "comet"
    path = tmp_path / "rare.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in said))
    config.data.path, config.data.images = str(path), config.data.path.rsplit("/", 1)[0]
    caplog.set_level(logging.WARNING, logger="vse_jax")
    run = experiment.prepare(config, tmp_path / "run", training=True)
    assert len(run.dataset.classes) == 4
    assert "rare: classes without a training picture: 1 (comet)" in caplog.messages
