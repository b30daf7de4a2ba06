"""Flickr8k with a frozen MobileNetV2, from files as a user has them: features are made once."""

import dataclasses
import json
import logging
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_flickr8k import SCALE, SIZES, photo, write_flickr8k, write_weights

import vse_jax
from vse_jax import checkpoint, evaluation, experiment, frozen_features, train
from vse_jax.config import ConfigError
from vse_jax.data import pipeline
from vse_jax.data.split import DataError
from vse_jax.models.backbones.mobilenet_v2 import MobileNetV2
from vse_jax.models.regions import box_features
from vse_jax.optimizer import flatten
from vse_jax.workdir import WorkdirError


def configured(config, tmp_path):
    """A small run on tmp_path/flickr8k with the weights tmp_path/weights."""
    config.data.manual_dir = str(tmp_path / "flickr8k")
    config.data.data_dir = str(tmp_path / "prepared")
    config.data.image_size = 32
    config.model.image.weights = str(tmp_path / "weights")
    config.model.dimension = 8
    config.model.text.words = 4
    config.train.steps = 2
    config.train.batch_size = 4
    config.evaluate.batch_size = 8
    return config


@pytest.mark.slow
def test_features_are_made_once_for_the_same_data_and_weights(preset, tmp_path, caplog):
    caplog.set_level(logging.INFO, "vse_jax")
    write_flickr8k(tmp_path / "flickr8k")
    variables = write_weights(tmp_path / "weights", seed=0)
    config = configured(preset("flickr8k"), tmp_path)

    def prepare(name):
        """The run, and whether its features were computed rather than found."""
        caplog.clear()
        run = experiment.prepare(config, tmp_path / name)
        assert "features of pictures in" in caplog.text
        return run, "computing the features of 12 pictures, once" in caplog.text

    assert train.train(config, tmp_path / "first")
    assert "computing the features of 12 pictures, once" in caplog.text
    report = json.loads((tmp_path / "first" / "report.json").read_text())
    assert (report["protocol"], report["step"]) == ("flickr8k_2", 2)

    # The backbone of the checkpoint is that of the file, to the bit.
    tree = checkpoint.read_newest(tmp_path / "first" / "checkpoints" / "best")
    for collection, values in variables.items():
        kept = flatten(tree[collection]["image"]["backbone"])
        for name, value in flatten(values).items():
            np.testing.assert_array_equal(kept[name], value, err_msg=name)

    run, computed = prepare("second")
    assert not computed
    assert run.examples["test"].features.shape == (2, 1, 128)
    # The features say of a photo what its pixels say.
    state = evaluation.best_state(
        dataclasses.replace(run, workdir=tmp_path / "first"), train.initial_state(run)
    )
    expected = evaluation.encode(run, state, "test").images
    photos = [tmp_path / "flickr8k" / "Flicker8k_Dataset" / f"test{n}.jpg" for n in range(2)]
    found = vse_jax.load(tmp_path / "first").encode_images(photos)
    assert np.sum(found * expected, axis=1).min() > 0.999

    # What an interrupted computation left is not taken for the whole.
    (folder,) = (tmp_path / "prepared" / "features").iterdir()
    before = np.load(folder / "train.npy")
    (folder / "done.json").unlink()
    (folder / "train.npy").write_bytes((folder / "train.npy").read_bytes()[:200])
    (folder / "lock").touch()
    folder.rename(folder.with_name(f"{folder.name}.abc.partial"))
    run, computed = prepare("third")
    assert computed
    np.testing.assert_array_equal(run.examples["train"].features, before)

    write_weights(tmp_path / "weights", seed=1)
    run, computed = prepare("fourth")
    assert computed
    assert not np.allclose(run.examples["train"].features, before)
    assert len(list((tmp_path / "prepared" / "features").iterdir())) == 2

    # So do other photos.
    kept = run.dataset.fingerprint
    (tmp_path / "flickr8k" / "Flicker8k_Dataset" / "train0.jpg").write_bytes(photo(12345))
    assert experiment.prepare(config, tmp_path / "fifth").dataset.fingerprint != kept

    # A workdir goes without the weights that it began with.
    shutil.rmtree(tmp_path / "weights")
    np.testing.assert_array_equal(vse_jax.load(tmp_path / "first").encode_images(photos), found)


