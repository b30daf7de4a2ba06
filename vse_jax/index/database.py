"""The SQLite file of an index: its tables, and one error for what goes wrong."""

import contextlib
import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = "items.sqlite"
# Of this layout.
VERSION = 2

# A number of a shard is never given twice: what else is kept of a shard is of its rows for ever.
_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE shards (
    number INTEGER PRIMARY KEY AUTOINCREMENT, place INTEGER NOT NULL, rows INTEGER NOT NULL
);
CREATE TABLE files (
    number INTEGER PRIMARY KEY, root TEXT NOT NULL, path TEXT NOT NULL,
    size INTEGER NOT NULL, changed INTEGER NOT NULL, problem TEXT, UNIQUE (root, path)
);
CREATE TABLE items (
    shard INTEGER NOT NULL, place INTEGER NOT NULL, file INTEGER NOT NULL,
    line INTEGER, text TEXT, key INTEGER NOT NULL, PRIMARY KEY (shard, place)
) WITHOUT ROWID;
CREATE INDEX items_of_file ON items (file);
CREATE INDEX items_by_key ON items (key);
CREATE TABLE copied (key INTEGER PRIMARY KEY);
"""


class StoreError(Exception):
    """A folder that is no index, or not one for what is asked: says which and what to do."""


class Database:
    """The tables of an index.

    Attributes:
      folder: of the index.
      about: what was said when it was made; `id` is its own.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Opens it; with `about`, what it is of, makes it if there is none.

        Raises:
          StoreError: there is none, it is of something else, it cannot be read or written, or one
            is to be made in a folder that has other files.
        """
        self.folder = folder
        path = folder / FILE
        if about is None and not path.exists():
            raise StoreError(f"{folder} has no index: make one with python -m vse_jax.search index")
        with self.told():
            if about is not None and not path.exists():
                _make_folder(folder)
            self._connection = sqlite3.connect(path, isolation_level=None)
            if about is not None and not self._is_made():
                self._make({"version": VERSION, "id": secrets.token_hex(8), **about})
            if not self._is_made():
                raise StoreError(f"{path} is no index of vse_jax")
        self.about: dict[str, Any] = {
            name: json.loads(value) for name, value in self.all("SELECT name, value FROM about")
        }
        if self.about["version"] != VERSION:
            raise StoreError(
                f"{folder} is an index of layout {self.about['version']}, this program's is "
                f"{VERSION}: make it anew in another folder"
            )

    def _is_made(self) -> bool:
        return bool(self.all("SELECT 1 FROM sqlite_master WHERE name = 'about'"))

    def _make(self, about: Mapping[str, Any]) -> None:
        with self.together():
            for statement in _TABLES.split(";"):
                self.run(statement)
            told = [(name, json.dumps(value)) for name, value in about.items()]
            self.run_many("INSERT INTO about VALUES (?, ?)", told)
            self.run("INSERT INTO about VALUES ('generation', '0')")

    @property
    def generation(self) -> int:
        """How often the items have changed: another one, and what was made of them is old."""
        return int(self.noted("generation"))

    def changed(self) -> None:
        """Counts a change of the items; called where it is made, in the same transaction."""
        self.run("UPDATE about SET value = CAST(value AS INTEGER) + 1 WHERE name = 'generation'")

    def note(self, name: str, value: Any) -> None:
        """Keeps what JSON can hold under a name."""
        with self.told():
            self.run("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, json.dumps(value)))

    def noted(self, name: str) -> Any:
        """What was kept last under a name; None of none."""
        found = self.all("SELECT value FROM about WHERE name = ?", name)
        return json.loads(found[0][0]) if found else None

    def run(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        """Runs a statement; raises sqlite3.Error, which `told` turns into one of ours."""
        return self._connection.execute(statement, values)

    def run_many(self, statement: str, values: Any) -> None:
        """Runs a statement for each of the values; raises as `run`."""
        self._connection.executemany(statement, values)

    def all(self, query: str, *values: Any) -> list[Any]:
        """What a query finds.

        Raises:
          StoreError: it cannot be read.
        """
        with self.told():
            return self.run(query, values).fetchall()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """All of the changes inside, or none."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.run("ROLLBACK")
            raise
        self.run("COMMIT")

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Turns what the disk and the database say into one error that names the folder."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            told = getattr(error, "strerror", None) or str(error)
            raise StoreError(
                f"{self.folder}: the index cannot be read or written: {told}"
            ) from error


def _make_folder(folder: Path) -> None:
    """The folder of an index; raises StoreError where somebody keeps other files in it, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    if others:
        raise StoreError(
            f"{folder} is no index and has other files, such as {others[0]}: name a folder for the "
            "index alone (--index)"
        )
