"""Folders in the layout of SCAN: who belongs to whom, and what is refused."""

import numpy as np
import pytest

from vse_jax.data import feature_files, scan_files
from vse_jax.data.split import DataError

R, F = 3, 4


def values(pictures, seed=0, shape=(R, F)):
    return np.random.default_rng(seed).normal(size=(pictures, *shape)).astype(np.float32)


def write(folder, stem, array, captions, ids=None, **more):
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{stem}_ims.npy", array)
    (folder / f"{stem}_caps.txt").write_text("".join(f"{caption}\n" for caption in captions))
    if ids is not None:
        (folder / f"{stem}_ids.txt").write_text("".join(f"{name}\n" for name in ids))
    for name, extra in more.items():
        np.save(folder / f"{stem}_{name}.npy", extra)


def sentences(count, word="a"):
    return [f"{word} dog number {n}" for n in range(count)]


@pytest.fixture
def folder(tmp_path):
    """Train has a row a picture, dev and test have each five times."""
    write(tmp_path / "precomp", "train", values(4), sentences(20))
    for seed, stem in enumerate(("dev", "test"), 1):
        repeated = np.repeat(values(2, seed), 5, axis=0)
        write(tmp_path / "precomp", stem, repeated, sentences(10, stem))
    return tmp_path / "precomp"


def load(folder):
    return scan_files.load(folder, folder.parent / "prepared")


def test_rows_that_are_repeated_and_rows_that_are_not(folder):
    data = load(folder)
    assert (data.name, data.protocol) == ("precomp", "precomp_2")
    for name, stem, n, array in (
        ("train", "train", 4, values(4)),
        ("validation", "dev", 2, values(2, 1)),
        ("test", "test", 2, values(2, 2)),
    ):
        split = data.splits[name]
        assert list(split.images) == [f"{stem}/{i}" for i in range(n)]
        assert split.caption_image.tolist() == [i for i in range(n) for _ in range(5)]
        assert len(split.captions) == 5 * n
        assert split.read is None
        assert isinstance(split.features.rows, np.memmap)
        features, mask = split.features.gather(np.arange(n))
        np.testing.assert_array_equal(features, array)
        assert mask.all()


def test_one_caption_a_picture_where_rows_differ(folder):
    write(folder, "train", values(10), sentences(10))
    train = load(folder).splits["train"]
    assert train.caption_image.tolist() == list(range(10))
    # Only all of the groups of five say that rows are repeated.
    mixed = np.concatenate([np.repeat(values(1), 5, axis=0), values(5, 1)])
    write(folder, "train", mixed, sentences(10))
    assert load(folder).splits["train"].caption_image.tolist() == list(range(10))


def test_names_tell_which_rows_are_one_picture(folder):
    rows = np.repeat(values(3), [2, 1, 4], axis=0)
    ids = ["a.jpg"] * 2 + ["b.jpg"] + ["c.jpg"] * 4
    write(folder, "train", rows, sentences(7), ids)
    train = load(folder).splits["train"]
    assert list(train.images) == ["a.jpg", "b.jpg", "c.jpg"]
    assert train.caption_image.tolist() == [0, 0, 1, 2, 2, 2, 2]
    np.testing.assert_array_equal(train.features.gather(np.arange(3))[0], values(3))


def test_names_come_before_groups_of_five(folder):
    rows = np.repeat(values(2), [10, 5], axis=0)
    write(folder, "train", rows, sentences(15), ["a"] * 10 + ["b"] * 5)
    assert np.bincount(load(folder).splits["train"].caption_image).tolist() == [10, 5]
    # Numbers of rows name no picture.
    write(folder, "train", rows, sentences(15), range(15))
    assert list(load(folder).splits["train"].images) == ["0", "5", "10"]


@pytest.mark.parametrize("count", [4, 20])
def test_names_of_pictures_or_captions(folder, count):
    ids = [f"{n * 4 // count}.jpg" for n in range(count)]
    write(folder, "train", values(4), sentences(20), ids)
    assert list(load(folder).splits["train"].images) == [f"{n}.jpg" for n in range(4)]
    ids = [f"{n * 2 // 10}.jpg" for n in range(10)]
    write(folder, "dev", np.repeat(values(2), 5, axis=0), sentences(10), ids)
    assert list(load(folder).splits["validation"].images) == ["0.jpg", "1.jpg"]


def test_testall_is_the_test_split(folder):
    write(folder, "testall", values(6), sentences(30))
    data = load(folder)
    assert len(data.splits["test"].images) == 6
    assert data.protocol == "precomp_6"


