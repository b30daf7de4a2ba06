"""scripts/extract_features.py writes what SCAN's code and ours read, and goes on when stopped."""

import errno
import importlib
import json
import logging
import os
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from small_flickr8k import SCALE, photo, write_flickr8k, write_weights

from vse_jax import console
from vse_jax.config import ConfigError
from vse_jax.data import pipeline, scan_files
from vse_jax.data.split import DataError
from vse_jax.models.backbones import catalogue, clip, weights
from vse_jax.models.backbones.feature_map import FeatureMap
from vse_jax.models.backbones.mobilenet_v2 import MobileNetV2
from vse_jax.models.regions import box_features, pyramid

SCRIPTS = Path(__file__).parents[1] / "scripts"
BOXES = [[[0.0, 0.0, 1.0, 1.0], [0.25, 0.0, 0.75, 0.5]], [[0.5, 0.5, 1.0, 1.0]]]
# Three by three cells of 32 pixels.
SIDE = 96
CAPTIONS = [2, 1, 5, 10, 1, 3, 5, 5, 1, 2]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("extract_features")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """The folder of a tiny MobileNetV2, and its grid [1, h, w, c] of an encoded picture."""
    folder = tmp_path_factory.mktemp("weights")
    variables = write_weights(folder, seed=0)
    module = MobileNetV2(**SCALE)
    apply = jax.jit(partial(module.apply, variables, train=False))

    def grid(path):
        pixels = pipeline.decode(tf.constant(path.read_bytes()), SIDE).numpy()
        found = apply(jnp.asarray(pixels[None]))
        return found.grid if isinstance(found, FeatureMap) else found

    return folder, grid


def configured(config, net, folder):
    config.data.data_dir = str(folder / "prepared")
    config.data.image_size = SIDE
    config.model.image.weights = str(net[0])
    return config


@pytest.fixture(scope="module")
def flickr8k(preset, net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flickr8k")
    write_flickr8k(folder)
    config = configured(preset("flickr8k"), net, folder)
    config.data.manual_dir = str(folder)
    return config


@pytest.fixture(scope="module")
def own(preset, net, tmp_path_factory):
    """Ten pictures of one's own with unequal numbers of captions."""
    folder = tmp_path_factory.mktemp("own")
    lines = []
    for number, count in enumerate(CAPTIONS):
        (folder / f"{number}.jpg").write_bytes(photo(number))
        split = "test" if number == 9 else "val" if number == 8 else "train"
        captions = [f"a\tdog  and\n{j}" for j in range(count)]
        lines.append({"image": f"{number}.jpg", "captions": captions, "split": split})
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return configured(preset("custom", str(folder / "list.jsonl")), net, folder)


def read(folder, tmp_path):
    return scan_files.load(folder, tmp_path / "prepared")


def write_boxes(tmp_path, boxes=lambda number: BOXES[number % 2]):
    lines = [{"image": f"{n}.jpg", "boxes": boxes(n)} for n in range(len(CAPTIONS))]
    path = tmp_path / "boxes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_five_captions_a_picture_are_a_row_a_picture(script, flickr8k, net, tmp_path):
    script.extract(flickr8k, tmp_path / "out", cells=2, batch_size=4)
    for stem, count in (("train", 8), ("dev", 2), ("test", 2)):
        rows = np.load(tmp_path / "out" / f"{stem}_ims.npy")
        assert (rows.shape[:2], rows.dtype) == ((count, 5), np.float32)
        names = (tmp_path / "out" / f"{stem}_ids.txt").read_text().split()
        assert names == [f"{stem}{n}.jpg" for n in range(count)]
        captions = (tmp_path / "out" / f"{stem}_caps.txt").read_text().splitlines()
        assert captions[5] == "A dog and a 1 in the snow ."
        assert len(captions) == 5 * count
        for row, name in zip(rows, names, strict=True):
            photos = Path(flickr8k.data.manual_dir, "Flicker8k_Dataset")
            expected = pyramid(net[1](photos / name), 2)[0]
            np.testing.assert_allclose(row, expected, atol=1e-4)
    assert not list((tmp_path / "out").glob("*.partial"))
    data = read(tmp_path / "out", tmp_path)
    assert [len(split.images) for split in data.splits.values()] == [8, 2, 2]
    boxes = data.splits["test"].features.gather_boxes(np.array([1]))[0]
    np.testing.assert_allclose(boxes[1], [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    np.testing.assert_array_equal(boxes[4], [0, 0, 1, 1])


@pytest.mark.parametrize("choice", ["frozen", "vse_infinity,text=bert"])
def test_what_reads_sentences_is_not_asked(script, flickr8k, preset, net, tmp_path, choice):
    """A pretrained text tower is no part of it: its weights need not be there."""
    config = configured(preset("flickr8k", choice), net, tmp_path)
    config.data.manual_dir, config.data.data_dir = flickr8k.data.manual_dir, flickr8k.data.data_dir
    config.model.text.weights = str(tmp_path / "nowhere")
    script.extract(config, tmp_path / "out", cells=1, batch_size=8)
    script.extract(flickr8k, tmp_path / "by_gru", cells=1, batch_size=8)
    for path in sorted((tmp_path / "by_gru").iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    config.data.tokenizer = "vse"
    with pytest.raises(ConfigError, match=r"'data\.tokenizer' is 'vse'"):
        script.extract(config, tmp_path / "other", cells=1)


def write_clip(folder):
    """The image half of a tiny CLIP, and its grid of a picture's pixels [1, h, w, 3]."""
    shape = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 12, "projection_dim": 4, "image_size": SIDE, "patch_size": 32,
    }  # fmt: skip
    described = {"model_type": "clip_vision_model"} | shape
    module = catalogue.clip.make(described, jnp.float32, "data")
    picture = jnp.zeros((1, SIDE, SIDE, 3), jnp.uint8)
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), picture)
    folder.mkdir()
    tensors = weights.revert(variables, clip.IMAGE_RULES)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(described))
    return lambda pixels: module.apply(variables, jnp.asarray(pixels), train=False).grid


