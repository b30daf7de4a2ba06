"""scripts/propose_regions.py writes boxes that extract_features reads, and goes on when stopped."""

import importlib
import io
import json
import logging
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from PIL import Image
from small_flickr8k import SCALE, write_weights

from vse_jax import console
from vse_jax.config import ConfigError
from vse_jax.data import box_files, datasets, pipeline, proposals
from vse_jax.data.split import DataError
from vse_jax.models.backbones.mobilenet_v2 import MobileNetV2
from vse_jax.models.regions import box_features

SCRIPTS = Path(__file__).parents[1] / "scripts"
SIDE = 96
SPLITS = ["train"] * 5 + ["val", "test"]
GREY = 3  # The number of a picture in which there is nothing.
NAMES = [f"{number}.png" for number in range(len(SPLITS))]
WHOLE = [0.0, 0.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def work():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("region_proposals")


@pytest.fixture(scope="module")
def command():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("propose_regions")


def patches(seed):
    """A picture of 80 x 112 pixels with patches in it, as an encoded file; or a grey one."""
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    pixels = np.full_like(pixels, 128) if seed == GREY else pixels
    file = io.BytesIO()
    Image.fromarray(pixels).resize((112, 80), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folder of a tiny MobileNetV2 with a classifier, its variables, kernel and bias."""
    folder = tmp_path_factory.mktemp("weights")
    variables = write_weights(folder, seed=0)
    rng = np.random.default_rng(1)
    kernel, bias = (rng.normal(size=size).astype(np.float32) for size in ((128, 6), 6))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors |= {"classifier.weight": np.ascontiguousarray(kernel.T), "classifier.bias": bias}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    labels = {str(number): "background" if number == 0 else "thing" for number in range(6)}
    (folder / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    return folder, variables, kernel, bias


@pytest.fixture(scope="module")
def own(preset, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    lines = []
    for number, (name, split) in enumerate(zip(NAMES, SPLITS, strict=True)):
        (folder / name).write_bytes(patches(number))
        lines.append({"image": name, "captions": ["a dog"], "split": split})
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = preset("custom", f"{folder / 'list.jsonl'},frozen")
    config.data.data_dir = str(folder / "prepared")
    config.data.image_size = SIDE
    config.model.image.weights = str(weights[0])
    return config


def without_classifier(own, tmp_path):
    config = own.copy_and_resolve_references()
    write_weights(tmp_path / "headless", seed=0)
    config.model.image.weights = str(tmp_path / "headless")
    return config


@pytest.fixture(scope="module")
def proposed(work, own, tmp_path_factory):
    """The file of all boxes, of one run."""
    path = tmp_path_factory.mktemp("whole") / "boxes.jsonl"
    work.propose(own, path, regions=6, processes=2, batch_size=4)
    return path


def read(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["image"] for line in lines], [line["boxes"] for line in lines]


def pixels_of(own, number, side=None):
    data = tf.constant((Path(own.data.path).parent / NAMES[number]).read_bytes())
    whole = tf.io.decode_image(data, channels=3, expand_animations=False)
    return (whole if side is None else pipeline.decode(data, side)).numpy()


def test_the_boxes_are_those_of_which_the_classifier_is_surest(own, weights, proposed):
    """By the definition: features under boxes, their logits, softmax, all but the background."""
    _, variables, kernel, bias = weights
    module = MobileNetV2(**SCALE)
    grid = jax.jit(lambda x: module.apply(variables, x, train=False).grid)
    names, boxes = read(proposed)
    assert names == NAMES
    assert [len(own_boxes) for own_boxes in boxes] == [6, 6, 6, 1, 6, 6, 6]
    for number, found in enumerate(boxes):
        candidates = proposals.selective_search(pixels_of(own, number))
        features = box_features(
            grid(pixels_of(own, number, SIDE)[None]),
            jnp.asarray(candidates[None]),
            jnp.ones((1, len(candidates)), bool),
        )[0]
        logits = np.asarray(features) @ kernel + bias
        assert logits.std() > 0.05
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = (exponentials / exponentials.sum(axis=1, keepdims=True))[:, 1:].max(axis=1)
        expected = proposals.top_boxes(candidates, scores, 5)
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=names[number])


def test_extract_features_reads_them(own, proposed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    extract_features = importlib.import_module("extract_features")
    found = box_files.read(proposed, NAMES)
    np.testing.assert_array_equal(found[NAMES[GREY]], [WHOLE])
    extract_features.extract(own, tmp_path / "out", boxes=proposed, batch_size=4)
    assert np.load(tmp_path / "out" / "train_ims.npy").shape == (5, 6, 128)


@pytest.mark.slow
def test_what_was_stopped_goes_on(work, own, proposed, tmp_path, monkeypatch):
    """With the lines that are whole, to the same bytes; nothing that is there is made again."""
    path, partial_path = tmp_path / "new" / "boxes.jsonl", tmp_path / "new" / "boxes.jsonl.partial"
    append, searched = work._append, []

    def stopping(file, name, boxes):
        if name == NAMES[2]:
            raise KeyboardInterrupt
        append(file, name, boxes)

    run = partial(work.propose, own, path, regions=6, processes=1, batch_size=4)
    with monkeypatch.context() as patch:
        patch.setattr(work, "_append", stopping)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not path.exists()
    assert len(partial_path.read_text().splitlines()) == 2
    with open(partial_path, "ab") as file:
        file.write(proposed.read_bytes().splitlines(keepends=True)[2][:50])

    pixels = work._pixels
    monkeypatch.setattr(work, "_pixels", lambda *a: (searched.append(a[1]), pixels(*a))[1])
    run()
    # Of train from the third on, and all of the other splits.
    assert searched == [2, 3, 4, 0, 0]
    assert path.read_bytes() == proposed.read_bytes()
    run()
    assert len(searched) == 5
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "boxes.jsonl", "boxes.made_of.json",
    ]  # fmt: skip


@pytest.mark.parametrize("tail", [b'{"image": "5.png"}\n', b"\0\0\0\n", b"[]\n", b'{"image": "2'])
def test_lines_are_kept_up_to_the_first_that_is_not_the_next_picture_s(work, tmp_path, tail):
    good = b'{"image": "0.png", "boxes": []}\n{"image": "1.png", "boxes": []}\n'
    (tmp_path / "part").write_bytes(good + tail + b'{"image": "3.png"}\n')
    with open(tmp_path / "part", "a+b") as file:
        assert work._kept(file, NAMES) == 2
        file.write(b"more")
    assert (tmp_path / "part").read_bytes() == good + b"more"


def test_other_settings_are_refused(work, own, proposed, tmp_path):
    with pytest.raises(DataError, match=r"boxes\.jsonl has boxes that differ in regions: take ano"):
        work.propose(own, proposed, regions=7, processes=1)
    assert sorted(file.name for file in proposed.parent.iterdir()) == [
        "boxes.jsonl", "boxes.made_of.json",
    ]  # fmt: skip
    config = own.copy_and_resolve_references()
    config.data.image_size = 64
    path = tmp_path / "boxes.jsonl"
    partial_path = tmp_path / "boxes.jsonl.partial"
    partial_path.write_bytes(proposed.read_bytes()[:999])
    record = proposed.with_suffix(".made_of.json").read_text()
    (tmp_path / "boxes.made_of.json").write_text(record)
    with pytest.raises(DataError, match=r"partial has boxes that differ in classifier: take ano"):
        work.propose(config, path, regions=6, processes=1)
    (tmp_path / "boxes.made_of.json").unlink()
    with pytest.raises(DataError, match=r"made_of\.json, which says of what, cannot be read"):
        work.propose(own, path, regions=6, processes=1)
    assert len(partial_path.read_bytes()) == 999


def test_without_a_classifier_the_largest_come_first(work, own, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(work.log, "propagate", True)
    config = without_classifier(own, tmp_path)
    work.propose(config, tmp_path / "boxes.jsonl", regions=4, processes=1)
    told = [record for record in caplog.records if "has no classifier" in record.message]
    assert len(told) == 1
    assert "candidates are ranked as selective search has them" in told[0].message
    _, boxes = read(tmp_path / "boxes.jsonl")
    for number, found in enumerate(boxes):
        candidates = proposals.selective_search(pixels_of(own, number))
        corners = np.round(candidates * [80, 112, 80, 112])
        areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
        kept = proposals.top_boxes(candidates, areas, 3)
        np.testing.assert_allclose(found, kept, atol=1e-6)


def test_a_picture_that_is_gone_or_damaged_is_named(work, own, tmp_path, monkeypatch):
    """After the data set was found to be whole."""
    config, load = without_classifier(own, tmp_path), datasets.load

    def damaged(*arguments):
        data = load(*arguments)
        train, read_pictures = data.splits["train"], data.splits["train"].read
        broken = [patches(0)[:60]]
        object.__setattr__(
            train, "read", lambda wanted: broken if wanted == [1] else read_pictures(wanted)
        )
        return data

    monkeypatch.setattr(work.datasets, "load", damaged)
    with pytest.raises(DataError, match=r"^1\.png cannot be decoded: "):
        work.propose(config, tmp_path / "boxes.jsonl", processes=1)


def test_a_search_that_fails_is_of_a_picture_with_a_name(work):
    failed = work.Future()
    failed.set_exception(DataError("no memory"))
    with pytest.raises(DataError, match=r"^a\.jpg: no memory$"):
        work._result("a.jpg", failed)
    ended = work.Future()
    ended.set_exception(work.BrokenProcessPool())
    with pytest.raises(DataError, match=r"^a\.jpg: a process of the search ended .* --processes;"):
        work._result("a.jpg", ended)


def test_a_second_run_keeps_away_and_a_file_that_cannot_be_is_told(work, tmp_path):
    path = tmp_path / "boxes.jsonl"
    with work._partial(path) as file:
        told = r"another run writes .*boxes\.jsonl\.partial"
        with pytest.raises(DataError, match=told), work._partial(path):
            pass
        assert Path(file.name).exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    nowhere, told = (
        tmp_path / "file" / "boxes.jsonl",
        r"cannot write .*--output must name a file in",
    )
    with pytest.raises(DataError, match=told), work._partial(nowhere):
        pass


def test_what_cannot_be_proposed(work, own, preset, tmp_path, monkeypatch):
    for options in ({"regions": 0}, {"processes": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match="--processes and --batch_size must be above 0"):
            work.propose(own, tmp_path / "boxes.jsonl", **options)
    with pytest.raises(ConfigError, match="has features, and no pictures"):
        work.propose(preset("custom", str(tmp_path)), tmp_path / "boxes.jsonl")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[regions\]'"):
        work.propose(own, tmp_path / "boxes.jsonl")
    assert list(tmp_path.iterdir()) == []


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_command_line(work, command, own, proposed, tmp_path, monkeypatch, capsys):
    flags = [
        f"--config={Path(__file__).parents[1]}/configs/custom.py:{own.data.path},frozen",
        f"--config.data.data_dir={own.data.data_dir}",
        f"--config.data.image_size={SIDE}",
        f"--config.model.image.weights={own.model.image.weights}",
        f"--output={tmp_path / 'boxes.jsonl'}",
        "--regions=6",
        "--processes=1",
    ]
    handlers = logging.getLogger("vse_jax").handlers
    monkeypatch.setattr(console, "set_up_logging", lambda: None)
    for arguments, told in (
        ([*flags, "--batch_size=0"], "^propose_regions: --regions, --processes and --batch_size"),
        (flags[:1], r"propose_regions: needs --config and --output=FILE\.jsonl$"),
        ([*flags, "x"], r"knows no x$"),
        ([*flags, "--regions=x"], "^propose_regions: flag --regions=x"),
    ):
        monkeypatch.setattr(sys, "argv", ["propose_regions", *arguments])
        with pytest.raises(SystemExit, match=told):
            command.main(arguments)
    monkeypatch.setattr(sys, "argv", ["propose_regions", *flags])
    with monkeypatch.context() as patch:
        patch.setattr(work, "propose", interrupted)
        with pytest.raises(SystemExit, match=r"^propose_regions: stopped; the same com"):
            command.main(flags)
    command.main(flags)
    assert (tmp_path / "boxes.jsonl").read_bytes() == proposed.read_bytes()
    assert logging.getLogger("vse_jax").handlers is handlers
    assert capsys.readouterr().out == ""
