"""Classes of pictures from a file beside the data set."""

import json
import logging

import numpy as np
import pytest

from vse_jax.config import ConfigError
from vse_jax.data import datasets, labels
from vse_jax.data.split import DataError, Dataset, Split

LINES = [
    {"image": "b.jpg", "label": "dog"},
    {"image": "d.jpg", "label": "cat", "score": 0.5},
    {"image": "a.jpg", "label": "zebra"},
]


def dataset():
    def split(*names):
        return Split(list(names), ["x"] * len(names), np.arange(len(names)), None)

    return Dataset("own", {"train": split("a.jpg", "b.jpg", "c.jpg"), "test": split("d.jpg")},
                   "print", "p")  # fmt: skip


def written(folder, lines=LINES):
    path = folder / "labels.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def test_labels_are_numbers_of_the_sorted_names(tmp_path, caplog):
    caplog.set_level(logging.INFO, "vse_jax")
    found = labels.with_labels(dataset(), written(tmp_path))
    assert found.classes == ("cat", "dog", "zebra")
    assert found.splits["train"].labels.tolist() == [2, 1, -1]
    assert found.splits["test"].labels.tolist() == [0]
    assert found.splits["test"].labels.dtype == np.int32
    assert "labels.jsonl: 3 classes; without a label 1 (c.jpg) of 4 pictures" in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_labels_of_other_pictures_are_told_and_are_no_classes(tmp_path, caplog):
    lines = [*LINES, {"image": "z.jpg", "label": "yak"}, {"image": "c.jpg", "label": "dog"}]
    caplog.set_level(logging.INFO, "vse_jax")
    found = labels.with_labels(dataset(), written(tmp_path, lines))
    assert found.classes == ("cat", "dog", "zebra")
    assert "labels of other pictures: 1 (z.jpg)" in caplog.text
    assert "without a label none of 4 pictures" in caplog.text


def test_the_fingerprint_tells_the_labels(tmp_path):
    def digest(lines):
        return labels.with_labels(dataset(), written(tmp_path, lines)).fingerprint

    assert digest(LINES) == digest(LINES[::-1])
    others = [LINES[:2], [{**LINES[0], "label": "zebra"}, *LINES[1:]]]
    # The same numbers, another name.
    others.append([{**LINES[0], "label": "eel"}, *LINES[1:]])
    assert len({"print", digest(LINES), *map(digest, others)}) == 5


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"image": "a.jpg"}, r":2: expected \{"),
        (["a.jpg"], r":2: expected \{"),
        ({"image": "", "label": "dog"}, ":2: the picture's name is ''"),
        ({"image": 3, "label": "dog"}, ":2: the picture's name is 3"),
        ({"image": "a.jpg", "label": 3}, r":2: the label of a\.jpg is 3; expected the name of a"),
        ({"image": "a.jpg", "label": None}, r"is None; expected .*has no line"),
        ({"image": "a.jpg", "label": " "}, r":2: the label of a\.jpg is ' '"),
        ({"image": "a.jpg", "label": "\ud800"}, ":2: half a surrogate"),
        ({"image": "b.jpg", "label": "dog"}, r":2: b\.jpg a second time, first .*jsonl:1$"),
    ],
)
def test_malformed_lines_are_told_with_their_number(tmp_path, line, told):
    with pytest.raises(DataError, match=rf"labels\.jsonl{told}|labels\.jsonl.*{told}"):
        labels.with_labels(dataset(), written(tmp_path, [LINES[0], line]))


def test_a_split_without_labels_and_a_missing_file_are_told(tmp_path):
    told = r"no label of the 1 pictures of split 'test'; its first is of b\.jpg"
    with pytest.raises(DataError, match=told):
        labels.with_labels(dataset(), written(tmp_path, [LINES[0], LINES[2]]))
    with pytest.raises(DataError, match="split 'train'; its first is of no picture"):
        labels.with_labels(dataset(), written(tmp_path, []))
    with pytest.raises(DataError, match=r"none\.jsonl"):
        labels.with_labels(dataset(), tmp_path / "none.jsonl")


def test_a_config_sets_them_in_place_of_the_datas_own(tiny_shapes, tmp_path):
    config = tiny_shapes.copy_and_resolve_references()
    whole = datasets.load(config.data, 0)
    config.data.labels = str(written(tmp_path, [
        {"image": image, "label": f"odd {number % 2}"}
        for split in whole.splits.values() for number, image in enumerate(split.images)
    ]))  # fmt: skip
    config.data.train_limit = 3
    found = datasets.load(config.data, 0)
    assert found.classes == ("odd 0", "odd 1")
    assert found.splits["train"].labels.tolist() == [0, 1, 0]
    (tmp_path / "labels.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"'data\.labels': .*labels\.jsonl:1: not JSON"):
        datasets.load(config.data, 0)
