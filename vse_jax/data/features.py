"""A frozen backbone runs once: its features, cached beside the data and memory-mapped."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
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
    store: bool = True,
) -> None:
    """Computes the features of every split and stores them under the key, all or nothing.

    They are written into a folder of another name, which gets its own when all is done.

    Args:
      data_dir: where prepared data go.
      digest: from `key`.
      splits: name -> (pictures n, a function that yields float32 [b, r, f] in order; rows
        beyond n are padding).
      store: False in the processes that only take part in the computation.

    Raises:
      DataError: the folder cannot be written or the disk is full.
    """
    folder = _folder(data_dir, digest)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        if store:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        for name, (count, batches) in splits.items():
            _write_split(partial / f"{name}.npy" if store else None, count, batches())
        if store:
            (partial / "done.json").write_text(json.dumps(sorted(splits)))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    except OSError as error:
        raise DataError(
            f"{partial}: features cannot be written: {error.strerror or error}; free some space "
            "or set config field 'data.data_dir' to another place"
        ) from error


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


def _write_split(path: Path | None, count: int, batches: Iterator[np.ndarray]) -> None:
    """Appends the batches to an .npy file (plain writes: a full disk is then an OSError)."""
    row = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "wb")) if path is not None else None
        for batch in batches:
            batch = np.ascontiguousarray(batch[: count - row], np.float32)
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
