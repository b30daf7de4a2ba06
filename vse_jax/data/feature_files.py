"""Arrays of features in .npy files: opened without reading them, each looked through once."""

import dataclasses
import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vse_jax.data import whole_file
from vse_jax.data.split import DataError

log = logging.getLogger(__name__)
CHUNK = 2**26  # bytes looked at together
# What NumPy raises of .npy and .npz files that are damaged, or without what they should have.
DAMAGED = (
    OSError, ValueError, EOFError, LookupError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
# Changes whenever the same file would be found to be something else.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Finding:
    """What reading all of a file once showed.

    Attributes:
      digest: SHA-256 (hex) of its numbers.
      repeats: bool [rows], whether a row equals the one before.
    """

    digest: str
    repeats: np.ndarray


def opened(path: Path) -> np.ndarray:
    """The features [n, r, f], or [n, f] with one region a picture, of a file, memory-mapped.

    Raises:
      DataError: the file is missing, cut short, no .npy, or of another rank or type.
    """
    array = opened_array(path)
    if array.ndim not in (2, 3) or not np.issubdtype(array.dtype, np.floating) or not array.size:
        raise DataError(
            f"{path}: {array.dtype}{list(array.shape)}; expected float32 [pictures, regions, "
            "width], or [pictures, width] with one region a picture"
        )
    return array


def opened_array(path: Path) -> np.ndarray:
    """Any array of a file, memory-mapped; raises DataError where it is none."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path}: no whole .npy file ({error}); was its download or copy cut short?"
        ) from error
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        raise DataError(f"{path}: expected one .npy array in C order, the last axis the fastest")
    return array


def inspected(
    path: Path, array: np.ndarray, data_dir: str | os.PathLike[str], name: Callable[[int], str]
) -> Finding:
    """What reading all of the array shows; remembered in `data_dir` for an unchanged file.

    Args:
      path: the file.
      array: from `opened`.
      data_dir: where prepared data go.
      name: of the picture of a row, for messages.

    Raises:
      DataError: a feature is NaN or infinite, or the file or `data_dir` is not as it must be.
    """
    key = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:16]
    cache = Path(data_dir).expanduser() / "inspected" / f"{key}.npz"
    status = os.stat(path)
    stamp = np.array([VERSION, status.st_size, status.st_mtime_ns])
    known = _remembered(cache, stamp)
    if known is not None:
        return known
    log.info("looking through %s (%.1f GB), once", path, array.nbytes / 1e9)
    digest = hashlib.sha256(str((array.shape, array.dtype.str)).encode())
    repeats = np.zeros(len(array), bool)
    step = max(1, CHUNK // (array.nbytes // len(array)))
    last = None
    for first in range(0, len(array), step):
        chunk = np.asarray(array[first : first + step])
        check_finite(chunk, lambda row: f"{path}: row {row}, {name(row)}", first)
        digest.update(chunk.data)
        flat = chunk.reshape(len(chunk), -1)
        repeats[first + 1 : first + len(chunk)] = (flat[1:] == flat[:-1]).all(axis=1)
        repeats[first] = last is not None and np.array_equal(flat[0], last)
        last = flat[-1].copy()
    found = Finding(digest.hexdigest(), repeats)
    whole_file.write(
        cache, lambda file: np.savez(file, stamp=stamp, repeats=repeats, digest=found.digest)
    )
    return found


def check_finite(features: np.ndarray, where: Callable[[int], str], first: int = 0) -> None:
    """Raises DataError at the first row that is not finite as float32.

    Args:
      features: [n, r, f] or [n, f].
      where: of the number of a row, for the message.
      first: number of the first row.
    """
    with np.errstate(over="ignore"):
        finite = np.isfinite(features.astype(np.float32, copy=False))
    if finite.all():
        return
    row, *region, channel = np.argwhere(~finite)[0].tolist()
    part = f", region {region[0]}" if region else ""
    value = features[(row, *region, channel)]
    raise DataError(
        f"{where(first + row)}{part}: feature {channel} is {value}; features must be finite"
    )


def _remembered(cache: Path, stamp: np.ndarray) -> Finding | None:
    """What was found of a file of this size and time of change; None where nothing was."""
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as kept:
            if np.array_equal(kept["stamp"], stamp):
                return Finding(str(kept["digest"]), kept["repeats"])
    except DAMAGED:
        pass
    return None
