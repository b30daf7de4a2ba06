import contextlib
import dataclasses
import json
import logging
import math
import shutil
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax import experiment, optimizer, parallel, train, train_step, workdir
from vse_jax.checkpoint import Checkpoints
from vse_jax.config import ConfigError, default_config
from vse_jax.data import pipeline, semantics, tokenizer
from vse_jax.workdir import WorkdirError


def logged(values, start=1):
    """Log lines as training writes them, validations among them."""
    rows = []
    for step, value in enumerate(values, start):
        rows.append({"step": step, "loss": 1.0, "triplet/collapse": value})
        rows.append({"step": step, "validation/rsum": 3.0})
    return rows


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([1.0] * 9, None),
        ([1.0] * 10, 10),
        ([1.0] * 30, 10),
        # The hinge over all negatives of the warm-up says 0.
        ([0.0] * 50, None),
        ([0.0] * 20 + [1.01, 0.98] * 5, 30),
        ([1.0] * 9 + [0.9] + [1.0] * 9, None),
        ([1.0] * 9 + [0.9] + [1.0] * 10, 20),
        ([1.5] * 20, None),
        ([math.nan] * 20, None),
    ],
)
def test_ten_log_lines_at_twice_the_margin_are_a_collapse(values, step):
    found = train.warnings_of(logged(values))
    if step is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(f"step {step}: the embeddings have collapsed")
        assert "warmup_epochs of the objective" in found[0]


def test_without_the_triplet_nothing_collapses():
    assert train.warnings_of([{"step": n, "loss": 1.0} for n in range(50)]) == []


def ends(epoch_steps, end, every=1.0):
    """The steps at which `Loop` ends an interval."""
    config = default_config()
    config.train.validate_every = every
    loop = object.__new__(train.Loop)
    loop.experiment = types.SimpleNamespace(config=config)
    loop.epoch_steps, loop.end = epoch_steps, end
    return [number for number in range(1, end + 1) if loop._ends_interval(number)]


@pytest.mark.parametrize(
    ("epoch_steps", "end", "every", "expected"),
    [
        (10.0, 30, 1.0, [10, 20, 30]),
        (10.0, 25, 1.0, [10, 20, 25]),
        (10.0, 30, 0.5, [5, 10, 15, 20, 25, 30]),
        (10.0, 40, 2.0, [20, 40]),
        (2.5, 10, 1.0, [3, 5, 8, 10]),
        (10.0, 3, 1.0, [3]),
        (0.4, 3, 1.0, [1, 2, 3]),
    ],
)
def test_an_interval_ends_with_the_step_that_reaches_it(epoch_steps, end, every, expected):
    assert ends(epoch_steps, end, every) == expected


@pytest.mark.parametrize("batch_size", [7, 64, 128, 1000])
@pytest.mark.parametrize("examples", [997, 30_000, 145_000])
def test_every_epoch_ends_exactly_once(examples, batch_size):
    epochs = 6
    epoch_steps = examples / batch_size
    found = ends(epoch_steps, math.ceil(epochs * epoch_steps))
    assert len(found) == epochs
    for epoch, step in enumerate(found, 1):
        assert step - 1 < epoch * examples / batch_size <= step


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0:00:00"),
        (59.6, "0:01:00"),
        (61.0, "0:01:01"),
        (3599.4, "0:59:59"),
        (90_061.0, "25:01:01"),
    ],
)
def test_durations_are_hours_minutes_and_seconds(seconds, shown):
    assert train._duration(seconds) == shown


@pytest.fixture(scope="module")
def eventful(tiny_shapes, tmp_path_factory):
    """A run that validates every second step and looks collapsed all the time.

    Its folder, what it warned of, and for each save of the last checkpoint whether the best one
    by then was on disk.
    """
    folder = tmp_path_factory.mktemp("eventful")
    config = tiny_shapes.copy_and_resolve_references()
    config.objective.infonce.weight, config.objective.triplet.weight = 0.0, 1.0
    config.train.steps, config.train.validate_every = 12, 0.1
    save, check, whole = Checkpoints.save, train.Loop._check, []

    def watched_save(self, step, state):
        if self.folder.name == "last":
            rows = workdir.read_metrics(folder)
            scores = {r["step"]: r["validation/rsum"] for r in rows if "validation/rsum" in r}
            best = max(scores, key=lambda step: (scores[step], -step))
            whole.append((folder / "checkpoints" / "best" / str(best)).is_dir())
        save(self, step, state)

    def collapsed(self, keep):
        return (check(self, keep) or {}) | {"triplet/collapse": 1.0}

    told = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", watched_save)
        patch.setattr(train.Loop, "_check", collapsed)
        logging.getLogger("vse_jax").addHandler(handler)
        assert train.train(config, folder)
        logging.getLogger("vse_jax").removeHandler(handler)
    return folder, told, whole