def test_the_image_tower_of_clip(script, flickr8k, preset, net, tmp_path):
    grid = write_clip(tmp_path / "clip")
    config = configured(preset("flickr8k", "clip"), net, tmp_path)
    config.data.manual_dir, config.data.data_dir = flickr8k.data.manual_dir, flickr8k.data.data_dir
    config.model.image.weights = str(tmp_path / "clip")
    config.model.text.weights = str(tmp_path / "nowhere")
    script.extract(config, tmp_path / "out", cells=3, batch_size=8)
    rows = np.load(tmp_path / "out" / "dev_ims.npy")
    assert rows.shape == (2, 10, 8)
    for number, row in enumerate(rows):
        photo = Path(config.data.manual_dir, "Flicker8k_Dataset", f"dev{number}.jpg")
        pixels = pipeline.decode(tf.constant(photo.read_bytes()), SIDE).numpy()
        np.testing.assert_allclose(row, pyramid(grid(pixels[None]), 3)[0], atol=1e-4)
        assert row.std() > 0.1


def test_limits_of_a_run_limit_no_extraction(script, flickr8k, tmp_path):
    script.extract(flickr8k, tmp_path / "whole", cells=1, batch_size=8)
    config = flickr8k.copy_and_resolve_references()
    config.data.train_limit, config.data.validation_limit = 3, 1
    script.extract(config, tmp_path / "out", cells=1, batch_size=8)
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert config.data.validation_limit == 1


def test_other_numbers_of_captions_are_a_row_a_caption(script, own, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(script.log, "propagate", True)
    caplog.set_level(logging.INFO)
    boxes = write_boxes(tmp_path)
    script.extract(own, tmp_path / "out", boxes=boxes, batch_size=4)
    assert "train: not every picture has 5 captions: its 32 rows are captions" in caplog.text
    assert "pictures have 1 to 2 boxes: rows are filled up with zeros" in caplog.text
    assert len(np.load(tmp_path / "out" / "train_ims.npy")) == 32
    train = read(tmp_path / "out", tmp_path).splits["train"]
    assert list(train.images) == [f"{n}.jpg" for n in range(8)]
    assert np.bincount(train.caption_image).tolist() == CAPTIONS[:8]
    assert train.captions[0] == "a dog and 0"
    assert train.features.count.tolist() == [2, 1] * 4


def test_a_folder_without_room_names_the_file_and_the_flag(script, own, tmp_path, monkeypatch):
    """And nothing of what could not be written is left."""
    written = []

    def full(_):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)

    # Of the folder's own record there is room.
    monkeypatch.setattr(os, "fsync", full)
    told = r"out/train_boxes\.npy: No space left on device; --output must name a folder with room"
    with pytest.raises(DataError, match=told):
        script.extract(own, tmp_path / "out", cells=1)
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == [".lock", "extract.json"]


