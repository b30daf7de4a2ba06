import errno
import json

import numpy as np
import pytest

from vse_jax.data import features
from vse_jax.data.split import DataError

ROWS = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
PARTS = {"data": "fingerprint", "weights": "digest", "image_size": 96, "features": "grid"}


def batches(rows=ROWS, size=2, failure=None, begun=None):
    """A function that yields `rows` by `size`, the last batch padded; may fail on the way.

    Where it begins is added to the list `begun`.
    """

    def make(first):
        if begun is not None:
            begun.append(first)
        for start in range(first, len(rows), size):
            if failure and start:
                raise failure
            batch = rows[start : start + size]
            yield np.concatenate([batch, np.ones((size - len(batch), 2, 3), np.float32)])

    return make


def write(folder, **options):
    splits = {"train": (5, batches()), "test": (2, batches(ROWS[:2]))} | options.pop("splits", {})
    rows = {name: features.Rows(*given) for name, given in splits.items()}
    features.write(folder, "key", rows, named, **options)


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
    write(tmp_path, splits={"train": (5, lambda _: iter([ROWS.astype(np.float16)]))})
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

    def while_another_writes(first):
        write(tmp_path)
        yield from batches()(first)

    write(tmp_path, splits={"train": (5, while_another_writes), "test": (5, batches())})
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


def left_by(tmp_path, failure, size=2):
    """What a run leaves that ends by this behind the first batch of the split `test`."""
    with pytest.raises(type(failure)):
        write(tmp_path, splits={"test": (5, batches(size=size, failure=failure), size)})
    return list((tmp_path / "features").iterdir())


@pytest.mark.parametrize(
    ("torn", "together", "first"),
    [(b"", 1, 3), (b"", 2, 2), (b"", 4, 0), (b"\0", 3, 3), (b"\0" * 25, 1, 4), (b"\0" * 25, 2, 4)],
)
def test_a_stopped_run_is_gone_on_with_behind_its_last_whole_batch(
    tmp_path, caplog, torn, together, first
):
    """Of 24 bytes are the rows; what is behind the last whole one is written again."""
    caplog.set_level("INFO", "vse_jax")
    (left,) = left_by(tmp_path, KeyboardInterrupt(), size=3)
    with open(left / "test.npy", "ab") as file:
        file.write(torn)
    begun = {"train": [], "test": []}
    splits = {name: (5, batches(size=3, begun=starts), together) for name, starts in begun.items()}
    write(tmp_path, splits=splits)
    # Of what is whole nothing is computed.
    assert begun == {"train": [], "test": [first]}
    assert not left.exists()
    assert "going on behind picture 4 of train" in caplog.text
    assert (f"going on behind picture {first - 1} of test" in caplog.text) == (first > 0)
    folder = features.find(tmp_path, "key")
    for name in splits:
        expected = ROWS.copy()
        # Whole rows are kept as they are, also those that the test wrote.
        expected[3:first] = 0 if name == "test" else expected[3:first]
        np.testing.assert_array_equal(features.load(folder, name, 5), expected)
    assert sorted(path.name for path in folder.iterdir()) == ["done.json", "test.npy", "train.npy"]


@pytest.mark.parametrize("damage", [b"", b"half", b"\x93NUMPY\x01\0v\0{'descr'"])
def test_a_file_without_its_header_is_begun_again(tmp_path, damage):
    (left,) = left_by(tmp_path, KeyboardInterrupt())
    (left / "test.npy").write_bytes(damage)
    write(tmp_path)
    np.testing.assert_array_equal(
        features.load(features.find(tmp_path, "key"), "test", 2), ROWS[:2]
    )


def test_of_two_that_go_on_one_begins_anew(tmp_path):
    """What the first has taken is its own; the second, which comes later, ends before it."""
    left_by(tmp_path, KeyboardInterrupt())
    begun = []

    def while_another_writes(first):
        write(tmp_path, splits={"test": (5, batches(begun=begun))})
        yield from batches()(first)

    write(tmp_path, splits={"test": (5, while_another_writes)})
    assert begun == [0]
    folder = features.find(tmp_path, "key")
    np.testing.assert_array_equal(features.load(folder, "test", 5), ROWS)
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), DataError("damaged")])
def test_what_fails_leaves_nothing(tmp_path, failure):
    assert left_by(tmp_path, failure) == []


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
        write(tmp_path, splits={"train": (count, lambda _: iter([ROWS[:3], ROWS[3:]]))})
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

    def watched(first):
        for batch in batches()(first):
            seen.append(len(batch))
            yield batch

    write(tmp_path, splits={"train": (5, watched)}, store=False)
    assert seen == [2, 2, 2]
    # It begins where the one does that stores.
    write(tmp_path, splits={"train": (5, watched)}, store=False, agreed=lambda _: 2)
    assert seen == [2, 2, 2, 2, 2]
    assert list(tmp_path.iterdir()) == []