def test_the_best_checkpoint_is_on_disk_before_the_last_one_is_begun(eventful):
    """Killed between the two, a run would go on from the last and never save that best."""
    _, _, whole = eventful
    assert len(whole) >= 4
    assert all(whole)


def test_a_run_that_collapses_is_told_so_once_with_advice_and_in_the_report(eventful):
    folder, told, _ = eventful
    told = [message for message in told if "have collapsed" in message]
    assert told == [f"step 10: {train.COLLAPSE_ADVICE}"]
    assert told[0] in json.loads((folder / "report.json").read_text())["warnings"]
    assert "have collapsed" in (folder / "report.html").read_text()


def test_a_batch_that_is_not_on_the_devices_stops_the_loop(trained, opened, tmp_path, monkeypatch):
    """The loop's own step moves nothing there silently."""
    run, state = opened(shutil.copytree(trained, tmp_path / "run"))
    state = state.replace(step=np.zeros_like(state.step))

    def left_on_the_host(devices, batches):
        del devices
        return ((batch, batch) for batch in batches)

    monkeypatch.setattr(parallel.Devices, "prefetch", left_on_the_host)
    last, best = (Checkpoints(tmp_path / name, keep=1) for name in ("last", "best"))
    refused = pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device")
    with contextlib.closing(train.Loop(run, state, last, best, threading.Event())) as loop, refused:
        loop.run()


def test_words_start_from_glove_and_come_from_training_captions_alone(
    tiny_shapes, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "vse_jax")
    (tmp_path / "glove.txt").write_text(
        "circle " + " ".join(["0.5"] * 8) + "\nxyzzy " + " ".join(["9"] * 8) + "\n"
    )
    config = tiny_shapes.copy_and_resolve_references()
    config.model.text.glove = str(tmp_path / "glove.txt")
    run = experiment.prepare(config, tmp_path / "run")
    assert f"word vectors: 1 of {run.tokenizer.vocabulary} words found" in caplog.text
    table = run.built.variables["params"]["text"]["reader"]["words"]
    number = run.tokenizer.words.token_to_id("circle")
    np.testing.assert_array_equal(table[number], np.full(8, 0.5))
    assert np.abs(np.delete(table, number, axis=0)).max() <= 0.1
    expected = tokenizer.train(run.dataset.splits["train"].captions, "vse", 40)
    assert run.tokenizer.words.get_vocab() == expected.words.get_vocab()
    everything = [c for split in run.dataset.splits.values() for c in split.captions]
    more = tokenizer.train(everything, "vse", 40)
    assert more.words.get_vocab() != expected.words.get_vocab()


def first_batch(run):
    return next(train.Loop._batches(types.SimpleNamespace(experiment=run, start=0, end=1)))


def test_margins_from_semantics_bring_them_into_the_batches(tiny_shapes, tmp_path):
    config = tiny_shapes.copy_and_resolve_references()
    assert "semantics" not in first_batch(experiment.prepare(config, tmp_path / "without"))
    config.objective.triplet.weight, config.objective.triplet.semantic = 1.0, 0.025
    run = experiment.prepare(config, tmp_path / "latent", training=True)
    captions = run.dataset.splits["train"].captions
    expected = semantics.latent(captions)
    found = first_batch(run)
    np.testing.assert_array_equal(found["semantics"], expected[found["caption_id"]])
    # One's own, by file.
    own = np.arange(2.0 * len(captions), dtype=np.float32).reshape(-1, 2)
    config.data.semantics = str(tmp_path / "own.npy")
    np.save(config.data.semantics, own)
    with pytest.raises(workdir.WorkdirError, match="begun with other semantics"):
        experiment.prepare(config, tmp_path / "latent", training=True)
    found = first_batch(experiment.prepare(config, tmp_path / "own", training=True))
    np.testing.assert_array_equal(found["semantics"], own[found["caption_id"]])
    np.save(config.data.semantics, own[:-1])
    told = rf"'data\.semantics': .*own\.npy: float32\[{len(captions) - 1}, 2\]; expected"
    with pytest.raises(ConfigError, match=told):
        experiment.prepare(config, tmp_path / "fewer")
    assert not (tmp_path / "fewer").exists()
    # What is only measured does without them, and is not begun with others for that.
    Path(config.data.semantics).unlink()
    assert experiment.prepare(config, tmp_path / "own").examples["train"].semantics is None