def test_two_axes_are_one_region_a_picture(folder):
    for stem, n in (("train", 4), ("dev", 2), ("test", 2)):
        write(folder, stem, values(n, shape=(F,)), sentences(5 * n))
    features, mask = load(folder).splits["train"].features.gather(np.arange(4))
    np.testing.assert_array_equal(features[:, 0], values(4, shape=(F,)))
    assert mask.shape == (4, 1)


def test_counts_and_boxes(folder):
    boxes = np.tile(np.array([0.0, 0.25, 0.5, 1.0], np.float32), (4, R, 1))
    boxes[1, 2] = 0.0  # behind the last
    counts = np.array([3, 2, 3, 1])
    write(folder, "train", values(4), sentences(20), boxes=boxes, counts=counts)
    regions = load(folder).splits["train"].features
    features, mask = regions.gather(np.arange(4))
    assert mask.sum(axis=1).tolist() == counts.tolist()
    np.testing.assert_array_equal(features[1, :2], values(4)[1, :2])
    np.testing.assert_array_equal(features[1, 2], 0)
    np.testing.assert_array_equal(regions.gather_boxes(np.array([0])), boxes[:1])


def test_empty_captions_are_counted_and_move_nobody(folder):
    captions = sentences(20)
    captions[6] = " "
    captions[10:15] = [""] * 5
    write(folder, "train", values(4), captions)
    data = load(folder)
    train = data.splits["train"]
    assert list(train.images) == ["train/0", "train/1", "train/3"]
    assert train.caption_image.tolist() == [0] * 5 + [1] * 4 + [2] * 5
    np.testing.assert_array_equal(train.features.gather(np.array([2]))[0][0], values(4)[3])
    assert data.skipped["photo without captions"] == ["train/2 (train_caps.txt:11)"]
    assert data.skipped["empty caption"][0] == "train/1#1 (train_caps.txt:7)"
    assert len(data.skipped["empty caption"]) == 6


def test_what_ends_a_line_is_a_line_feed(folder):
    odd = [f"{caption}\x0b\u2028\r" for caption in sentences(20)]
    write(folder, "train", values(4), odd)
    assert len(load(folder).splits["train"].captions) == 20


@pytest.mark.parametrize(("count", "stem"), [(19, "train"), (21, "train"), (8, "dev"), (0, "test")])
def test_lengths_that_do_not_go_together(folder, count, stem):
    rows = len(np.load(folder / f"{stem}_ims.npy"))
    (folder / f"{stem}_caps.txt").write_text("a dog\n" * count)
    told = rf"{stem}_caps\.txt has {count} captions, .*{stem}_ims\.npy {rows} rows"
    with pytest.raises(DataError, match=told):
        load(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(folder, value, monkeypatch):
    monkeypatch.setattr(feature_files, "CHUNK", 2 * R * F * 4)
    rows = np.repeat(values(3), [2, 1, 4], axis=0)
    rows[5, 1, 2] = value
    write(folder, "train", rows, sentences(7), list("aabcccc"))
    with pytest.raises(
        DataError, match=r"train_ims\.npy: row 5, c, region 1: feature 2 is .*finite"
    ):
        load(folder)


def test_too_large_for_single_precision_is_not_finite(folder):
    rows = values(4).astype(np.float64)
    rows[3, 0, 1] = 1e300
    write(folder, "train", rows, sentences(20))
    with pytest.raises(DataError, match=r"row 3, train/3, region 0: feature 1 is 1e\+300"):
        load(folder)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (values(4).astype(np.int32), r"int32\[4, 3, 4\]; expected float32"),
        (values(4, shape=(2, R, F)), r"float32\[4, 2, 3, 4\]; expected float32"),
        (values(4)[:, 0, 0], r"float32\[4\]; expected"),
        (values(0), r"float32\[0, 3, 4\]; expected"),
        (values(4).astype(np.complex64), "complex64"),
        (np.asfortranarray(values(4)), "C order"),
        (np.array([{}] * 4), r"no whole \.npy file"),
    ],
)
def test_arrays_of_another_kind(folder, array, told):
    write(folder, "train", array, sentences(20))
    with pytest.raises(DataError, match=rf"train_ims\.npy: .*{told}"):
        load(folder)


