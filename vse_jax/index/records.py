"""What an index has, and what is put into it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


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
      again: whether it counts as changed even so: the problem may be gone another time.
    """

    file: File
    rows: Sequence[Row] = ()
    problem: str | None = None
    is_last: bool = True
    again: bool = False


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