def test_boxes_are_the_means_under_them(script, own, net, tmp_path):
    boxes = write_boxes(tmp_path)
    script.extract(own, tmp_path / "out", boxes=boxes, batch_size=4)
    features, mask = read(tmp_path / "out", tmp_path).splits["train"].features.gather(np.arange(8))
    for number in range(8):
        corners = jnp.asarray([BOXES[number % 2]], jnp.float32)
        grid = net[1](Path(own.data.path).parent / f"{number}.jpg")
        expected = box_features(grid, corners, jnp.ones(corners.shape[:2], bool))[0]
        assert mask[number].sum() == len(expected)
        np.testing.assert_allclose(features[number, : len(expected)], expected, atol=1e-4)


def test_what_was_stopped_goes_on(script, own, tmp_path, monkeypatch):
    script.extract(own, tmp_path / "whole", cells=2, batch_size=4)
    check, seen = script.feature_files.check_finite, []

    def stopping(batch, where, first=0):
        seen.append(len(batch))
        if len(seen) == 2:
            raise KeyboardInterrupt
        check(batch, where, first)

    monkeypatch.setattr(script.feature_files, "check_finite", stopping)
    with pytest.raises(KeyboardInterrupt):
        script.extract(own, tmp_path / "out", cells=2, batch_size=4)
    assert not (tmp_path / "out" / "train_ims.npy").exists()
    # A kill may leave half of a picture's rows, or half a row.
    with open(tmp_path / "out" / "train_ims.npy.partial", "ab") as file:
        file.write(b"\1" * 700)
    script.extract(own, tmp_path / "out", cells=2, batch_size=4)
    # Four pictures were there already, the rest are the other four of train, dev and test.
    assert seen == [4, 4, 4, 1, 1]
    for path in sorted((tmp_path / "whole").glob("*_*")):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    script.extract(own, tmp_path / "out", cells=2, batch_size=4)
    assert len(seen) == 5


def test_another_extraction_needs_another_folder(script, own, tmp_path):
    script.extract(own, tmp_path / "out", cells=2)
    with pytest.raises(DataError, match="out has features that differ in grid: take another"):
        script.extract(own, tmp_path / "out", cells=1)


def test_pictures_without_boxes_are_named(script, own, tmp_path):
    path = write_boxes(tmp_path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
    with pytest.raises(DataError, match=r"has no boxes of 2 \(8\.jpg, 9\.jpg\) pictures of the 10"):
        script.extract(own, tmp_path / "out", boxes=path)


def test_what_cannot_be_extracted(script, own, preset, tmp_path):
    for options in ({}, {"cells": 2, "boxes": tmp_path}):
        with pytest.raises(ConfigError, match="either --grid=N or --boxes=FILE"):
            script.extract(own, tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="must be above 0"):
        script.extract(own, tmp_path / "out", cells=0)
    with pytest.raises(ConfigError, match=r"'small_resnet' .*None: features are those of a pretra"):
        script.extract(preset("shapes"), tmp_path / "out", cells=2)
    with pytest.raises(ConfigError, match="has features, and no pictures"):
        script.extract(preset("custom", str(tmp_path)), tmp_path / "out", cells=2)


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_command_line(script, own, tmp_path, monkeypatch, capsys):
    flags = [
        f"--config={Path(__file__).parents[1]}/configs/custom.py:{own.data.path}",
        f"--config.data.data_dir={own.data.data_dir}",
        f"--config.data.image_size={SIDE}",
        f"--config.model.image.weights={own.model.image.weights}",
        f"--output={tmp_path / 'out'}",
    ]
    handlers = logging.getLogger("vse_jax").handlers
    monkeypatch.setattr(console, "set_up_logging", lambda: None)
    for arguments, told in (
        ([*flags, "--grid=0"], "^extract_features: --grid and --batch_size must be above 0$"),
        (flags[:1], r"extract_features: needs --config and --output$"),
        ([*flags, "x"], r"knows no x$"),
        ([*flags, "--config.data.nope=1"], "^extract_features: unknown config field 'data.nope'"),
        ([*flags, "--grid=x"], "^extract_features: flag --grid=x"),
    ):
        monkeypatch.setattr(sys, "argv", ["extract_features", *arguments])
        with pytest.raises(SystemExit, match=told):
            script.main(arguments)
    monkeypatch.setattr(sys, "argv", ["extract_features", *flags, "--grid=1"])
    with monkeypatch.context() as patch:
        patch.setattr(script, "extract", interrupted)
        with pytest.raises(SystemExit, match="stopped; the same command goes on"):
            script.main([*flags, "--grid=1"])
    script.main([*flags, "--grid=1"])
    assert np.load(tmp_path / "out" / "test_ims.npy").shape[:2] == (2, 2)
    assert logging.getLogger("vse_jax").handlers is handlers
    assert capsys.readouterr().out == ""
