import errno
import json

import numpy as np
import pytest

from vse_jax.data import features
from vse_jax.data.split import DataError

ROWS = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
PARTS = {"data": "fingerprint", "weights": "digest", "image_size": 96, "features": "grid"}


def batches(rows=ROWS, size=2, failure=None):
    """A function that yields `rows` by `size`, the last batch padded; may fail on the way."""

    def make():
        for start in range(0, len(rows), size):
            if failure and start:
                raise failure
            batch = rows[start : start + size]
            yield np.concatenate([batch, np.ones((size - len(batch), 2, 3), np.float32)])

    return make


def write(folder, **options):
    splits = {"train": (5, batches()), "test": (2, batches(ROWS[:2]))}
    features.write(folder, "key", splits | options.pop("splits", {}), named, **options)


def named(split, row):
    return f"picture {row} of {split}"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_what_is_written_is_found_and_loaded(tmp_path, size):
    assert features.find(tmp_path, "key") is None
    write(tmp_path, splits={"train": (5, batches(size=size))})
    folder = features.find(tmp_path, "key")
    found = features.load(folder, "train", 5)
    assert isinstance(found, np.memmap)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, ROWS)
    np.testing.assert_array_equal(features.load(folder, "test", 2), ROWS[:2])
    assert features.find(tmp_path, "other") is None
    assert not list((tmp_path / "features").glob("*.partial"))


def test_half_floats_are_stored_as_floats(tmp_path):
    write(tmp_path, splits={"train": (5, lambda: iter([ROWS.astype(np.float16)]))})
    found = features.load(features.find(tmp_path, "key"), "train", 5)
    np.testing.assert_array_equal(found, ROWS.astype(np.float16).astype(np.float32))


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("~/data")
    assert features.find("~/data", "key") == tmp_path / "data" / "features" / "key"


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("out of memory"), RuntimeError),
        (OSError(errno.ENOSPC, "No space left on device"), DataError),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_interruption_leaves_nothing_that_is_found(tmp_path, failure, raised, split):
    with pytest.raises(raised):
        write(tmp_path, splits={split: (5, batches(failure=failure))})
    assert features.find(tmp_path, "key") is None
    write(tmp_path)
    found = features.load(features.find(tmp_path, "key"), "train", 5)
    np.testing.assert_array_equal(found, ROWS)


def test_an_interrupted_rewrite_leaves_what_was_there(tmp_path):
    write(tmp_path)
    with pytest.raises(RuntimeError):
        write(tmp_path, splits={"train": (5, batches(failure=RuntimeError("stop")))})
    found = features.load(features.find(tmp_path, "key"), "train", 5)
    np.testing.assert_array_equal(found, ROWS)


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path):
    """The one that comes second finishes first; what the first had begun is its own."""

    def while_another_writes():
        write(tmp_path)
        yield from batches()()

    splits = {"train": (5, while_another_writes), "test": (5, batches())}
    features.write(tmp_path, "key", splits, named)
    folder = features.find(tmp_path, "key")
    np.testing.assert_array_equal(features.load(folder, "train", 5), ROWS)
    assert [path.name for path in folder.parent.iterdir()] == ["key"]
    assert sorted(path.name for path in folder.iterdir()) == ["done.json", "test.npy", "train.npy"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    left = tmp_path / "features" / "key.abc.partial"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / "train.npy").write_bytes(b"half")
    write(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("store", [True, False])
def test_features_that_are_not_finite_are_refused_and_named(tmp_path, size, store):
    rows = ROWS.copy()
    rows[3, 1, 0], rows[4, 0, 0] = np.nan, np.inf
    message = r"features of picture 3 of test are not finite; .* weights damaged, or .*'precision'"
    with pytest.raises(DataError, match=message):
        write(tmp_path, splits={"test": (5, batches(rows, size))}, store=store)
    assert features.find(tmp_path, "key") is None


def test_only_a_folder_that_was_finished_is_found(tmp_path):
    write(tmp_path)
    folder = features.find(tmp_path, "key")
    assert json.loads((folder / "done.json").read_text()) == ["test", "train"]
    (folder / "done.json").unlink()
    assert features.find(tmp_path, "key") is None
    write(tmp_path)
    assert features.find(tmp_path, "key") == folder


@pytest.mark.parametrize("part", PARTS)
def test_the_key_follows_every_part(part):
    assert features.key(**PARTS) == features.key(**dict(reversed(PARTS.items())))
    assert features.key(**PARTS | {part: "another"}) != features.key(**PARTS)
    assert features.key(**{k: v for k, v in PARTS.items() if k != part}) != features.key(**PARTS)


@pytest.mark.parametrize("count", [6, 100])
def test_too_few_rows_are_an_error(tmp_path, count):
    with pytest.raises(DataError, match=f"features of 5 pictures came, expected {count}"):
        write(tmp_path, splits={"train": (count, lambda: iter([ROWS[:3], ROWS[3:]]))})
    assert features.find(tmp_path, "key") is None


def test_features_of_another_number_of_pictures_are_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match=r"train\.npy: features of 5 pictures, expected 6"):
        features.load(features.find(tmp_path, "key"), "train", 6)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "header", "text"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    write(tmp_path)
    folder = features.find(tmp_path, "key")
    path = folder / "train.npy"
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        damaged = {
            "empty": b"",
            "cut": data[:-4],
            "header": data[:12] + b"\0" + data[13:],
            "text": b"hello",
        }
        path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"train\.npy: cached features are damaged; delete .*key"):
        features.load(folder, "train", 5)


def test_a_folder_that_cannot_be_made_says_which_field_to_set(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written: Not a directory; .*'data\.data_dir'"):
        write(tmp_path / "file")


def test_a_process_that_does_not_store_takes_part_and_writes_nothing(tmp_path):
    seen = []

    def watched():
        for batch in batches()():
            seen.append(len(batch))
            yield batch

    write(tmp_path, splits={"train": (5, watched)}, store=False)
    assert seen == [2, 2, 2]
    assert list(tmp_path.iterdir()) == []
