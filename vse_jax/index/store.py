"""What is indexed: items, where each is from, and their embeddings, in a folder.

`items.sqlite` knows the files and the items of each (a picture is one, a file of sentences has one
a line) and where their embeddings lie: `<number>.npy`, float32 [n, d], at most `SHARD` rows each.
An item's number is its row in all of these, one behind the other; its key is the same in whatever
index, and another one when its file changes. Files are compared by size and time of change, so that
only new and changed ones are encoded. A shard is written whole before the database names it, in one
transaction: killed at any moment, a store is as it was half a minute before. Neither needs memory
that grows with the folder.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vse_jax.index.database import Database, StoreError
from vse_jax.index.records import Changes, Encoded, File, Item
from vse_jax.index.shards import Files, MissingError, Shard

# Rows of a shard: 64 MiB of 1,024 channels. Of one that is not full the next rows make it so.
SHARD = 16_384
# Seconds after which what came is made safe though its shard is not full; or so many times what
# the last time took, as the shard's other rows are written again.
PATIENCE, REST = 30.0, 20


class Store:
    """An index's items and embeddings; see the module.

    Attributes:
      folder: where it is.
      about: what was said when it was made.
      database: of it.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Opens the store in a folder; with `about`, what it is of, makes it if there is none.

        Raises:
          StoreError: there is none, it is of something else, or it cannot be read or written.
        """
        self.database = Database(folder, about)
        self.folder, self.about = folder, self.database.about
        self._files = Files(folder, self.width, np.float32)

    @property
    def generation(self) -> int:
        """How often the items have changed: another one, and what was made of them is old."""
        return self.database.generation

    def __len__(self) -> int:
        [(count,)] = self.database.all("SELECT coalesce(sum(rows), 0) FROM shards")
        return int(count)

    @property
    def width(self) -> int:
        """Channels of an embedding."""
        return int(self.about["dimension"])

    def layout(self) -> list[Shard]:
        """The shards, in the order of the items' numbers."""
        found = self.database.all("SELECT number, rows FROM shards ORDER BY place")
        return [Shard(*shard) for shard in found]

    def read(self, shard: Shard) -> Float[np.ndarray, "n d"]:
        """The embeddings of a shard, memory-mapped; raises as `shards`."""
        return self._files.read(shard)

    def shards(self) -> Iterator[tuple[int, Float[np.ndarray, "n d"]]]:
        """(number of the first item, embeddings of it and those after it), memory-mapped.

        All are opened at once: one that is replaced meanwhile is still read as it was.

        Raises:
          StoreError: one is damaged or gone.
        """
        start, waiting = 0, deque(self._opened())
        while waiting:
            rows = waiting.popleft()  # held by none, so that its memory is given back
            yield start, rows
            start += len(rows)

    def _opened(self) -> list[Float[np.ndarray, "n d"]]:
        layout = self.layout()
        while True:
            try:
                return [self.read(shard) for shard in layout]
            except MissingError:
                # Another process may have replaced it since the database was asked.
                before, layout = layout, self.layout()
                if layout == before:
                    raise

    def embeddings(self, numbers: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k d"]:
        """Of the items of these numbers."""
        found = np.empty((len(numbers), self.width), np.float32)
        for start, rows in self.shards():
            here = (numbers >= start) & (numbers < start + len(rows))
            found[here] = rows[numbers[here] - start]
        return found

    def items(self, numbers: Iterable[int]) -> list[Item]:
        """Those of these numbers, in their order.

        Raises:
          StoreError: there is none of a number: the items have changed since it was told.
        """
        layout = self.layout()
        ends = np.cumsum([shard.rows for shard in layout])
        found = []
        for number in numbers:
            at = int(np.searchsorted(ends, number, side="right"))
            place = int(number) - (int(ends[at]) - layout[at].rows) if at < len(layout) else 0
            rows = self.database.all(
                "SELECT root, path, line, text FROM items JOIN files ON files.number = file "
                "WHERE shard = ? AND place = ?",
                layout[at].number if at < len(layout) else -1, place,
            )  # fmt: skip
            if not rows:
                raise StoreError(f"{self.folder} has no item {number} any more: ask again")
            found.append(Item(*rows[0]))
        return found

    def numbers(self, keys: Iterable[int]) -> list[int]:
        """Those of the items of these keys; -1 where there is none."""
        starts, start = {}, 0
        for shard in self.layout():
            starts[shard.number] = start
            start += shard.rows
        places = (
            self.database.all("SELECT shard, place FROM items WHERE key = ? LIMIT 1", key)
            for key in keys
        )
        return [starts.get(rows[0][0], -1) + rows[0][1] if rows else -1 for rows in places]

    def digest(self, count: int) -> str:
        """Of the keys of the first items: another one where one is another, or elsewhere."""
        found, left = hashlib.sha256(), count
        for shard in self.layout():
            keys = self.database.all(
                "SELECT key FROM items WHERE shard = ? ORDER BY place LIMIT ?", shard.number, left
            )
            found.update(np.array(keys, np.int64).tobytes())
            left -= len(keys)
        return found.hexdigest()

    def problems(self, root: Path) -> Iterator[tuple[str, str]]:
        """(path, why it could not be read) of the files of a folder."""
        yield from self.database.all(
            "SELECT path, problem FROM files WHERE root = ? AND problem IS NOT NULL ORDER BY path",
            str(root),
        )

    def roots(self) -> list[str]:
        """The folders that are indexed."""
        found = self.database.all("SELECT DISTINCT root FROM files ORDER BY root")
        return [root for (root,) in found]

    def compare(self, root: Path, files: Iterable[File], unread: Collection[str] = ()) -> Changes:
        """What is to be done so that the store has these files of a folder, and no others of it.

        Args:
          root: the folder.
          files: all that are in it now.
          unread: files and folders in it that could not be looked at: what the store has of them
            stays. Looked at after `files`, which may add to it.
        """
        with self.database.told():
            self._files.keep([shard.number for shard in self.layout()])
            run = self.database.run
            run("DROP TABLE IF EXISTS temp.seen")
            run("CREATE TEMP TABLE seen (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER)")
            with self.database.together():
                self.database.run_many("INSERT INTO seen VALUES (?, ?, ?)", files)
                # "0" is what comes after "/".
                self.database.run_many(
                    "INSERT OR IGNORE INTO seen SELECT path, size, changed FROM files "
                    "WHERE root = ?1 AND (path = ?2 OR (path > ?2 || '/' AND path < ?2 || '0'))",
                    ((str(root), place) for place in unread),
                )
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
        while rows := self.database.all(
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
        with self.database.told():
            self._forget(gone, str(root))

    def forget_root(self, root: Path) -> None:
        """Removes every file of a folder."""
        with self.database.told():
            self._forget("SELECT number FROM files WHERE root = ?1", str(root))

    def add(self, root: Path, encoded: Iterable[Encoded]) -> Iterator[int]:
        """Adds files with their items; yields how many more of these are safe, time after time.

        What came before an error or an interruption is safe, too.

        Args:
          root: the folder that they are in.
          encoded: in any order; they are taken up as they come.
        """
        waiting: list[Encoded] = []
        rows, due = 0, time.monotonic() + PATIENCE

        def commit() -> int:
            nonlocal waiting, rows, due
            some, count, begun = waiting, rows, time.monotonic()
            waiting, rows = [], 0
            if some:
                self._commit(root, some)
            now = time.monotonic()
            due = now + max(PATIENCE, REST * (now - begun))
            return count

        try:
            for each in encoded:
                waiting.append(each)
                rows += len(each.rows)
                if rows >= SHARD or time.monotonic() >= due:
                    yield commit()
        except BaseException:
            commit()
            raise
        if waiting:
            yield commit()

    def _commit(self, root: Path, encoded: Sequence[Encoded]) -> None:
        """Makes files and their items part of the store, all or none of them."""
        new = [row.embedding for each in encoded for row in each.rows]
        rows = np.asarray(new, np.float32).reshape(-1, self.width)
        with self.database.told():
            # A last shard that is not full is written again, with new rows behind its own.
            begun = [shard for shard in self.layout()[-1:] if new and shard.rows < SHARD]
            rows = np.concatenate([*map(self.read, begun), rows])
            start = len(rows) - len(new)
            parts = [rows[first : first + SHARD] for first in range(0, len(rows), SHARD)]
            number = self._next_shard()
            for offset, part in enumerate(parts):
                self._files.write(number + offset, part)
            with self.database.together():
                items = self._put_files(root, encoded)
                run = self.database.run
                for shard, _ in begun:
                    run("UPDATE items SET shard = ? WHERE shard = ?", (number, shard))
                    run("DELETE FROM shards WHERE number = ?", (shard,))
                for offset, part in enumerate(parts):
                    run(
                        "INSERT INTO shards SELECT ?1, coalesce(max(place), 0) + 1, ?2 FROM shards",
                        (number + offset, len(part)),
                    )
                self.database.run_many(
                    "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (number + row // SHARD, row % SHARD, *item)
                        for row, item in enumerate(items, start)
                    ],
                )
                if new:
                    self.database.changed()
            for shard, _ in begun:
                self._files.remove(shard)

    def _put_files(
        self, root: Path, encoded: Sequence[Encoded]
    ) -> list[tuple[int, int | None, str | None, int]]:
        """Names the files in the database; (number of the file, line, text, key) of each item."""
        items: list[tuple[int, int | None, str | None, int]] = []
        for file, rows, problem, is_last, again in encoded:
            # Of no file that there is, so that a file that is not done is encoded again.
            size, changed = (file.size, file.changed) if is_last and not again else (-1, -1)
            [(number,)] = self.database.run(
                "INSERT INTO files (root, path, size, changed, problem) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (root, path) DO UPDATE SET size = excluded.size, "
                "changed = excluded.changed, problem = excluded.problem RETURNING number",
                (str(root), file.path, size, changed, problem),
            ).fetchall()
            items += [(number, row.line, row.text, _key(root, file, row.line)) for row in rows]
        return items

    def _forget(self, files: str, root: str) -> None:
        """Removes the files that a query names, and their items from the shards."""
        run = self.database.run
        run("DROP TABLE IF EXISTS temp.gone")
        run(f"CREATE TEMP TABLE gone AS {files}", (root,))
        if not self.database.all("SELECT 1 FROM gone LIMIT 1"):
            return
        # Stopped between two shards, no file is taken for one whose items are all there.
        run("UPDATE files SET size = -1, changed = -1 WHERE number IN gone")
        touched = self.database.all(
            "SELECT DISTINCT shards.number, rows, shards.place FROM items "
            "JOIN shards ON shards.number = shard WHERE file IN gone ORDER BY shards.place"
        )
        for number, rows, place in touched:
            kept = [
                row
                for (row,) in self.database.all(
                    "SELECT place FROM items WHERE shard = ? AND file NOT IN gone ORDER BY place",
                    number,
                )
            ]
            new = self._next_shard()
            if kept:
                self._files.write(new, self.read(Shard(number, rows))[kept])
            with self.database.together():
                run("DELETE FROM items WHERE shard = ? AND file IN gone", (number,))
                self.database.run_many(
                    "UPDATE items SET shard = ?, place = ? WHERE shard = ? AND place = ?",
                    [(new, row, number, old) for row, old in enumerate(kept)],
                )
                run("DELETE FROM shards WHERE number = ?", (number,))
                if kept:
                    run("INSERT INTO shards VALUES (?, ?, ?)", (new, place, len(kept)))
                self.database.changed()
            self._files.remove(number)
        with self.database.together():
            run("DELETE FROM files WHERE number IN gone")

    def _next_shard(self) -> int:
        """A number that no shard has or had."""
        found = self.database.all("SELECT seq FROM sqlite_sequence WHERE name = 'shards'")
        return found[0][0] + 1 if found else 1


def _key(root: Path, file: File, line: int | None) -> int:
    """Of an item: of 63 bits, so that a database elsewhere takes it as a number."""
    told = json.dumps([str(root), *file, line]).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big") >> 1
