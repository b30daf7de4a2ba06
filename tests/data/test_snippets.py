"""Regions with what is said of them, as a data set."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from vse_jax.config import ConfigError
from vse_jax.config_checks import validate
from vse_jax.data import datasets, snippets
from vse_jax.data.split import DataError, Dataset, Split

WHOLE = [0.0, 0.0, 1.0, 1.0]
LEFT = [0.0, 0.0, 1.0, 0.5]
CORNER = [0.75, 0.8, 1.0, 1.0]
LINES = [
    {"image": "a.png", "split": "train", "box": LEFT, "snippet": "a dog", "score": 3.0},
    {"image": "b.png", "box": WHOLE, "snippet": "on grass"},
    {"image": "a.png", "box": CORNER, "snippet": "a ball"},
    {"image": "a.png", "box": LEFT, "snippet": "brown"},
    {"image": "c.png", "box": LEFT, "snippet": "a cat"},
]


def pixels(name):
    return np.random.default_rng(ord(name[0])).integers(0, 256, (8, 10, 3), np.uint8)


def png(name):
    file = io.BytesIO()
    Image.fromarray(pixels(name)).save(file, "PNG")
    return file.getvalue()


def dataset(asked=None):
    def split(*names):
        def read(numbers):
            if asked is not None:
                asked.append(list(numbers))
            return [png(names[number]) for number in numbers]

        return Split(names, ["x"] * len(names), np.arange(len(names)), read)

    return Dataset("own", {"train": split("a.png", "b.png"), "test": split("c.png")}, "print", "p")


def written(folder, lines=LINES):
    path = folder / "snippets.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def test_each_box_is_a_picture_and_its_snippets_are_the_captions(tmp_path):
    found = snippets.regions(dataset(), written(tmp_path))
    train, test = found.splits["train"], found.splits["test"]
    assert train.images == ["a.png#0", "a.png#1", "b.png#0"]
    assert [train.captions_of(number) for number in range(3)] == [
        ["a dog", "brown"],
        ["a ball"],
        ["on grass"],
    ]
    assert test.images == ["c.png#0"]
    assert list(test.captions) == ["a cat"]
    assert train.boxes is None
    assert found.protocol == "all_1"


def test_regions_are_the_pixels_under_their_boxes_each_picture_decoded_once(tmp_path, monkeypatch):
    asked, opened = [], []
    train = snippets.regions(dataset(asked), written(tmp_path)).splits["train"]
    real = Image.open
    monkeypatch.setattr(snippets.Image, "open", lambda file: opened.append(1) or real(file))
    found = train.read(np.array([1, 2, 0, 1]))
    assert [sorted(numbers) for numbers in asked] == [[0, 1]]
    assert len(opened) == 1
    monkeypatch.undo()
    shown = [np.asarray(Image.open(io.BytesIO(data))) for data in found]
    expected = [pixels("a")[6:, 8:], pixels("b"), pixels("a")[:, :5], pixels("a")[6:, 8:]]
    for one, other in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[1] == png("b")  # The whole is not encoded again.


def test_sixteen_bits_are_read_as_the_pipeline_reads_them(tmp_path):
    grey = np.random.default_rng(0).integers(0, 65536, (8, 10), np.uint16)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    whole = Split(["a.png"], ["x"], np.arange(1), lambda _: [file.getvalue()])
    path = written(tmp_path, LINES[:1])
    regions = snippets.regions(Dataset("own", {"train": whole}, "print", "p"), path)
    decoded = tf.io.decode_image(file.getvalue(), channels=3).numpy()
    with Image.open(io.BytesIO(regions.splits["train"].read([0])[0])) as crop:
        np.testing.assert_allclose(np.asarray(crop), decoded[:, :5], atol=1)


def test_pictures_without_snippets_are_left_out_and_told(tmp_path, caplog):
    lines = [*LINES[:1], LINES[4], {"image": "z.png", "box": LEFT, "snippet": "a zebra"}]
    found = snippets.regions(dataset(), written(tmp_path, lines))
    assert found.splits["train"].images == ["a.png#0"]
    assert found.skipped == {"picture without a snippet": ("b.png",)}
    assert "snippets of other pictures: 1 (z.png)" in caplog.text


def test_what_is_cached_of_regions_goes_by_their_boxes_and_snippets(tmp_path):
    def digest(lines):
        return snippets.regions(dataset(), written(tmp_path, lines)).fingerprint

    assert digest(LINES) == digest([{**line, "score": 1.0} for line in LINES])
    others = [LINES[::-1], [{**LINES[0], "box": WHOLE}, *LINES[1:]]]
    others.append([{**LINES[0], "snippet": "dog"}, *LINES[1:]])
    assert len({digest(LINES), *map(digest, others)}) == 4


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"image": "a.png", "box": LEFT}, r"snippets\.jsonl:2: expected \{"),
        (["a.png"], r"snippets\.jsonl:2: expected \{"),
        ({"image": "a.png", "box": LEFT, "snippet": " "}, r":2: nothing is said of the box"),
        ({"image": "a.png", "box": LEFT, "snippet": 3}, r":2: caption 3 is not text"),
        ({"image": "a.png", "box": LEFT, "snippet": "\ud800"}, r":2: half a surrogate"),
        ({"image": 3, "box": LEFT, "snippet": "x"}, r":2: caption 3 is not text"),
        ({"image": "a.png", "box": None, "snippet": "x"}, r":2: box None is not \[y0"),
        ({"image": "a.png", "box": [0.5, 0, 0.5, 1], "snippet": "x"}, r":2: box .* is not \[y0"),
        ({"image": "a.png", "box": [0, 0, 1, 1.5], "snippet": "x"}, r":2: box .* is not \[y0"),
    ],
)
def test_malformed_lines_are_told_with_their_number(tmp_path, line, told):
    with pytest.raises(DataError, match=told):
        snippets.regions(dataset(), written(tmp_path, [LINES[0], line]))


def test_a_split_without_snippets_and_a_missing_file_are_told(tmp_path):
    told = r"no snippet of the 1 pictures of split 'test'; its first is of a\.png"
    with pytest.raises(DataError, match=told):
        snippets.regions(dataset(), written(tmp_path, LINES[:4]))
    with pytest.raises(DataError, match=r"none\.jsonl"):
        snippets.regions(dataset(), tmp_path / "none.jsonl")


def test_of_shapes_the_true_boxes_are_what_is_measured(tiny_shapes, tmp_path):
    config = tiny_shapes.copy_and_resolve_references()
    whole = datasets.load(config.data, 0)
    lines = [
        {"image": image, "box": LEFT, "snippet": "left"}
        for split in whole.splits.values()
        for image in split.images[:2]
    ]
    config.data.snippets = str(written(tmp_path, lines))
    found = datasets.load(config.data, 0)
    assert set(found.splits["train"].captions) == {"left"}
    test, scenes = found.splits["test"], whole.splits["test"].scenes
    things = [thing for scene in scenes for thing in scene["objects"]]
    assert list(test.captions) == [thing["snippet"] for thing in things]
    assert len(found.skipped["picture without a snippet"]) == 62
    with Image.open(io.BytesIO(test.read([0])[0])) as crop:
        y0, x0, y1, x1 = things[0]["box"]
        with Image.open(io.BytesIO(whole.splits["test"].read([0])[0])) as picture:
            width, height = picture.size
        assert abs(crop.width - (x1 - x0) * width) <= 1
        assert abs(crop.height - (y1 - y0) * height) <= 1
    config.data.train_limit = 1
    assert len(datasets.load(config.data, 0).splits["train"].images) == 1
    (tmp_path / "snippets.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"'data\.snippets': .*snippets\.jsonl:1: not JSON"):
        datasets.load(config.data, 0)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model.image.features": "boxes"}, "which has no boxes; set 'model.image.features'"),
        ({"evaluate.expert": "x"}, "'evaluate.expert' is of whole pictures"),
        ({"data.labels": "x"}, "'data.labels' is of whole pictures"),
        (
            {"data.dataset": "precomputed", "model.image.backbone": "none"},
            "the data set 'precomputed' has only features: unset it",
        ),
    ],
)
def test_fields_that_no_regions_can_have_are_refused(tiny_shapes, changed, told):
    config = tiny_shapes.copy_and_resolve_references()
    config.data.snippets = "snippets.jsonl"
    config.update_from_flattened_dict(changed)
    with pytest.raises(ConfigError, match=f"'data.snippets' is 'snippets.jsonl'.*{told}"):
        validate(config)
