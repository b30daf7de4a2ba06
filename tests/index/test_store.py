"""The store of an index has what a folder has, through any changes, and after any stop."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vse_jax.index import database
from vse_jax.index import store as stores
from vse_jax.index.database import StoreError
from vse_jax.index.records import Encoded, File, Row
from vse_jax.index.store import Store

WIDTH = 3
ABOUT = {"side": "texts", "model": "m", "dimension": WIDTH, "similarity": "dot"}


def embedding(path, size, line):
    """Another one for each line of each state of a file."""
    seed = [len(path), *path.encode(), size, line]
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


def lines_of(path, size):
    """How many sentences a file has; of some sizes none."""
    return 0 if size % 7 == 0 else 1 + (size + len(path)) % 3


def encoded(files):
    for file in files:
        lines = range(1, lines_of(file.path, file.size) + 1)
        rows = [Row(n, f"{file.path} {n}", embedding(file.path, file.size, n)) for n in lines]
        if not rows:
            yield Encoded(file, problem="it is broken")
        for row in rows:  # a line at a time, as they may come
            yield Encoded(file, [row], is_last=row is rows[-1])


def synchronized(store, root, present):
    changes = store.compare(root, [File(*file) for file in present])
    store.forget_missing(root)
    for _ in store.add(root, encoded(list(store.wanted()))):
        pass
    return changes


def check(store, roots):
    """The items are those of the files, each with its embedding."""
    expected = {
        (str(root), path, line): embedding(path, size, line)
        for root, present in roots.items()
        for path, size, _ in present
        for line in range(1, lines_of(path, size) + 1)
    }
    assert len(store) == len(expected)
    numbers = np.arange(len(store))
    items, rows = store.items(numbers.tolist()), store.embeddings(numbers)
    assert {(item.root, item.path, item.line) for item in items} == expected.keys()
    for item, row in zip(items, rows, strict=True):
        np.testing.assert_array_equal(row, expected[item.root, item.path, item.line])
        assert item.text == f"{item.path} {item.line}"
    whole = [block for _, block in store.shards()]
    np.testing.assert_array_equal(np.concatenate([np.zeros((0, WIDTH)), *whole]), rows)
    assert all(len(block) <= stores.SHARD for block in whole)
    files = {path.name for path in store.folder.glob("*.npy")}
    assert len(files) == len(whole), "shards that nobody knows"


@pytest.mark.parametrize("seed", range(4))
def test_any_changes(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(stores, "SHARD", 5)
    if seed % 2:  # safe at once, each of them
        monkeypatch.setattr(stores, "PATIENCE", 0)
        monkeypatch.setattr(stores, "REST", 0)
    rng = random.Random(seed)
    store = Store(tmp_path / "index", ABOUT)
    roots = {Path("/a"): [], Path("/b"): []}
    generation = store.generation
    for _ in range(12):
        root = rng.choice(list(roots))
        known = {path: (path, *rest) for path, *rest in roots[root]}
        names = rng.sample([f"{n}.txt" for n in range(20)], rng.randrange(12))
        present = []
        for name in names:
            fresh = (name, rng.randrange(1, 50), rng.randrange(9))
            present.append(known.get(name, fresh) if rng.random() < 0.6 else fresh)
        wanted = {file for file in present if known.get(file[0]) != file}
        changes = synchronized(store, root, present)
        assert changes.files == len(present)
        assert changes.wanted == len(wanted)
        assert changes.changed == sum(file[0] in known for file in wanted)
        assert changes.missing == len(known.keys() - set(names))
        roots[root] = present
        check(store, roots)
        if wanted or changes.missing:
            assert store.generation > generation or not any(lines_of(*f[:2]) for f in wanted)
        generation = store.generation
    broken = {path for path, size, _ in roots[Path("/a")] if not lines_of(path, size)}
    assert dict(store.problems(Path("/a"))) == dict.fromkeys(broken, "it is broken")
    # Nothing is encoded twice.
    assert not synchronized(store, Path("/a"), roots[Path("/a")]).wanted
    again = Store(tmp_path / "index")
    check(again, roots)
    assert again.about["model"] == "m"
    again.forget_root(Path("/a"))
    roots[Path("/a")] = []
    check(again, roots)
    assert again.roots() == ["/b"] * bool(roots[Path("/b")])


def test_files_of_others_stay(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "20240101_1.jpg").write_bytes(b"a photo")
    with pytest.raises(StoreError, match=r"photos is no index and has other files, such as 2024"):
        Store(photos, ABOUT)
    assert [path.name for path in photos.iterdir()] == ["20240101_1.jpg"]
    store = Store(tmp_path / "index", ABOUT)
    others = {"20240101_1.jpg", "2024.npy", "00000001.txt", "00000007.npy.bak"}
    for name in others | {"00000007.npy", "00000008.partial"}:
        (store.folder / name).write_bytes(b"somebody's")
    synchronized(store, Path("/a"), [("a.txt", 2, 1)])
    found = {path.name for path in store.folder.iterdir()}
    assert found >= others
    assert not found & {"00000007.npy", "00000008.partial"}  # of a shard that was never whole


@pytest.mark.parametrize("removed", range(4))
def test_what_a_stop_left_of_a_removal_is_encoded_again(tmp_path, monkeypatch, removed):
    """The folder came back behind it, as a disk does that was not there for a while."""
    monkeypatch.setattr(stores, "SHARD", 5)
    store, root = Store(tmp_path, ABOUT), Path("/a")
    present = [(f"{number}.txt", 1 + number, 1) for number in range(12)]
    synchronized(store, root, present)
    assert len(store.layout()) > 3
    remove, seen = store._files.remove, []

    def stopped(number):
        if len(seen) == removed:
            raise KeyboardInterrupt
        seen.append(number)
        remove(number)

    with monkeypatch.context() as patch:
        patch.setattr(store._files, "remove", stopped)
        with pytest.raises(KeyboardInterrupt):
            store.forget_root(root)
    again = Store(tmp_path)
    assert synchronized(again, root, present).wanted == len(present)
    check(again, {root: present})


def test_what_cannot_be_read_makes_no_index_old(tmp_path):
    store, root = Store(tmp_path, ABOUT), Path("/a")
    synchronized(store, root, [("a.txt", 2, 1)])
    before = store.generation
    for _ in store.add(root, [Encoded(File("b.txt", 3, 1), problem="denied", again=True)]):
        pass
    assert dict(store.problems(root)) == {"b.txt": "denied"}
    assert store.generation == before


def test_a_file_that_is_not_done_is_encoded_again(tmp_path, monkeypatch):
    """It is larger than a shard, and what came of it was made safe when it stopped."""
    monkeypatch.setattr(stores, "SHARD", 2)
    store, root = Store(tmp_path, ABOUT), Path("/a")
    file = File("b.txt", 10, 1)
    assert lines_of(file.path, file.size) == 1 + 15 % 3
    store.compare(root, [file])
    rows = [Row(n, f"b.txt {n}", embedding("b.txt", 10, n)) for n in (1, 2, 3)]

    def some():
        for row in rows:
            yield Encoded(file, [row], is_last=False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(store.add(root, some()))
    assert len(store) == 3
    changes = synchronized(store, root, [file])
    assert changes.wanted == 1
    check(store, {root: [file]})


def test_what_came_is_safe_after_a_while(tmp_path, monkeypatch):
    """In shards that are filled on, and without more than a share of the time for that."""
    monkeypatch.setattr(stores, "SHARD", 50)
    now, safe = [0.0], []
    monkeypatch.setattr(stores.time, "monotonic", lambda: now[0])
    store, put = Store(tmp_path, ABOUT), Store._put_files

    def slow(*arguments):
        now[0] += 2 + len(safe)  # the more there are the longer it takes
        return put(*arguments)

    monkeypatch.setattr(Store, "_put_files", slow)

    def coming():
        for number in range(110):
            now[0] += 4
            yield Encoded(File(f"{number}.txt", 1, 1), [Row(1, "", embedding("", 1, number))])

    for count in store.add(Path("/a"), coming()):
        assert len(store) == sum(safe) + count
        safe.append(count)
    # After 30 s, then after 20 times what the last time took: 2, 3, 4 s, and so on; or at a shard.
    assert safe == [8, 10, 15, 20, 25, 30, 2]
    assert [shard.rows for shard in store.layout()] == [50, 50, 10]
    np.testing.assert_array_equal(
        store.embeddings(np.arange(110)), [embedding("", 1, number) for number in range(110)]
    )


# Goes on after each shard when it is told to; when nobody tells it any more, to its end.
PROGRAM = """
import sys
sys.path[:0] = [sys.argv[1]]
import test_store as tests
tests.stores.SHARD = 5
store, root = tests.Store(tests.Path(sys.argv[2]), tests.ABOUT), tests.Path("/a")
store.compare(root, [tests.File(f"{n}.txt", 1 + n % 40, 1) for n in range(400)])
store.forget_missing(root)
wanted = list(store.wanted())
print(len(wanted), flush=True)
for _ in store.add(root, tests.encoded(wanted)):
    print("safe", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SHARD", 5)
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path)]
    rng, wanted = random.Random(0), [400]
    for kill in (True, True, True, False):
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            wanted.append(int(running.stdout.readline()))
            if not kill:
                running.communicate()
                assert running.returncode == 0
                continue
            for _ in range(rng.randrange(2, 9)):
                assert running.stdout.readline() == "safe\n"
                running.stdin.write("\n")
                running.stdin.flush()
            time.sleep(rng.uniform(0, 0.01))  # somewhere in the next one
            running.kill()
            assert running.wait() == -signal.SIGKILL
    # Each found what those before it had kept.
    assert wanted[0] == wanted[1] > wanted[2] > wanted[3] > wanted[4] > 0
    present = [File(f"{n}.txt", 1 + n % 40, 1) for n in range(400)]
    store = Store(tmp_path)
    assert not synchronized(store, Path("/a"), present).wanted
    check(store, {Path("/a"): present})