def test_a_training_starts_from_the_averaged_parameters_of_another(
    tiny_shapes, trained, opened, tmp_path
):
    config = tiny_shapes.copy_and_resolve_references()
    config.train.start_from = str(trained)
    config.seed = 7
    state = train.initial_state(experiment.prepare(config, tmp_path / "run", training=True))
    _, best = opened(trained)
    expected = optimizer.flatten(train_step.evaluation_params(best))
    found = optimizer.flatten(state.params)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    raw = optimizer.flatten(best.params)
    assert any((found[name] != raw[name]).any() for name in found)
    for name, value in optimizer.flatten(best.batch_stats).items():
        np.testing.assert_array_equal(optimizer.flatten(state.batch_stats)[name], value)
    assert state.step == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_a_training_starts_from_a_part_of_another_model(
    tiny_shapes, trained, opened, preset, tmp_path
):
    config = tiny_shapes.copy_and_resolve_references()
    captions = preset("shapes", "multimodal_rnn")
    config.model, config.objective = captions.model, captions.objective
    config.data.tokenizer = "dvsa"
    config.seed = 7
    plain = experiment.prepare(config, tmp_path / "plain", training=True).built
    config.train.start_from = str(trained)
    config.train.start_parts = "image/backbone/.*"
    config.train.freeze = (("image/backbone/.*", None),)
    run = experiment.prepare(config, tmp_path / "run", training=True)
    _, best = opened(trained)
    taken = {
        "params": train_step.evaluation_params(best),
        "batch_stats": best.batch_stats,
    }
    found, own, other = map(optimizer.flatten, (run.built.variables, plain.variables, taken))
    assert found.keys() == own.keys()
    backbone = {name for name in found if name.split("/")[1:3] == ["image", "backbone"]}
    assert {name.split("/")[0] for name in backbone} == {"params", "batch_stats"}
    for name, value in found.items():
        np.testing.assert_array_equal(value, (other if name in backbone else own)[name])
    assert any((found[name] != own[name]).any() for name in backbone)
    assert run.tokenizer.preset == "dvsa"
    # What it is shown went through that backbone, once.
    examples = dataclasses.replace(run.examples["train"], features=None)
    batch = next(pipeline.image_batches(examples, batch_size=4))
    shown = run.built.model.apply(
        jax.tree.map(jnp.asarray, dict(run.built.variables)),
        jnp.asarray(batch["image"]),
        method=lambda model, image: model.image.features(image),
    )
    np.testing.assert_allclose(run.examples["train"].features[:4], shown, atol=1e-4)


def test_what_cannot_be_started_from_is_refused(tiny_shapes, trained, trained_leap, tmp_path):
    config = tiny_shapes.copy_and_resolve_references()
    run = tmp_path / "run"

    def refused(error, match):
        with pytest.raises(error, match=match):
            experiment.prepare(config, run, training=True)
        assert not (run / "config.json").exists()

    config.train.start_from = str(tmp_path / "nowhere")
    refused(ConfigError, "'train.start_from': .*nowhere is no workdir of vse_jax")
    source = shutil.copytree(trained, tmp_path / "source")
    config.train.start_from = str(source)
    config.model.dimension = 12
    refused(ConfigError, r"'train.start_from'.*source is of another model: params/.*\[.*16\] there")
    config.model.dimension = 16
    config.data.tokenizer = "dvsa"
    refused(ConfigError, r"'train.start_from': .*words by data\.tokenizer=vse, this run by dvsa")
    config.data.tokenizer = tiny_shapes.data.tokenizer
    shutil.rmtree(source / "checkpoints" / "best")
    refused(ConfigError, "'train.start_from': .*no usable checkpoint; train the workdir first")
    (source / "checkpoints" / "best" / "3").mkdir(parents=True)
    refused(ConfigError, r"'train.start_from': .*no usable checkpoint: every one \(3\) is damaged")
    shutil.rmtree(source / "checkpoints" / "best")
    config.train.start_parts = "image/bone/.*"
    with_best = shutil.copytree(trained, tmp_path / "with_best")
    config.train.start_from = str(with_best)
    refused(ConfigError, r"'train.start_parts' is 'image/bone/\.\*', which matches nothing of")
    config.train.start_parts = "("
    refused(ConfigError, r"'train.start_parts' is '\(': not a pattern")
    config.train.start_parts, config.train.start_from = "image/.*", None
    refused(ConfigError, r"'train.start_parts' is .* names no model to take them from")
    config.train.start_parts = ".*"
    config.train.start_from = ""
    refused(ConfigError, "'train.start_from' is empty")
    config.train.start_from = str(source)

    shutil.copytree(trained / "checkpoints" / "best", source / "checkpoints" / "best")
    experiment.prepare(config, run, training=True)
    shutil.rmtree(source / "checkpoints" / "best")
    shutil.copytree(trained_leap / "checkpoints" / "best", source / "checkpoints" / "best")
    with pytest.raises(WorkdirError, match=r"begun with other start_from .digest"):
        experiment.prepare(config, run, training=True)


def test_shuffled_captions_are_those_of_other_pictures(tiny_shapes, tmp_path):
    config = tiny_shapes.copy_and_resolve_references()
    config.data.shuffle_captions = True
    run = experiment.prepare(config, tmp_path)
    assert run.config.data.shuffle_captions
    found = first_batch(run)
    own = run.dataset.splits["train"].caption_image[found["caption_id"]]
    assert np.mean(own == found["image_id"]) < 0.5
