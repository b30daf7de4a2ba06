"""Files of boxes, and the regions of a data set that come of them."""

import dataclasses
import json

import numpy as np
import pytest

from vse_jax.data import box_files
from vse_jax.data.split import DataError, Dataset, Split

BOXES = {
    "a.jpg": [[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 1.0, 1.0]],
    "b.jpg": [[0.0, 0.0, 1.0, 1.0]],
    "c.jpg": [[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]],
}
WHOLE = [0.0, 0.0, 1.0, 1.0]


def write(folder, boxes=BOXES):
    path = folder / "boxes.jsonl"
    lines = [json.dumps({"image": name, "boxes": own}) for name, own in boxes.items()]
    path.write_text("\n".join(lines) + "\n\n")
    return path


def dataset(boxes=None):
    def split(*names):
        own = None if boxes is None else [np.asarray(boxes[name], np.float32) for name in names]
        return Split(names, ["x"] * len(names), np.arange(len(names)), None, boxes=own)

    splits = {"train": split("a.jpg", "b.jpg"), "test": split("c.jpg")}
    return Dataset("own", splits, "fingerprint", "all_1")


def test_boxes_are_read_by_name(tmp_path, caplog):
    found = box_files.read(write(tmp_path), ["c.jpg", "a.jpg"])
    assert list(found) == ["c.jpg", "a.jpg"]
    assert {name: own.tolist() for name, own in found.items()} == {
        name: BOXES[name] for name in found
    }
    assert all(own.dtype == np.float32 for own in found.values())
    assert "boxes of other pictures: 1 (b.jpg)" in caplog.text


@pytest.mark.parametrize(
    ("boxes", "told"),
    [
        ([[0.0, 0.0, 1.2, 1.0]], r"boxes\.jsonl:3: box \[0\.0, 0\.0, 1\.2, 1\.0\] is not"),
        ([[0.5, 0.0, 0.5, 1.0]], r"boxes\.jsonl:3: box"),
        ([[0, 0, 1, int("1" * 400)]], r"boxes\.jsonl:3: box"),
        ([[0, 0, float("nan"), 1]], r"boxes\.jsonl:3: box"),
        ([], r"boxes\.jsonl:3: c\.jpg has no boxes"),
        (None, r"boxes\.jsonl:3: c\.jpg has no boxes"),
        ("x", r"boxes\.jsonl:3: boxes is 'x'"),
    ],
)
def test_boxes_that_are_none(tmp_path, boxes, told):
    with pytest.raises(DataError, match=told):
        box_files.read(write(tmp_path, BOXES | {"c.jpg": boxes}), ["a.jpg"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", 'expected {"image"'),
        ('{"boxes": []}', 'expected {"image"'),
        ('{"image": "a.jpg", "boxes": [[0, 0, 1, 1]]}', r"a\.jpg a second time"),
    ],
)
def test_lines_that_are_none(tmp_path, line, told):
    path = write(tmp_path)
    path.write_text(path.read_text() + line)
    with pytest.raises(DataError, match=rf"boxes\.jsonl:5: {told}"):
        box_files.read(path, ["a.jpg"])


def test_pictures_without_boxes_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no boxes of 1 \(d\.jpg\) pictures of the 2"):
        box_files.read(write(tmp_path), ["a.jpg", "d.jpg"])


def test_the_whole_picture_is_the_last_region_and_there_once(tmp_path):
    found = box_files.with_regions(dataset(), write(tmp_path))
    train, test = found.splits["train"].boxes, found.splits["test"].boxes
    assert [own.tolist() for own in train] == [[*BOXES["a.jpg"], WHOLE], [WHOLE]]
    assert test[0].tolist() == [[0.5, 0.5, 1.0, 1.0], WHOLE]


def test_the_data_sets_own_boxes_are_its_regions_without_a_file():
    found = box_files.with_regions(dataset(BOXES), None)
    assert found.splits["train"].boxes[0].tolist() == [*BOXES["a.jpg"], WHOLE]
    with pytest.raises(DataError, match=r"own has no boxes .* scripts/propose_regions\.py"):
        box_files.with_regions(dataset(), None)


def test_other_boxes_are_other_data(tmp_path):
    own = dataset(BOXES)
    one = box_files.with_regions(own, None).fingerprint
    assert one == box_files.with_regions(own, write(tmp_path)).fingerprint
    other = BOXES | {"c.jpg": [[0.5, 0.5, 1.0, 0.75]]}
    assert one != box_files.with_regions(own, write(tmp_path, other)).fingerprint
    elsewhere = dataclasses.replace(own, fingerprint="x")
    assert one != box_files.with_regions(elsewhere, None).fingerprint
