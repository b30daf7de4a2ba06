import dataclasses

import numpy as np
import pytest

from vse_jax.data import subset
from vse_jax.data.regions import Regions
from vse_jax.data.split import Dataset, Split, without_training


def split_of(owners, pictures, **fields):
    return Split(
        images=[f"{n}.jpg" for n in range(pictures)],
        captions=[f"caption {n}" for n in range(len(owners))],
        caption_image=np.asarray(owners, np.int32),
        read=lambda numbers: [str(n).encode() for n in numbers],
        **fields,
    )


def test_the_first_pictures_have_their_captions_and_all_that_belongs_to_them():
    whole = split_of(
        [0, 0, 0, 1, 2, 2],
        3,
        labels=np.asarray([4, 5, 6], np.int32),
        boxes=[np.full((1, 4), n, np.float32) for n in range(3)],
        scenes=["a", "b", "c"],
        meanings=list("uvwxyz"),
    )
    found = subset.first_pictures(whole, 2)
    assert found.images == ["0.jpg", "1.jpg"]
    assert found.captions == [f"caption {n}" for n in range(4)]
    assert found.caption_image.tolist() == [0, 0, 0, 1]
    assert found.labels.tolist() == [4, 5]
    assert [box[0, 0] for box in found.boxes] == [0, 1]
    assert found.scenes == ["a", "b"]
    assert found.meanings == list("uvwx")
    assert found.read([1]) == [b"1"]


def dataset_of(pictures):
    splits = {name: split_of(range(pictures), pictures) for name in ("train", "validation", "test")}
    return Dataset("a", splits, "fingerprint", f"a_{pictures}")


@pytest.mark.parametrize("limit", [None, 4, 5])
def test_no_limit_and_one_that_is_not_reached_change_nothing(limit):
    dataset = dataset_of(4)
    assert subset.with_limit(dataset, "validation", limit) is dataset


@pytest.mark.parametrize("name", ["train", "validation"])
def test_only_the_split_named_is_limited_and_its_fingerprint_tells(name):
    dataset = dataset_of(4)
    found = subset.with_limit(dataset, name, 3)
    sizes = {"train": 4, "validation": 4, "test": 4} | {name: 3}
    assert {key: len(split.images) for key, split in found.splits.items()} == sizes
    assert found.protocol == dataset.protocol
    others = [
        subset.with_limit(dataset, name, 2),
        subset.with_limit(dataset, {"train": "validation", "validation": "train"}[name], 3),
        subset.with_limit(dataclasses.replace(dataset, fingerprint="another"), name, 3),
    ]
    prints = [one.fingerprint for one in (dataset, found, *others)]
    assert len(set(prints)) == len(prints)


def captioned_in_part():
    """Pictures 0, 3 and 4 of each split have no caption; label, box and bytes tell the number."""
    split = split_of(
        [1, 1, 2, 5],
        6,
        labels=np.asarray([10, 11, -1, 13, 14, 15], np.int32),
        boxes=[np.full((n % 3, 4), n / 10, np.float32) for n in range(6)],
        features=Regions.of(np.arange(12, dtype=np.float32).reshape(6, 2, 1)),
    )
    whole = split_of([0, 1], 2)
    splits = {"train": split, "validation": whole, "test": split}
    skipped = {"photo without captions": ("old.jpg",), "empty file": ("b.jpg",)}
    return Dataset("a", splits, "print", "a_6", skipped, ("x", "y"))


def test_pictures_without_captions_leave_with_all_that_belongs_to_them(caplog):
    dataset = captioned_in_part()
    found = subset.with_captions(dataset)
    assert found.skipped == {
        "photo without captions": ("old.jpg", *["0.jpg", "3.jpg", "4.jpg"] * 2),
        "empty file": ("b.jpg",),
    }
    assert "a: left out, photo without captions: 6 (0.jpg, 3.jpg" in caplog.text
    assert found.fingerprint != dataset.fingerprint
    assert (found.protocol, found.classes) == ("a_3", ("x", "y"))
    assert found.splits["validation"] is dataset.splits["validation"]
    before, split = dataset.splits["test"], found.splits["test"]
    assert len(split.without_captions()) == 0
    assert split.captions == before.captions
    assert split.caption_image.dtype == np.int32
    assert split.read([2, 0]) == [b"5", b"1"]
    # Whatever belonged to a caption's picture still does.
    for new, old in zip(split.caption_image, before.caption_image, strict=True):
        assert split.images[new] == before.images[old]
        assert split.labels[new] == before.labels[old]
        np.testing.assert_array_equal(split.boxes[new], before.boxes[old])
        for one, other in zip(
            split.features.gather(np.array([new])),
            before.features.gather(np.array([old])),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
        assert split.read([new]) == before.read([old])
    for name in ("images", "labels", "boxes", "features"):
        assert len(getattr(split, name)) == 3
    again = subset.with_captions(found)
    assert again is found


@pytest.mark.parametrize(
    ("name", "protocol", "expected"),
    [("cub", "cub_6", "cub_3"), ("flickr8k", "flickr8k_1k", "flickr8k_3"), ("b", "all_6", "all_3")],
)
def test_a_protocol_is_that_of_the_pictures_left(name, protocol, expected):
    dataset = dataclasses.replace(captioned_in_part(), name=name, protocol=protocol)
    assert subset.with_captions(dataset).protocol == expected
    kept = {**dataset.splits, "test": dataset.splits["validation"]}
    dataset = dataclasses.replace(dataset, splits=kept)
    assert subset.with_captions(dataset).protocol == protocol


def test_where_every_picture_has_captions_nothing_changes():
    dataset = dataset_of(3)
    assert subset.with_captions(dataset) is dataset


def test_classes_that_no_training_picture_shows_are_named():
    train = split_of([0], 4, labels=np.asarray([2, -1, 0, 2], np.int32))
    other = split_of([0], 1, labels=np.asarray([1], np.int32))
    splits = {"train": train, "test": other}
    dataset = Dataset("a", splits, "", "a_1", classes=("a", "b", "c", "d"))
    assert without_training(dataset) == ("b", "d")
    assert without_training(dataset_of(2)) == ()
