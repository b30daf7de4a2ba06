"""What is indexed: items, where each is from, and their embeddings, in a folder.

`items.sqlite` knows the files and the items of each (a picture is one, a file of sentences has one
a line) and where their embeddings lie: `<number>.npy`, float32 [n, d], at most `SHARD` rows each.
An item's number is its row in all of these, one behind the other. Files are compared by size and
time of change, so that only new and changed ones are encoded. A shard is written whole before the
database names it, in one transaction: killed at any moment, a store is as it was before the last
shard. Neither needs memory that grows with the folder.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

DATABASE = "items.sqlite"
# Of this layout.
VERSION = 1
# Rows of a shard: 64 MiB of 1,024 channels. Of one that is not full the next rows make it so.
SHARD = 16_384

_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE shards (number INTEGER PRIMARY KEY, place INTEGER NOT NULL, rows INTEGER NOT NULL);
CREATE TABLE files (
    number INTEGER PRIMARY KEY, root TEXT NOT NULL, path TEXT NOT NULL,
    size INTEGER NOT NULL, changed INTEGER NOT NULL, problem TEXT, UNIQUE (root, path)
);
CREATE TABLE items (
    shard INTEGER NOT NULL, place INTEGER NOT NULL, file INTEGER NOT NULL,
    line INTEGER, text TEXT, PRIMARY KEY (shard, place)
) WITHOUT ROWID;
CREATE INDEX items_of_file ON items (file);
"""


class StoreError(Exception):
    """A folder that is no index, or not one for what is asked: says which and what to do."""


class File(NamedTuple):
    """A file below a root folder.

    Attributes:
      path: relative to the root.
      size: in bytes.
      changed: when, in nanoseconds.
    """

    path: str
    size: int
    changed: int


class Item(NamedTuple):
    """What was found: a picture, or a line of a file of sentences.

    Attributes:
      root: the folder that was indexed.
      path: of the file in it.
      line: from 1; None of a picture.
      text: the sentence; None of a picture.
    """

    root: str
    path: str
    line: int | None = None
    text: str | None = None

    @property
    def where(self) -> Path:
        """The file."""
        return Path(self.root, self.path)


class Row(NamedTuple):
    """An item of a file, to be added with its embedding."""

    line: int | None
    text: str | None
    embedding: Float[np.ndarray, " d"]


class Encoded(NamedTuple):
    """A file's items, or the next of them.

    Attributes:
      file: as it was when it was read.
      rows: of it; none of a file that could not be read.
      problem: why it could not be.
      is_last: whether no more come of this file. Until then it counts as changed.
    """

    file: File
    rows: Sequence[Row] = ()
    problem: str | None = None
    is_last: bool = True