def test_a_photo_whose_features_are_not_finite_is_named(preset, tmp_path, monkeypatch):
    write_flickr8k(tmp_path / "flickr8k")
    write_weights(tmp_path / "weights", seed=0)

    def image_features(_encoder, _variables, pixels):
        for batch in pixels:
            yield np.where(np.arange(len(batch["image"])) == 6, np.inf, 1.0)[:, None, None]

    monkeypatch.setattr(experiment.Encoder, "image_features", image_features)
    message = r"features of train6\.jpg \(picture 6 of train\) are not finite"
    with pytest.raises(DataError, match=message):
        experiment.prepare(configured(preset("flickr8k"), tmp_path), tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [{"data.image_size": 40}, {"precision": "bfloat16"}, {"model.image.features": "grid"}],
)
def test_whatever_changes_the_features_changes_their_key(preset, change):
    config = preset("flickr8k")
    key = frozen_features.key_of_images(config, "data", "weights")
    assert key == frozen_features.key_of_images(config, "data", "weights")
    assert frozen_features.key_of_images(config, "other data", "weights") != key
    assert frozen_features.key_of_images(config, "data", "other weights") != key
    config.update_from_flattened_dict(change)
    assert frozen_features.key_of_images(config, "data", "weights") != key


def write_boxes(path):
    """From no box to three a photo, the whole one among them or not; by name."""
    rng = np.random.default_rng(0)
    lines = {}
    for split, size in SIZES.items():
        for number in range(size):
            corners = np.sort(rng.uniform(0, 1, (1 + number % 3, 2, 2)), axis=1).reshape(-1, 4)
            boxes = np.round(corners, 3).tolist()
            lines[f"{split}{number}.jpg"] = boxes if number else [[0.0, 0.0, 1.0, 1.0]]
    path.write_text(
        "".join(json.dumps({"image": name, "boxes": own}) + "\n" for name, own in lines.items())
    )
    return lines


def test_boxes_have_their_features_made_once(preset, tmp_path):
    """The grid's mean under each, and of the whole; behind a photo's last one there is padding."""
    write_flickr8k(tmp_path / "flickr8k")
    variables = write_weights(tmp_path / "weights", seed=0)
    given = write_boxes(tmp_path / "boxes.jsonl")
    config = configured(preset("flickr8k", "dvsa"), tmp_path)
    config.model.image.features = "boxes"
    config.data.boxes = str(tmp_path / "boxes.jsonl")
    run = experiment.prepare(config, tmp_path / "run")
    split, seen = run.dataset.splits["train"], run.examples["train"].features
    net = jax.jit(partial(MobileNetV2(**SCALE).apply, train=False))
    batch = next(pipeline.image_batches(dataclasses.replace(run.examples["train"], features=None),
                                        batch_size=8))  # fmt: skip
    grid = net(variables, jnp.asarray(batch["image"])).grid
    features, mask = seen.gather(np.arange(8))
    for row, name in enumerate(split.images):
        whole = [0.0, 0.0, 1.0, 1.0]
        boxes = [*(box for box in given[name] if box != whole), whole]
        np.testing.assert_allclose(split.boxes[row], boxes, atol=1e-6)
        assert mask[row].tolist() == [number < len(boxes) for number in range(mask.shape[1])]
        own = jnp.asarray([boxes], jnp.float32)
        expected = box_features(grid[row : row + 1], own, jnp.ones((1, len(boxes)), bool))
        np.testing.assert_allclose(features[row, : len(boxes)], expected[0], atol=1e-4)
        np.testing.assert_array_equal(features[row, len(boxes) :], 0)
        np.testing.assert_allclose(
            seen.gather_boxes(np.array([row]))[0][mask[row]], boxes, atol=1e-6
        )
    # Other boxes are other data: their features are not these, nor is the workdir theirs.
    (tmp_path / "boxes.jsonl").write_text(
        (tmp_path / "boxes.jsonl").read_text().replace("[0.0, 0.0, 1.0, 1.0]", "[0, 0, 0.5, 1]")
    )
    assert experiment.prepare(config, tmp_path / "other").dataset.fingerprint != (
        run.dataset.fingerprint
    )
    with pytest.raises(WorkdirError, match="data"):
        experiment.prepare(config, tmp_path / "run")
    assert len(list((tmp_path / "prepared" / "features").iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.boxes": None}, r"'data\.boxes': flickr8k has no boxes of its pictures"),
        ({"data.boxes": "gone.jsonl"}, r"'data\.boxes': cannot read .*gone\.jsonl"),
        ({"data.flip": True}, "'boxes' would stay where they are"),
        ({"model.image.features": "pyramid"}, "set the latter to 'boxes'"),
    ],
)
def test_boxes_that_do_not_go_with_the_rest_are_refused(preset, tmp_path, changes, message):
    write_flickr8k(tmp_path / "flickr8k")
    write_weights(tmp_path / "weights", seed=0)
    write_boxes(tmp_path / "boxes.jsonl")
    config = configured(preset("flickr8k", "dvsa"), tmp_path)
    config.model.image.features = "boxes"
    config.data.boxes = str(tmp_path / "boxes.jsonl")
    for name, value in changes.items():
        config[name.split(".")[0]].update_from_flattened_dict({name.split(".", 1)[1]: value})
    with pytest.raises(ConfigError, match=message):
        experiment.prepare(config, tmp_path / "run")
