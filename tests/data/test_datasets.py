import numpy as np
import pytest

from vse_jax import evaluation
from vse_jax.config import ConfigError, default_config
from vse_jax.data import datasets, shapes
from vse_jax.data.split import DataError, without_training

PHOTO_SETS = ("flickr8k", "flickr30k", "coco", "iaprtc12", "cub", "flowers")


def section(**values):
    config = default_config().data
    config.update(values)
    return config


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *((name, "data.manual_dir") for name in PHOTO_SETS),
        ("custom", "data.path"),
    ],
)
def test_a_field_that_a_data_set_needs_is_named(name, field):
    with pytest.raises(ConfigError, match=f"'{field}' is not set; '{name}' needs it") as told:
        datasets.load(section(dataset=name), 0)
    # And how to come by it.
    assert ("into the folder that data.manual_dir names" in str(told.value)) == (name != "custom")


def test_an_unknown_data_set_lists_the_known():
    with pytest.raises(ConfigError, match=r"'shape'; did you mean 'shapes'\?.*'custom' or"):
        datasets.load(section(dataset="shape"), 0)


def test_nothing_where_a_data_set_should_be_is_told_at_once(tmp_path):
    for name in PHOTO_SETS:
        assert datasets.are_missing(section(dataset=name, manual_dir=str(tmp_path / "nothing")))
        assert not datasets.are_missing(section(dataset=name, manual_dir=str(tmp_path)))
    assert not datasets.are_missing(section(dataset="shapes"))


def test_training_and_validation_are_limited_to_their_first_pictures(tmp_path):
    whole, limited = (
        datasets.load(section(shapes_sizes=(3, 4, 2), data_dir=str(tmp_path), **limits), 0)
        for limits in ({}, {"train_limit": 1, "validation_limit": 2})
    )
    assert limited.splits["train"].captions == whole.splits["train"].captions[:5]
    assert limited.splits["validation"].captions == whole.splits["validation"].captions[:10]
    assert limited.splits["validation"].read([1]) == whole.splits["validation"].read([1])
    assert [len(split.images) for split in limited.splits.values()] == [1, 2, 2]


def test_classes_that_no_training_picture_shows_are_told(tmp_path, caplog):
    config = section(shapes_sizes=(6, 4, 2), data_dir=str(tmp_path))
    whole = datasets.load(config, 0)
    assert whole.classes == shapes.SHAPES
    first = whole.classes[whole.splits["train"].labels[0]]
    caplog.clear()
    config.train_limit = 1
    limited = datasets.load(config, 0)
    others = tuple(name for name in shapes.SHAPES if name != first)
    assert without_training(limited) == others
    assert f"shapes: classes without a training picture: {len(others)} ({others[0]}" in caplog.text


def scan(folder, test):
    """A folder in the layout of SCAN with so many test pictures; 0: without that split."""
    folder.mkdir()
    for stem, count in (("train", 2), ("dev", 2), ("test", test)):
        if count:
            np.save(folder / f"{stem}_ims.npy", np.arange(2.0 * count, dtype="f").reshape(-1, 1, 2))
            (folder / f"{stem}_caps.txt").write_text("a dog\n" * 5 * count)
    return {"dataset": "precomputed", "path": str(folder)}


def captions_and_features(folder, test):
    """A caption file and, beside it, an array of features that `data.features` names."""
    own = scan(folder, test)
    lines = [f"dev/{n}.jpg,a dog,val\n" for n in range(2)]
    lines += [f"{stem}/{n}.jpg,a dog,{stem}\n" for stem, m in (("train", 2), ("test", test))
              for n in range(m)]  # fmt: skip
    for stem, count in (("train", 2), ("dev", 2), ("test", test)):
        names = "".join(f"{stem}/{n}.jpg\n" for n in range(count))
        (folder / f"{stem}_ids.txt").write_text(names)
    (folder / "list.csv").write_text("".join(["image,caption,split\n", *lines]))
    return {**own, "path": str(folder / "list.csv"), "features": str(folder)}


@pytest.mark.parametrize("write", [scan, captions_and_features])
@pytest.mark.parametrize(("name", "size"), [("coco_5k", 5000), ("flickr30k_1k", 1000)])
def test_features_are_reported_by_the_protocol_named(tmp_path, write, name, size):
    fields = {**write(tmp_path / "precomp", size), "data_dir": str(tmp_path / "prepared")}
    own = datasets.load(section(**fields, train_limit=1, validation_limit=1), 0)
    assert own.protocol.endswith(f"_{size}")
    data = datasets.load(section(**fields, train_limit=1, validation_limit=1, protocol=name), 0)
    assert data.protocol == evaluation.protocol_of(data, "test") == name
    beside = ("coco_1k_5fold",) if name == "coco_5k" else ()
    assert evaluation.protocols_beside(data, "test") == beside
    # The same data: nothing that is kept of them is computed again.
    assert data.fingerprint == own.fingerprint


@pytest.mark.parametrize("size", [0, 999])
def test_a_test_split_of_another_size_than_the_protocol_is_refused(tmp_path, size):
    fields = {**scan(tmp_path / "precomp", size), "data_dir": str(tmp_path / "prepared")}
    told = f"precomp: the test split has {size} pictures, and 'data.protocol' = 'flickr8k_1k' is of"
    with pytest.raises(DataError, match=f"{told} 1000: .*unset it"):
        datasets.load(section(**fields, protocol="flickr8k_1k"), 0)


def test_shapes_are_the_same_for_every_seed(tmp_path):
    config = section(shapes_sizes=(3, 2, 1), data_dir=str(tmp_path))
    one, other = (datasets.shapes(config, seed) for seed in (0, 1))
    assert one.fingerprint == other.fingerprint
    for name, size in (("train", 3), ("validation", 2), ("test", 1)):
        assert len(one.splits[name].images) == size
        np.testing.assert_array_equal(one.splits[name].captions, other.splits[name].captions)