def test_a_shard_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    """Another process brings the index up to date: all is read as it was, or as it is."""
    monkeypatch.setattr(stores, "SHARD", 5)
    store, writer = Store(tmp_path, ABOUT), Store(tmp_path)
    files = [(f"{n}.txt", n, 1) for n in range(1, 13)]
    synchronized(writer, Path("/a"), files)
    before = [rows.copy() for _, rows in store.shards()]
    reading = store.shards()
    seen = [next(reading)[1]]
    old = store.layout()
    synchronized(writer, Path("/a"), files[3:-1])
    for one, rows in zip(before, [*seen, *(rows for _, rows in reading)], strict=True):
        np.testing.assert_array_equal(rows, one)
    # Asked before the change, opened after it.
    layouts = [old]
    monkeypatch.setattr(store, "layout", lambda: layouts.pop() if layouts else writer.layout())
    for (_, one), (_, other) in zip(store.shards(), writer.shards(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not layouts


def test_keys_stay_and_numbers_of_shards_are_never_given_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SHARD", 5)
    store, root = Store(tmp_path, ABOUT), Path("/a")
    files = [(f"{n}.txt", n, 1) for n in range(1, 13)]

    def keys():
        pairs = store.database.all("SELECT path, line, key FROM items JOIN files ON number = file")
        return {(path, line): key for path, line, key in pairs}

    synchronized(store, root, files)
    before, shards = keys(), {shard.number for shard in store.layout()}
    assert len({*before.values()}) == len(before) == len(store)
    order = [(item.path, item.line) for item in store.items(range(len(store)))]
    assert store.numbers([before[item] for item in order]) == list(range(len(store)))
    assert store.numbers([5]) == [-1]
    # One is gone, one has changed: the others have the keys that they had.
    synchronized(store, root, [*files[2:], ("2.txt", 2, 9)])
    after = keys()
    assert {item for item in before if before[item] != after.get(item)} == {
        item for item in before if item[0] in ("1.txt", "2.txt")
    }
    store.forget_root(root)
    assert not store.layout()
    synchronized(store, root, files)
    assert keys() == before
    assert not shards & {shard.number for shard in store.layout()}


def test_what_is_no_index(tmp_path):
    with pytest.raises(StoreError, match=r"has no index: make one with python -m vse_jax\.search"):
        Store(tmp_path)
    (tmp_path / database.FILE).write_bytes(b"something else, long enough to be looked at" * 9)
    with pytest.raises(StoreError, match="cannot be read or written: file is not a database"):
        Store(tmp_path)
    (tmp_path / database.FILE).write_bytes(b"")
    with pytest.raises(StoreError, match="is no index of vse_jax"):
        Store(tmp_path)


def test_another_layout_is_refused(tmp_path):
    Store(tmp_path, ABOUT).database.run("UPDATE about SET value = 9 WHERE name = 'version'")
    with pytest.raises(StoreError, match="of layout 9, this program's is 2"):
        Store(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_a_damaged_shard_is_told(tmp_path, damage):
    store = Store(tmp_path, ABOUT)
    synchronized(store, Path("/a"), [("a.txt", 1, 1)])
    [path] = tmp_path.glob("*.npy")
    if damage == "cut":
        os.truncate(path, 130)
    elif damage == "other":
        np.save(path, np.zeros((2, 2)))
    else:
        path.unlink()
    with pytest.raises(StoreError, match=rf"{path.name} (cannot be read|is float64\[2, 2\])"):
        list(store.shards())
