"""A data set of one's own, from its file to the report: unequal captions, labels, boxes."""

import itertools
import json
import logging

import numpy as np
import pytest
from PIL import Image

from vse_jax import experiment, train
from vse_jax.config import ConfigError, default_config

COUNT, BAD = 40, (3, 17)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A JSONL of 40 pictures, two of which are none."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(COUNT):
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(folder / name)
        line = {
            "image": name,
            "captions": [f"a word and {number % 5}"] * (1 + number % 3),
            "label": number % 4,
            "boxes": [[0.0, 0.25, 0.5, 1.0]] * (number % 3),
            "split": "test" if number % 5 == 4 else "val" if number % 5 == 3 else "train",
        }
        lines.append(json.dumps(line))
    (folder / "3.png").write_bytes(b"")
    (folder / "17.png").write_bytes(b"no picture")
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "captions.jsonl"


@pytest.fixture(scope="module")
def run(listed, tmp_path_factory):
    """Its config, workdir and log."""
    config = default_config()
    config.data.dataset = "custom"
    config.data.path = str(listed)
    config.data.data_dir = str(tmp_path_factory.mktemp("prepared"))
    config.data.image_size = 32
    config.data.bad_share = 0.1
    config.model.dimension = 16
    config.model.text.words = 8
    config.train.batch_size = 8
    config.train.steps = 2
    config.evaluate.batch_size = 8
    config.evaluate.queries = 2
    folder = tmp_path_factory.mktemp("workdir")
    told = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: told.append(record.getMessage())
    log = logging.getLogger("vse_jax")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    assert train.train(config, folder)
    log.removeHandler(handler)
    return config, folder, told


def test_every_picture_and_caption_has_its_place(run):
    config, folder, _ = run
    found = experiment.prepare(config, folder)
    train_split = found.dataset.splits["train"]
    kept = [n for n in range(COUNT) if n not in BAD]
    numbers = {name: [n for n in kept if n % 5 in rest] for name, rest in
               (("train", (0, 1, 2)), ("validation", (3,)), ("test", (4,)))}  # fmt: skip
    for name, expected in numbers.items():
        split = found.dataset.splits[name]
        assert list(split.images) == [f"{n}.png" for n in expected]
        assert len(split.captions) == sum(1 + n % 3 for n in expected)
    batch = next(train.Loop._batches(_Start(found)))
    for row, label, boxes in zip(batch["image_id"], batch["label"], batch["boxes"], strict=True):
        number = int(train_split.images[row].removesuffix(".png"))
        assert label == number % 4
        assert np.count_nonzero(np.any(boxes != 0, axis=1)) == number % 3


def test_more_codes_than_pictures_are_refused_before_the_training(run, tmp_path):
    config = run[0].copy_and_resolve_references()
    config.model.similarity = "negative_euclidean"
    config.objective.quantizer.weight, config.objective.quantizer.parts = 1.0, 4
    config.objective.quantizer.codes = 24
    with pytest.raises(
        ConfigError, match=r"quantizer\.codes' is 24, more than the 23 training pict"
    ):
        experiment.prepare(config, tmp_path / "w")


class _Start:
    """As much of a loop as its batches need."""

    def __init__(self, found):
        self.experiment, self.start, self.end = found, 0, 1


def test_what_is_no_picture_is_counted_and_named(run):
    _, folder, told = run
    left_out = [line for line in told if ": left out, " in line]
    assert any("3.png" in line for line in left_out), told
    assert any("17.png" in line for line in left_out), told
    report = json.loads((folder / "report.json").read_text())
    assert sorted(itertools.chain(*report["skipped"].values())) == ["17.png", "3.png"]
    page = (folder / "report.html").read_text()
    assert "17.png" in page.split("Left out")[1]
    assert 0 <= report["metrics"]["rsum"] <= 600
