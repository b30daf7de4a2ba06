"""What is looked at below a folder, what is told of the rest, and what processes share."""

import os
from collections import Counter
from pathlib import Path

import pytest
from stores import empty

from vse_jax import indexing
from vse_jax.data.split import DataError
from vse_jax.index import store as stores
from vse_jax.index.database import StoreError
from vse_jax.index.records import Encoded, File

PNG = frozenset({".png"})


def below(root):
    """Paths that are found, and what is told of others."""
    told = {}
    found = indexing.files_below(root, PNG, told.__setitem__, Counter())
    return sorted(file.path for file in found), told


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_only_regular_files_are_looked_at(tmp_path):
    touch(tmp_path, "a.png", "more/b.PNG", "c.txt", ".d.png", ".more/e.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "nothing.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    (tmp_path / "folder.png").symlink_to(tmp_path / "more")
    assert below(tmp_path) == (
        ["a.png", "link.png", "more/b.PNG"],
        {
            "pipe.png": "it is no regular file",
            "folder.png": "it is no regular file",
            "round.png": "Too many levels of symbolic links",
        },
    )


def test_names_that_are_not_utf_8_are_told(tmp_path):
    latin = os.fsdecode(b"caf\xe9")
    touch(tmp_path, "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png", f"{latin}.png", f"{latin}/b.png")
    found, told = below(tmp_path)
    assert found == ["caf\N{LATIN SMALL LETTER E WITH ACUTE}.png"]
    why = "its name is not in UTF-8: rename it"
    assert told == {r"caf\xe9.png": why, r"caf\xe9/b.png": why}
    with pytest.raises(StoreError, match=r"the name of .*caf\\xe9 is not in UTF-8: rename it"):
        indexing.check_root(empty(tmp_path / "index"), tmp_path / latin, "images")


def without_permission(monkeypatch, folder):
    """To look into this folder, though root may."""
    scandir = os.scandir

    def refusing(path):
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(indexing.os, "scandir", refusing)


def test_a_folder_that_cannot_be_read_is_told_and_keeps_what_it_had(tmp_path, monkeypatch):
    root = tmp_path / "root"
    touch(tmp_path, "root/a.png")
    touch(root, "b/c.png", "b/d.png", "b2.png", "b!.png")
    store = empty(tmp_path / "index")

    def looked():
        unread = []
        found = indexing.files_below(root, PNG, lambda path, _: unread.append(path), Counter())
        changes = store.compare(root, found, unread)
        store.forget_missing(root)
        return changes, [file.path for file in store.wanted()]

    changes, wanted = looked()
    assert wanted == ["a.png", "b!.png", "b/c.png", "b/d.png", "b2.png"]
    known = [File(path, *os.stat(root / path)[6:7], (root / path).stat().st_mtime_ns)
             for path in wanted]  # fmt: skip
    for _ in store.add(root, map(Encoded, known)):
        pass
    with monkeypatch.context() as patch:
        without_permission(patch, root / "b")
        assert below(root) == (["a.png", "b!.png", "b2.png"], {"b": "Permission denied"})
        (root / "b!.png").unlink()
        changes, wanted = looked()
        assert (changes.missing, wanted) == (1, [])
    (root / "b" / "c.png").unlink()
    changes, wanted = looked()
    assert (changes.files, changes.missing, wanted) == (3, 1, [])
    without_permission(monkeypatch, root)
    with pytest.raises(DataError, match=f"{root} cannot be read: Permission denied"):
        below(root)


@pytest.mark.parametrize(
    ("known", "root", "message"),
    [
        ("/a", "/a/b", "/a/b lies in /a, which is indexed as a whole: index that"),
        ("/a/b", "/a", "/a/b lies in /a and is indexed by itself: take it out first, by "
                       "--images=/a/b --forget"),
        ("/a", "/a", None),
        ("/a", "/ab", None),
        # Hidden from whom indexes the other.
        ("/a", "/a/.b/c", None),
    ],
)  # fmt: skip
def test_a_file_is_in_one_folder_that_is_indexed(tmp_path, known, root, message):
    store = empty(tmp_path)
    list(store.add(Path(known), [Encoded(File("x.png", 1, 1), problem="none")]))
    assert store.roots() == [known]
    if message is None:
        indexing.check_root(store, Path(root), "images")
    else:
        with pytest.raises(StoreError, match=f"^{message}$"):
            indexing.check_root(store, Path(root), "images")


def test_sentences_are_read_once_for_all_processes(tmp_path):
    """A file that changes after it was shared is read as it was, by all alike."""
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "folder.txt").mkdir()
    files = [File("a.txt", 9, 1), File("folder.txt", 1, 1), File("gone.txt", 1, 1)]
    indexing._share_wanted(tmp_path, indexing._sentences(tmp_path, files))
    (tmp_path / "a.txt").write_text("another\n")
    one, two, *others = indexing._wanted(tmp_path)
    assert (one.file, one.line, one.text, one.is_last) == (files[0], 1, "one", False)
    assert (two.file, two.line, two.text, two.is_last) == (files[0], 3, "two", True)
    assert [(each.file, each.problem, each.again) for each in others] == [
        (files[1], "it cannot be read: Is a directory", True),
        (files[2], "it cannot be read: No such file or directory", True),
    ]


def test_what_could_not_be_read_is_tried_again(tmp_path):
    """And what is no picture is not, until it changes."""
    store, root = empty(tmp_path), Path("/a")
    files = [File(f"{name}.png", 1, 1) for name in ("broken", "busy")]
    store.compare(root, files)
    list(store.add(root, [Encoded(files[0], problem="no picture"),
                          Encoded(files[1], problem="the disk failed", again=True)]))  # fmt: skip
    assert store.compare(root, files).wanted == 1
    assert list(store.wanted()) == files[1:]
    assert stores.Store(tmp_path).roots() == ["/a"]
