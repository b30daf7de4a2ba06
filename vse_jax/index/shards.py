"""Rows of an index in files: `<number>.npy`, whole or not there."""

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from vse_jax.index.database import StoreError

# Of shards, whole or not.
_NAMES = re.compile(r"\d{8,}\.(npy|partial)")


class Shard(NamedTuple):
    """A file of rows.

    Attributes:
      number: its name. Another file never has the same.
      rows: how many.
    """

    number: int
    rows: int


class MissingError(StoreError):
    """There is no file of a shard."""


class Files:
    """A folder of shards, all of one width and type."""

    def __init__(self, folder: Path, width: int, dtype: type[np.generic]) -> None:
        self.folder, self._width, self._dtype = folder, width, np.dtype(dtype)

    def path(self, number: int) -> Path:
        """Where a shard is."""
        return self.folder / f"{number:08d}.npy"

    def read(self, shard: Shard) -> Shaped[np.ndarray, "n d"]:
        """Its rows, memory-mapped: what was read stays there when the file is removed.

        Raises:
          MissingError: there is no such file.
          StoreError: it is damaged.
        """
        path = self.path(shard.number)
        try:
            found = np.load(path, mmap_mode="r")
        except FileNotFoundError as error:
            raise MissingError(f"{path} cannot be read: it is gone; make the index anew") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}; make the index anew") from error
        if found.shape != (shard.rows, self._width) or found.dtype != self._dtype:
            raise StoreError(
                f"{path} is {found.dtype}{list(found.shape)}; expected {self._dtype}"
                f"[{shard.rows}, {self._width}]: make the index anew"
            )
        return found

    def write(self, number: int, rows: Shaped[np.ndarray, "n d"]) -> None:
        """Writes a shard, whole or not at all; raises OSError."""
        path = self.path(number)
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            np.save(file, np.ascontiguousarray(rows, self._dtype))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def remove(self, number: int) -> None:
        """Removes a shard, if it is there; raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.path(number).unlink()

    def keep(self, numbers: Collection[int]) -> None:
        """Removes all shards but these, and what a stop left of one; raises OSError."""
        known = {self.path(number) for number in numbers}
        for path in self.folder.iterdir():
            if _NAMES.fullmatch(path.name) and path not in known:
                path.unlink()