class Store:
    """An index's items and embeddings; see the module.

    Attributes:
      folder: where it is.
      about: what was said when it was made.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Opens the store in a folder; with `about`, what it is of, makes it if there is none.

        Raises:
          StoreError: there is none, it is of something else, or it cannot be read or written.
        """
        self.folder = folder
        path = folder / DATABASE
        if about is None and not path.exists():
            raise StoreError(f"{folder} has no index: make one with python -m vse_jax.search index")
        with self._told():
            if about is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None)
            if about is not None and not self._is_made():
                self._make({"version": VERSION, **about})
            if not self._is_made():
                raise StoreError(f"{path} is no index of vse_jax")
        self.about: dict[str, Any] = {
            name: json.loads(value) for name, value in self._all("SELECT name, value FROM about")
        }
        if self.about["version"] != VERSION:
            raise StoreError(
                f"{folder} is an index of layout {self.about['version']}, this program's is "
                f"{VERSION}: make it anew in another folder"
            )

    def _is_made(self) -> bool:
        return bool(self._all("SELECT 1 FROM sqlite_master WHERE name = 'about'"))

    def _make(self, about: Mapping[str, Any]) -> None:
        with self._together():
            for statement in _TABLES.split(";"):
                self._database.execute(statement)
            told = [(name, json.dumps(value)) for name, value in about.items()]
            self._database.executemany("INSERT INTO about VALUES (?, ?)", told)
            self._database.execute("INSERT INTO about VALUES ('generation', '0')")

    @property
    def generation(self) -> int:
        """How often the items have changed: another one, and what was made of them is old."""
        [(value,)] = self._all("SELECT value FROM about WHERE name = 'generation'")
        return int(value)

    def __len__(self) -> int:
        [(count,)] = self._all("SELECT coalesce(sum(rows), 0) FROM shards")
        return int(count)

    @property
    def width(self) -> int:
        """Channels of an embedding."""
        return int(self.about["dimension"])

    def shards(self) -> Iterator[tuple[int, Float[np.ndarray, "n d"]]]:
        """(number of the first item, embeddings of it and those after it), memory-mapped."""
        start = 0
        for number, rows in self._all("SELECT number, rows FROM shards ORDER BY place"):
            yield start, self._embeddings(number, rows)
            start += rows

    def embeddings(self, numbers: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k d"]:
        """Of the items of these numbers."""
        found = np.empty((len(numbers), self.width), np.float32)
        for start, rows in self.shards():
            here = (numbers >= start) & (numbers < start + len(rows))
            found[here] = rows[numbers[here] - start]
        return found

    def items(self, numbers: Iterable[int]) -> list[Item]:
        """Those of these numbers, in their order."""
        layout = self._all("SELECT number, rows FROM shards ORDER BY place")
        ends = np.cumsum([rows for _, rows in layout])
        found = []
        for number in numbers:
            at = int(np.searchsorted(ends, number, side="right"))
            shard, rows = layout[at]
            place = int(number) - (int(ends[at]) - rows)
            [row] = self._all(
                "SELECT root, path, line, text FROM items JOIN files ON files.number = file "
                "WHERE shard = ? AND place = ?",
                shard, place,
            )  # fmt: skip
            found.append(Item(*row))
        return found

    def problems(self, root: Path) -> Iterator[tuple[str, str]]:
        """(path, why it could not be read) of the files of a folder."""
        yield from self._all(
            "SELECT path, problem FROM files WHERE root = ? AND problem IS NOT NULL ORDER BY path",
            str(root),
        )

    def compare(self, root: Path, files: Iterable[File]) -> "Changes":
        """What is to be done so that the store has these files of a folder, and no others of it.

        Args:
          root: the folder.
          files: all that are in it now.
        """
        with self._told():
            self._remove_unknown()
            run = self._database.execute
            run("DROP TABLE IF EXISTS temp.seen")
            run("CREATE TEMP TABLE seen (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER)")
            with self._together():
                self._database.executemany("INSERT INTO seen VALUES (?, ?, ?)", files)
            same = (
                "SELECT 1 FROM files WHERE root = ?1 AND files.path = seen.path AND "
                "files.size = seen.size AND files.changed = seen.changed"
            )
            run("DROP TABLE IF EXISTS temp.wanted")
            run(
                "CREATE TEMP TABLE wanted AS SELECT path, size, changed FROM seen "
                f"WHERE NOT EXISTS ({same}) ORDER BY path",
                (str(root),),
            )
            counts = [
                run(f"SELECT count(*) FROM {of}", values).fetchone()[0]
                for of, values in (
                    ("seen", ()),
                    ("wanted", ()),
                    (
                        "wanted JOIN files ON files.path = wanted.path WHERE root = ?",
                        (str(root),),
                    ),
                    (
                        "files WHERE root = ? AND path NOT IN (SELECT path FROM seen)",
                        (str(root),),
                    ),
                )
            ]
        return Changes(*counts)

    def wanted(self) -> Iterator[File]:
        """The new and changed files of the last `compare`, by name."""
        start = 0
        while rows := self._all(
            "SELECT rowid, path, size, changed FROM wanted WHERE rowid > ? "
            "ORDER BY rowid LIMIT 1000",
            start,
        ):
            start = rows[-1][0]
            for _, *file in rows:
                yield File(*file)

    def forget_missing(self, root: Path) -> None:
        """Removes what the last `compare` did not find, or found changed."""
        gone = (
            "SELECT number FROM files WHERE root = ?1 AND (path NOT IN (SELECT path FROM seen) "
            "OR path IN (SELECT path FROM wanted))"
        )
        with self._told():
            self._forget(gone, str(root))

    def forget_root(self, root: Path) -> None:
        """Removes every file of a folder."""
        with self._told():
            self._forget("SELECT number FROM files WHERE root = ?1", str(root))

    def roots(self) -> list[tuple[str, int]]:
        """The folders that are indexed, and how many items each has."""
        return self._all(
            "SELECT root, count(items.file) FROM files LEFT JOIN items ON files.number = file "
            "GROUP BY root ORDER BY root"
        )

    def add(self, root: Path, encoded: Iterable[Encoded]) -> Iterator[int]:
        """Adds files with their items; yields how many items are safe, shard by shard.

        Args:
          root: the folder that they are in.
          encoded: in any order; they are taken up as they come.
        """
        waiting: list[Encoded] = []
        rows = 0
        for each in encoded:
            waiting.append(each)
            rows += len(each.rows)
            if rows >= SHARD:
                self._commit(root, waiting)
                yield rows
                waiting, rows = [], 0
        if waiting:
            self._commit(root, waiting)
            yield rows

    def _commit(self, root: Path, encoded: Sequence[Encoded]) -> None:
        """Makes files and their items part of the store, all or none of them."""
        new = [row.embedding for each in encoded for row in each.rows]
        rows = np.asarray(new, np.float32).reshape(-1, self.width)
        with self._told():
            # A last shard that is not full is written again, with new rows behind its own.
            last = self._all("SELECT number, rows FROM shards ORDER BY place DESC LIMIT 1")
            begun = [shard for shard in last if new and shard[1] < SHARD]
            rows = np.concatenate([*(self._embeddings(*shard) for shard in begun), rows])
            start = len(rows) - len(new)
            parts = [rows[first : first + SHARD] for first in range(0, len(rows), SHARD)]
            number = self._next_shard()
            for offset, part in enumerate(parts):
                self._write(number + offset, part)
            with self._together():
                items = self._put_files(root, encoded)
                run = self._database.execute
                for shard, _ in begun:
                    run("UPDATE items SET shard = ? WHERE shard = ?", (number, shard))
                    run("DELETE FROM shards WHERE number = ?", (shard,))
                for offset, part in enumerate(parts):
                    run(
                        "INSERT INTO shards SELECT ?1, coalesce(max(place), 0) + 1, ?2 FROM shards",
                        (number + offset, len(part)),
                    )
                self._database.executemany(
                    "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
                    [
                        (number + row // SHARD, row % SHARD, *item)
                        for row, item in enumerate(items, start)
                    ],
                )
                self._changed()
            for shard, _ in begun:
                self._remove(shard)

    def _put_files(
        self, root: Path, encoded: Sequence[Encoded]
    ) -> list[tuple[int, int | None, str | None]]:
        """Names the files in the database; (number of the file, line, text) of each item."""
        items: list[tuple[int, int | None, str | None]] = []
        for file, rows, problem, is_last in encoded:
            # Of no file that there is, so that a file that is not done is encoded again.
            size, changed = (file.size, file.changed) if is_last else (-1, -1)
            [(number,)] = self._database.execute(
                "INSERT INTO files (root, path, size, changed, problem) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (root, path) DO UPDATE SET size = excluded.size, "
                "changed = excluded.changed, problem = excluded.problem RETURNING number",
                (str(root), file.path, size, changed, problem),
            ).fetchall()
            items += [(number, row.line, row.text) for row in rows]
        return items

    def _forget(self, files: str, root: str) -> None:
        """Removes the files that a query names, and their items from the shards."""
        run = self._database.execute
        run("DROP TABLE IF EXISTS temp.gone")
        run(f"CREATE TEMP TABLE gone AS {files}", (root,))
        if not self._all("SELECT 1 FROM gone LIMIT 1"):
            return
        touched = self._all(
            "SELECT DISTINCT shards.number, rows FROM items JOIN shards ON shards.number = shard "
            "WHERE file IN gone ORDER BY shards.place"
        )
        for shard, count in touched:
            kept = [
                place
                for (place,) in self._all(
                    "SELECT place FROM items WHERE shard = ? AND file NOT IN gone ORDER BY place",
                    shard,
                )
            ]
            new = self._next_shard()
            if kept:
                self._write(new, self._embeddings(shard, count)[kept])
            with self._together():
                run("DELETE FROM items WHERE shard = ? AND file IN gone", (shard,))
                self._database.executemany(
                    "UPDATE items SET shard = ?, place = ? WHERE shard = ? AND place = ?",
                    [(new, place, shard, old) for place, old in enumerate(kept)],
                )
                if kept:
                    run(
                        "UPDATE shards SET number = ?, rows = ? WHERE number = ?",
                        (new, len(kept), shard),
                    )
                else:
                    run("DELETE FROM shards WHERE number = ?", (shard,))
                self._changed()
            self._remove(shard)
        with self._together():
            run("DELETE FROM files WHERE number IN gone")

    def _changed(self) -> None:
        self._database.execute(
            "UPDATE about SET value = CAST(value AS INTEGER) + 1 WHERE name = 'generation'"
        )

    def _next_shard(self) -> int:
        """A number that no shard of the database has."""
        return next(iter(self._all("SELECT coalesce(max(number), 0) + 1 FROM shards")))[0]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.npy"

    def _write(self, number: int, rows: Float[np.ndarray, "n d"]) -> None:
        """Writes a shard that no one knows yet."""
        with open(self._path(number), "wb") as file:
            np.save(file, np.ascontiguousarray(rows))
            file.flush()
            os.fsync(file.fileno())

    def _embeddings(self, number: int, rows: int) -> Float[np.ndarray, "n d"]:
        path = self._path(number)
        try:
            found = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be read: {error}; while the index is brought up to date ask again, "
                "else make it anew"
            ) from error
        if found.shape != (rows, self.width) or found.dtype != np.float32:
            raise StoreError(
                f"{path} is {found.dtype}{list(found.shape)}; expected float32"
                f"[{rows}, {self.width}]: make the index anew"
            )
        return found

    def _remove_unknown(self) -> None:
        """Removes the shards that were written and, as the program was killed, never named."""
        known = {self._path(number) for (number,) in self._all("SELECT number FROM shards")}
        for path in self.folder.glob("*.npy"):
            if path not in known:
                path.unlink()

    def _remove(self, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(number).unlink()

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._told():
            return self._database.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """All of the changes inside, or none."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what the disk and the database say into one error that names the folder."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            told = getattr(error, "strerror", None) or str(error)
            raise StoreError(
                f"{self.folder}: the index cannot be read or written: {told}"
            ) from error


class Changes(NamedTuple):
    """Of a folder against a store.

    Attributes:
      files: that are there.
      wanted: of them those that are new or changed.
      changed: of these those that the store has in an earlier state.
      missing: files of the store that are gone.
    """

    files: int
    wanted: int
    changed: int
    missing: int
