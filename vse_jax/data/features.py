"""A frozen backbone runs once: its features, cached beside the data and memory-mapped."""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from vse_jax.data.split import DataError

log = logging.getLogger(__name__)


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
    splits: Mapping[str, tuple[int, Callable[[], Iterator[np.ndarray]]]],
    named: Callable[[str, int], str],
    store: bool = True,
) -> None:
    """Computes the features of every split and stores them under the key, all or nothing.

    They are written into a folder of another name, which gets its own when all is done.

    Args:
      data_dir: where prepared data go.
      digest: from `key`.
      splits: name -> (pictures n, a function that yields float32 [b, r, f] in order; rows
        beyond n are padding).
      named: (split, row) -> what the row is of, for messages.
      store: False in the processes that only take part in the computation.

    Raises:
      DataError: the folder cannot be written or the disk is full, or a feature is not finite.
    """
    if not store:
        for name, (count, batches) in splits.items():
            _write_split(None, count, batches(), functools.partial(named, name))
        return

    def fill(folder: Path) -> None:
        for name, (count, batches) in splits.items():
            _write_split(folder / f"{name}.npy", count, batches(), functools.partial(named, name))
        (folder / "done.json").write_text(json.dumps(sorted(splits)))

    write_folder(data_dir, digest, fill)


def write_folder(
    data_dir: str | os.PathLike[str], digest: str, fill: Callable[[Path], None]
) -> None:
    """The folder of a key, all or nothing.

    Args:
      data_dir: where prepared data go.
      digest: from `key`.
      fill: writes into the folder that it is given, at last a file `done.json`.

    Raises:
      DataError: the folder cannot be written or the disk is full.
    """
    folder = _folder(data_dir, digest)
    try:
        with _partial(folder) as partial:
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
def _partial(folder: Path) -> Iterator[Path]:
    """A folder for this run alone, gone afterwards; those that killed runs left are removed.

    A lock that dies with its process tells which these are.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.glob(f"{folder.name}.*.partial"):
        with contextlib.suppress(OSError), open(other / "lock", "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(".partial", f"{folder.name}.", folder.parent))
    try:
        with open(partial / "lock", "w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


def _write_split(
    path: Path | None, count: int, batches: Iterator[np.ndarray], named: Callable[[int], str]
) -> None:
    """Appends the batches to an .npy file (plain writes: a full disk is then an OSError)."""
    row = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "wb")) if path is not None else None
        for batch in batches:
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
