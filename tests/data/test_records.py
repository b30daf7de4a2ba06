import io
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module
from PIL import Image

from vse_jax.data import records
from vse_jax.data.split import DataError


def picture(value):
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


def label_of(i):
    """Picture 7 has no class."""
    return -1 if i == 7 else i % 2


class Squares(tfds.core.GeneratorBasedBuilder):
    """Picture i has i % 3 captions and boxes; `first` shifts the colours."""

    VERSION = tfds.core.Version("1.0.0")
    ordered = True
    failure: Exception | None = None

    def __init__(self, data_dir, first=0, boxes=True):
        self.first, self.with_boxes = first, boxes
        super().__init__(data_dir=data_dir)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=records.features(labels=["a", "b"], boxes=self.with_boxes),
            disable_shuffling=self.ordered,
        )

    def _split_generators(self, dl_manager):  # noqa: ARG002
        return {"train": self._generate_examples(30), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            example = {
                "image": picture(self.first + i),
                "name": f"{i}.jpg",
                "captions": [f"Caption {k} of {i}, äöü." for k in range(i % 3)],
                "label": label_of(i),
            }
            if self.with_boxes:
                example["boxes"] = np.full((i % 3, 4), i / 100, np.float32)
            if self.failure and i == 1:
                raise self.failure
            yield i, example


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    builder = Squares(tmp_path_factory.mktemp("squares"))
    records.prepare(builder)
    return builder


def test_a_split_is_in_the_order_in_which_it_was_made(builder):
    split = records.read_split(builder, "train")
    assert split.images == [f"{i}.jpg" for i in range(30)]
    assert split.labels.tolist() == [label_of(i) for i in range(30)]
    assert split.labels.dtype == split.caption_image.dtype == np.int32
    assert split.caption_image.tolist() == [i for i in range(30) for _ in range(i % 3)]
    assert split.captions[:3] == [
        "Caption 0 of 1, äöü.",
        "Caption 0 of 2, äöü.",
        "Caption 1 of 2, äöü.",
    ]
    assert split.scenes is None
    assert split.meanings is None
    for i, boxes in enumerate(split.boxes):
        np.testing.assert_array_equal(boxes, np.full((i % 3, 4), i / 100, np.float32))


def test_pictures_are_fetched_by_number_in_any_order(builder):
    split = records.read_split(builder, "train")
    numbers = np.random.default_rng(0).permutation(30)
    assert split.read(numbers) == [picture(int(i)) for i in numbers]
    assert split.read([7, 7, 0]) == [picture(7), picture(7), picture(0)]
    assert split.read([]) == []


@pytest.mark.parametrize("number", [-1, 30])
def test_a_number_out_of_range_is_an_error(builder, number):
    with pytest.raises(IndexError, match=f"picture {number} of 30"):
        records.read_split(builder, "train").read([0, number])


def test_fields_that_the_builder_lacks_are_none(tmp_path):
    builder = Squares(tmp_path, boxes=False)
    records.prepare(builder)
    assert records.read_split(builder, "test").boxes is None


def test_a_prepared_set_is_used_again(builder):
    path = builder.info.splits["train"].filepaths[0]
    before = os.stat(path).st_mtime_ns
    again = Squares(os.path.dirname(os.path.dirname(os.path.dirname(path))))
    records.prepare(again)
    assert os.stat(path).st_mtime_ns == before
    assert records.read_split(again, "test").images == ["0.jpg", "1.jpg"]


def test_the_fingerprint_follows_the_data(builder, tmp_path):
    prints = []
    for name, first in (("same", 0), ("other", 1)):
        other = Squares(tmp_path / name, first=first)
        records.prepare(other)
        prints.append(records.fingerprint(other))
    assert prints[0] == records.fingerprint(builder)
    assert prints[1] != prints[0]


def test_the_fingerprint_does_not_follow_the_order_of_a_record(builder):
    """Protobuf's maps are written in an order that differs between processes."""
    before = records.fingerprint(builder)
    [path] = builder.info.splits["test"].filepaths
    path = os.fspath(path)
    source = array_record_data_source.ArrayRecordDataSource([path])
    found = source.__getitems__(list(range(len(source))))
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    turned = 0
    for record in found:
        features = tf.train.Example.FromString(record).features.feature
        parts = {
            name: tf.train.Features(feature={name: features[name]}).SerializeToString()
            for name in features
        }
        orders = [b"".join(parts[name] for name in sorted(parts, reverse=r)) for r in (False, True)]
        # The other of the two orders, as field 1 of an Example.
        body = next(order for order in orders if not record.endswith(order))
        length, size = b"", len(body)
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        other = b"\x0a" + length + bytes([size]) + body
        assert other != record
        assert tf.train.Example.FromString(other) == tf.train.Example.FromString(record)
        writer.write(other)
        turned += 1
    writer.close()
    assert turned == 2
    assert records.fingerprint(builder) == before


def test_an_interrupted_preparation_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(Squares, "failure", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        records.prepare(Squares(tmp_path))
    assert not os.path.exists(Squares(tmp_path).data_dir)
    monkeypatch.undo()
    builder = Squares(tmp_path)
    records.prepare(builder)
    assert len(records.read_split(builder, "train").images) == 30


def test_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Squares, "failure", OSError(28, "No space left on device"))
    with pytest.raises(DataError, match=r"cannot write the data set to .*squares.*No space left"):
        records.prepare(Squares(tmp_path))


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write the data set to .*Not a directory"):
        records.prepare(Squares(tmp_path / "file"))


def test_a_builder_that_shuffles_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Squares, "ordered", False)
    with pytest.raises(DataError, match="disable_shuffling"):
        records.prepare(Squares(tmp_path))


def test_unknown_missing_and_damaged_splits_say_what_to_do(tmp_path):
    builder = Squares(tmp_path)
    with pytest.raises(DataError, match="not prepared"):
        records.read_split(builder, "train")
    records.prepare(builder)
    with pytest.raises(DataError, match="no split 'dev'; it has test, train"):
        records.read_split(builder, "dev")
    path = os.fspath(builder.info.splits["train"].filepaths[0])
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)
    with pytest.raises(DataError, match="prepare the data again"):
        records.read_split(builder, "train")
    os.remove(path)
    with pytest.raises(DataError, match="missing; remove its folder"):
        records.read_split(builder, "train")