@pytest.mark.parametrize("length", [0, 5, 60, 200, -4])
def test_a_file_cut_short(folder, length):
    path = folder / "train_ims.npy"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"train_ims\.npy: no whole \.npy file .*cut short"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["train_ims.npy", "dev_ims.npy", "train_caps.txt", "test_caps.txt"]
)
def test_a_file_that_is_missing(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        load(folder)


def test_widths_that_differ(folder):
    write(folder, "dev", values(2, shape=(R, F + 1)), sentences(10))
    with pytest.raises(
        DataError, match=r"dev_ims\.npy has features of width 5, .*train_ims.* of 4"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (["a"] * 3, r"train_ids\.txt has 3 names, for 7 pictures in 7 rows"),
        (list("aabbccc"), r"train_ids\.txt:4: the same name .*, but row 3 of the features is ano"),
        (list("aabccca"), r"train_ids\.txt:7: a a second time, first on line 1"),
    ],
)
def test_names_that_do_not_fit(folder, ids, told):
    rows = np.repeat(values(3), [2, 1, 4], axis=0)
    if ids[-1] == "a" and len(ids) == 7:
        rows[-1] = rows[0]
    write(folder, "train", rows, sentences(7), ids)
    with pytest.raises(DataError, match=told):
        load(folder)


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ([0.0, 0.0, 1.1, 1.0], "row 2, region 1: box"),
        ([-0.1, 0.0, 1.0, 1.0], "row 2, region 1: box"),
        ([0.5, 0.0, 0.5, 1.0], "row 2, region 1: box"),
        ([0.0, np.nan, 1.0, 1.0], "row 2, region 1: box"),
    ],
)
def test_boxes_outside_the_picture_or_without_area(folder, box, told):
    boxes = np.tile(np.array([0.0, 0.0, 1.0, 1.0], np.float32), (4, R, 1))
    boxes[2, 1] = box
    write(folder, "train", values(4), sentences(20), boxes=boxes)
    with pytest.raises(DataError, match=rf"train_boxes\.npy: {told}"):
        load(folder)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"boxes": np.ones((4, 2, 4))}, r"boxes\.npy: \[4, 2, 4\]; expected \[4, 3, 4\]"),
        ({"counts": np.ones(3, int)}, r"counts\.npy: int64\[3\]; expected integers \[4\]"),
        (
            {"counts": np.array([1, 2, 4, 5])},
            r"train_counts\.npy: row 2 is 4; expected how many of its 3 regions are real, from 1 t",
        ),
        ({"counts": np.array([1, 2, 3, 0])}, r"train_counts\.npy: row 3 is 0; .* from 1 to 3"),
        ({"counts": np.array([1, -1, 3, 0])}, r"train_counts\.npy: row 1 is -1; .* from 1 to 3"),
        ({"counts": np.ones(4)}, r"counts\.npy: float64\[4\]; expected integers \[4\] from 1 to 3"),
    ],
)
def test_boxes_and_counts_of_another_kind(folder, more, told):
    write(folder, "train", values(4), sentences(20), **more)
    with pytest.raises(DataError, match=told):
        load(folder)


def test_files_are_looked_through_once_until_they_change(folder, monkeypatch):
    looked = []
    check = feature_files.check_finite

    def counted(features, where, first=0):
        looked.append(first)
        check(features, where, first)

    monkeypatch.setattr(feature_files, "check_finite", counted)
    before = load(folder).fingerprint
    assert len(looked) == 3
    assert load(folder).fingerprint == before
    assert len(looked) == 3
    # The same numbers again: another time of change, the same data.
    np.save(folder / "train_ims.npy", values(4))
    assert load(folder).fingerprint == before
    assert len(looked) == 4
    np.save(folder / "train_ims.npy", values(4, seed=9))
    assert load(folder).fingerprint != before
    for cached in (folder.parent / "prepared" / "inspected").iterdir():
        cached.write_bytes(b"damaged")
    load(folder)
    assert len(looked) == 8


@pytest.mark.parametrize("size", [1, 3, 100])
def test_chunks_of_any_size_find_the_same(folder, monkeypatch, size):
    found = {}
    for chunk, data_dir in ((size * R * F * 4, "one"), (2**26, "other")):
        monkeypatch.setattr(feature_files, "CHUNK", chunk)
        path = folder / "dev_ims.npy"
        array = feature_files.opened(path)
        found[data_dir] = feature_files.inspected(path, array, folder.parent / data_dir, str)
    assert found["one"].digest == found["other"].digest
    expected = [i % 5 != 0 for i in range(10)]
    assert found["one"].repeats.tolist() == found["other"].repeats.tolist() == expected


def test_the_fingerprint_follows_captions_names_and_boxes(folder):
    seen = {load(folder).fingerprint}
    write(folder, "train", values(4), ["another", *sentences(20)[1:]])
    seen.add(load(folder).fingerprint)
    write(folder, "train", values(4), sentences(20), list("abcd"))
    seen.add(load(folder).fingerprint)
    boxes = np.tile(np.array([0.0, 0.0, 1.0, 1.0], np.float32), (4, R, 1))
    write(folder, "train", values(4), sentences(20), boxes=boxes)
    (folder / "train_ids.txt").unlink()
    seen.add(load(folder).fingerprint)
    assert len(seen) == 4
