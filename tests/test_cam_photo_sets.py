"""`configs/cub.py:cam` and `configs/flowers.py:cam`, from files as released to the report.

Both tasks on CUB, the classifier alone on Flowers.
"""

import json
import logging

import numpy as np
import pytest
from data import test_cub, test_flowers
from small_flickr8k import write_weights

from vse_jax import checkpoint, train
from vse_jax.evaluators import captioning


@pytest.fixture
def trained(preset, tmp_path, monkeypatch, caplog):
    """(file of configs/, choice, data) -> metrics of a training of two steps, what it logged."""
    monkeypatch.setattr(captioning.shutil, "which", lambda _: None)  # Java would take seconds.
    caplog.set_level(logging.INFO, "vse_jax")
    write_weights(tmp_path / "weights", seed=0)

    def run(name, choice, root):
        config = preset(name, choice)
        # By this one maps point right and wrong, and there are pictures without one.
        config.seed = 3
        config.data.manual_dir, config.data.data_dir = str(root), str(tmp_path / "prepared")
        config.data.image_size = 64
        config.model.image.weights = str(tmp_path / "weights")
        config.model.dimension = config.model.hidden = 8
        config.model.text.words = 4
        config.train.steps, config.train.batch_size, config.train.ema = 2, 4, 0.0
        config.evaluate.batch_size, config.evaluate.beams, config.evaluate.queries = 8, 1, 0
        config.data.max_tokens = 8
        assert train.train(config, tmp_path / "run")
        return json.loads((tmp_path / "run" / "report.json").read_text())["metrics"], caplog.text

    return run


def kept(folder):
    """Of the run: f V of each cell of the test pictures, the head's bias, the classifier."""
    [cells] = (folder / "prepared" / "features").glob("*/test.npy")
    params = checkpoint.read_newest(folder / "run" / "checkpoints" / "best")["params"]
    head = params["image"]["head"]
    local = np.load(cells).astype(float) @ head["project"]["kernel"]
    return local, head["bias"], params["classifier"]


def test_birds_and_where_their_maps_point(trained, tmp_path):
    root = tmp_path / "birds"
    test_cub.write(root / "CUB_200_2011", root / "text_c10")
    splits = test_cub.expected_splits()
    silent = splits["train"][0]
    (root / "text_c10" / f"{silent}.txt").unlink()
    metrics, log = trained("cub", "cam", root)
    assert f"cub: photo without captions, for their class only: 1 ({silent}.jpg" in log
    assert "where the thing is is known of 6 of 6 pictures" in log

    local, _, classifier = kept(tmp_path)
    numbers = {stem: number for number, (stem, _) in enumerate(test_cub.PHOTOS, 1)}
    right = []
    for stem, own in zip(splits["test"], local, strict=True):
        shown = own @ classifier["weights"][:, int(stem[:3]) - 1]
        x0, y0, width, height = test_cub.box_of(numbers[stem])
        # Pixels of 20 x 10, in cells of a quarter of the picture.
        y, x = divmod(int(shown.argmax()), 2)
        x, y = 5 + 10 * x, 2.5 + 5 * y
        right.append(shown.max() > 0 and x0 <= x <= x0 + width and y0 <= y <= y0 + height)
    assert sum(right) == 2
    assert metrics["maps/class_pointing"] == pytest.approx(100 * 2 / 6)
    assert {"classify/accuracy", "caption/perplexity"} <= metrics.keys()


def test_flowers_which_have_no_boxes(trained, tmp_path):
    root = tmp_path / "flowers"
    test_flowers.write(root)
    (root / "text_c10" / "class_00102" / "image_00008.txt").unlink()
    metrics, log = trained("flowers", "cam,objective=classifier", root)
    assert "flowers: photo without captions, for their class only: 1 (image_00008" in log
    assert "flowers: classes without a training picture: 98 (" in log
    local, bias, classifier = kept(tmp_path)
    logits = (local.mean(axis=1) + bias) @ classifier["weights"] + classifier["bias"]
    labels = [test_flowers.LABELS[number - 1] - 1 for number in test_flowers.SPLITS["test"]]
    right = logits.argmax(axis=1) == labels
    assert metrics["classify/accuracy"] == pytest.approx(100 * right.mean())
    assert not [name for name in metrics if name.startswith(("caption/", "maps/"))]
