"""A frozen backbone runs once: its features, cached beside the data and memory-mapped."""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from vse_jax.data.split import DataError

log = logging.getLogger(__name__)


class Rows(NamedTuple):
    """The features of a split, to be computed.

    Attributes:
      total: its pictures or captions, n.
      batches: first -> float32 [b, r, f], one after the other from row `first` on; rows beyond n
        are padding.
      together: rows that are computed at once. A run that goes on begins at a multiple of it, so
        that it computes the batches of an undisturbed one.
    """

    total: int
    batches: Callable[[int], Iterator[np.ndarray]]
    together: int = 1


def key(**parts: object) -> str:
    """A digest of everything that the features depend on: data, weights, preprocessing."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def find(data_dir: str | os.PathLike[str], digest: str) -> Path | None:
    """The folder of the features with this key, if they are there and whole."""
    folder = _folder(data_dir, digest)
    return folder if (folder / "done.json").is_file() else None


def write(
    data_dir: str | os.PathLike[str],
    digest: str,
    splits: Mapping[str, Rows],
    named: Callable[[str, int], str],
    store: bool = True,
    agreed: Callable[[int], int] = int,
) -> None:
    """Computes the features of every split and stores them under the key.

    They are written into a folder of another name, which gets its own when all is done. What a run
    that was stopped or killed has written there is kept, and the next one goes on behind it.

    Args:
      data_dir: where prepared data go.
      digest: from `key`.
      splits: by name.
      named: (split, row) -> what the row is of, for messages.
      store: False in the processes that only take part in the computation.
      agreed: the row that the process which stores begins at, in every process.

    Raises:
      DataError: the folder cannot be written or the disk is full, or a feature is not finite.
    """

    def fill(folder: Path | None) -> None:
        for name, rows in splits.items():
            path = None if folder is None else folder / f"{name}.npy"
            first = agreed(0 if path is None else _kept(path, rows))
            if first and store:
                log.info("going on behind %s", named(name, first - 1))
            _write_split(path, rows, first, functools.partial(named, name))
        if folder is not None:
            (folder / "done.json").write_text(json.dumps(sorted(splits)))

    if store:
        write_folder(data_dir, digest, fill, goes_on=True)
    else:
        fill(None)


def write_folder(
    data_dir: str | os.PathLike[str],
    digest: str,
    fill: Callable[[Path], None],
    goes_on: bool = False,
) -> None:
    """The folder of a key, all or nothing.

    Args:
      data_dir: where prepared data go.
      digest: from `key`.
      fill: writes into the folder that it is given, at last a file `done.json`.
      goes_on: whether the folder may be one that a stopped run has left, with what it wrote.

    Raises:
      DataError: the folder cannot be written or the disk is full.
    """
    folder = _folder(data_dir, digest)
    try:
        with _partial(folder, goes_on) as partial:
            fill(partial)
            # Another run may have been faster; what it wrote is as good.
            if not (folder / "done.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
                (folder / "lock").unlink()
    except OSError as error:
        raise DataError(
            f"{folder}: features cannot be written: {error.strerror or error}; free some space "
            "or set config field 'data.data_dir' to another place"
        ) from error


@contextlib.contextmanager
def _partial(folder: Path, goes_on: bool) -> Iterator[Path]:
    """A folder for this run alone, gone afterwards; those that stopped runs left are removed.

    A lock that dies with its process tells which these are. One that goes on takes the first of
    them for its own, and leaves it behind when it is stopped, though not when it fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as locks:
        partial = None
        for other in sorted(folder.parent.glob(f"{folder.name}.*.partial")):
            lock = _taken(other)
            if lock is None:
                continue
            locks.enter_context(lock)
            if goes_on and partial is None:
                partial = other
            else:
                shutil.rmtree(other, ignore_errors=True)
        if partial is None:
            partial = Path(tempfile.mkdtemp(".partial", f"{folder.name}.", folder.parent))
            lock = locks.enter_context(open(partial / "lock", "w"))
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        is_kept = False
        try:
            yield partial
        except (KeyboardInterrupt, SystemExit):
            is_kept = goes_on
            raise
        finally:
            if not is_kept:
                shutil.rmtree(partial, ignore_errors=True)


def _taken(partial: Path) -> IO[str] | None:
    """The lock of a folder that its run has left; None while the run lives."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        lock = stack.enter_context(open(partial / "lock", "r+"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(partial / "lock")  # it may have ended just now, and all of it be in its place
        stack.pop_all()
        return lock
    return None


def load(folder: Path, name: str, count: int) -> np.ndarray:
    """The features [n, r, f] of a split, memory-mapped.

    Raises:
      DataError: the file is missing, damaged or of another number of pictures.
    """
    path = folder / f"{name}.npy"
    try:
        features = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cached features are damaged; delete {folder}") from error
    if len(features) != count:
        raise DataError(f"{path}: features of {len(features)} pictures, expected {count}")
    return features


def _folder(data_dir: str | os.PathLike[str], digest: str) -> Path:
    return Path(data_dir).expanduser() / "features" / digest


def _kept(path: Path, rows: Rows) -> int:
    """The row to begin at: behind those that are whole in what a stopped run has left."""
    try:
        with open(path, "r+b") as file:
            np.lib.format.read_magic(file)
            shape, _, _ = np.lib.format.read_array_header_1_0(file)
            if shape[0] != rows.total:
                return 0
            begin, size = file.tell(), 4 * math.prod(shape[1:])
            whole = (path.stat().st_size - begin) // size
            first = whole if whole == rows.total else whole - whole % rows.together
            file.truncate(begin + first * size)
    except (FileNotFoundError, ValueError):  # none, or not even its header
        return 0
    return first


def _write_split(path: Path | None, rows: Rows, first: int, named: Callable[[int], str]) -> None:
    """Writes the batches from a row on (plain writes: a full disk is then an OSError)."""
    row, count = first, rows.total
    with contextlib.ExitStack() as stack:
        file = None
        if path is not None:
            file = stack.enter_context(open(path, "ab" if first else "wb"))
        for batch in rows.batches(first) if first < count else ():
            batch = np.ascontiguousarray(batch[: count - row], np.float32)
            finite = np.isfinite(batch).reshape(len(batch), -1).all(axis=1)
            if not finite.all():
                raise DataError(
                    f"the features of {named(row + int(np.argmin(finite)))} are not finite; the "
                    "frozen backbone's must be: are the weights damaged, or 'precision' too low?"
                )
            if file is not None:
                if row == 0:
                    header = {"descr": "<f4", "fortran_order": False}
                    np.lib.format.write_array_header_1_0(
                        file, header | {"shape": (count, *batch.shape[1:])}
                    )
                file.write(batch.tobytes())
            row += len(batch)
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
    if row != count:
        raise DataError(f"features of {row} pictures came, expected {count}")
