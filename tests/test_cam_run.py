"""A model that tells classes and writes captions, from its config to its report."""

import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import photos
import pytest

from vse_jax import cam_evaluation, evaluation, experiment, measuring, train
from vse_jax.config import ConfigError
from vse_jax.config_checks import validate
from vse_jax.data import pipeline
from vse_jax.data.split import DataError
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
        line["captions"] = [f"a {COLOURS[colour]} {THINGS[thing]}", f"one {THINGS[thing]} is here"]
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
    config.data.data_dir = str(folder / "data")
    config.train.update({"steps": 3, "batch_size": 16, "log_every": 1, "validate_every": 1.0})
    config.evaluate = tiny_shapes.evaluate
    config.evaluate.beams = 2
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
    assert "for their class only: 6" in told or "for its class only: 6" in told
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "loss" in row:
            assert all(np.isfinite(value) for value in row.values())
            assert 0 <= row["classification/accuracy"] <= 100
            assert -1 <= row["disagreement/agreement"] <= 1
    assert {"classify/accuracy", "caption/perplexity", "cost"} <= {
        key.removeprefix("validation/") for row in rows for key in row
    }


def test_the_report_is_what_the_evaluators_find(own, opened):
    folder, report, _ = own
    run, state = opened(folder)
    split = run.dataset.splits["test"]
    looked = cam_evaluation.looks(
        run, state, "test", split.labels, [""] * len(split.images)
    ).class_maps
    # By the model itself, picture by picture.
    batch = next(pipeline.image_batches(run.examples["test"], batch_size=len(split.images)))

    variables = {
        "params": jax.tree.map(jnp.asarray, evaluation.train_step.evaluation_params(state)),
        "batch_stats": state.batch_stats,
    }
    shown = {"image": jnp.asarray(batch["image"])}
    image = run.built.model.apply(variables, shown, train=False, method="encode_image")
    own_weights = variables["params"]["classifier"]
    logits = image.pooled @ own_weights["weights"] + own_weights["bias"][None]
    labels, right = split.labels, []
    assert (labels == -1).sum() == 1
    for row, label in enumerate(labels):
        if label >= 0:
            right.append(int(np.argmax(logits[row])) == label)
            cells = np.maximum(np.asarray(image.local[row] @ own_weights["weights"][:, label]), 0)
            np.testing.assert_allclose(looked[row], cells, rtol=1e-4, atol=1e-5)
    assert report["metrics"]["classify/accuracy"] == pytest.approx(100 * np.mean(right))
    # Cells of a 2 x 2 grid with their middle in the box: the first, of those that have a box.
    assert run.dataset.classes == ("moon", "ring", "star")
    assert report["metrics"]["maps/chance_pointing"] == pytest.approx(25.0)
    assert 0 <= report["metrics"]["maps/agreement_truth"] <= 1


@pytest.mark.parametrize(
    ("alone", "there", "missing"),
    [
        ("classifier", "classify/accuracy", ("caption/", "maps/agreement", "maps/caption")),
        ("captioner", "caption/perplexity", ("classify/", "maps/agreement", "maps/class")),
    ],
)
def test_each_task_alone(alone, there, missing, config, preset, tmp_path, monkeypatch):
    monkeypatch.setattr(captioning.shutil, "which", lambda _: None)
    config = config.copy_and_resolve_references()
    config.objective = preset("shapes", f"cam,objective={alone}").objective
    config.train.steps = 2
    assert train.train(config, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "report.json").read_text())["metrics"]
    assert there in metrics
    assert not [name for name in metrics if name.startswith(missing)]


def test_a_workdir_is_measured_again_and_not_with_others(own, tmp_path):
    folder, report, _ = own
    with pytest.raises(WorkdirError, match="tells classes"):
        measuring.together([folder, folder], tmp_path / "both")
    assert report["step"] <= 3


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
    assert "comet" in caplog.text
