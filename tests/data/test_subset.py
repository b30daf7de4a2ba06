import dataclasses

import numpy as np
import pytest

from vse_jax.data import subset
from vse_jax.data.split import Dataset, Split


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
