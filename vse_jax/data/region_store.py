"""Features that lie in others' files, read once into the cache and memory-mapped from there."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vse_jax.data import feature_files, features, region_files, scan_files
from vse_jax.data.region_files import Found
from vse_jax.data.regions import Regions
from vse_jax.data.split import DataError

log = logging.getLogger(__name__)
# Counts changes of what is stored.
VERSION = 1
ROWS, BOXES = "rows.f32", "boxes.f32"


class Stored(NamedTuple):
    """Every picture of a source.

    Attributes:
      names: n, as the source has them.
      regions: of the n pictures; the count may be 0.
      digests: SHA-256 (hex) of each picture's features and boxes.
    """

    names: list[str]
    regions: Regions
    digests: list[str]


def stored(source: Path, data_dir: str | os.PathLike[str]) -> Stored:
    """The features of a .tsv, or of a folder: see `region_files.files`.

    They are read when the source is new or a size or a time of change in it is, and then lie in
    `data_dir`, a region after the other.

    Raises:
      DataError: anything wrong in the source, with file and line; or the cache cannot be written.
    """
    paths = region_files.files(source)
    stamps = [(os.path.abspath(p), (s := os.stat(p)).st_size, s.st_mtime_ns) for p in paths]
    key = features.key(version=VERSION, regions=stamps)
    folder = features.find(data_dir, key)
    if folder is None:
        log.info("reading the features of %s, once", source)
        features.write_folder(data_dir, key, lambda partial: _write(partial, paths, data_dir))
        folder = features.find(data_dir, key)
    if folder is None:
        raise DataError(f"features {key} are gone from {data_dir}; start again")
    return _load(folder)


def _pictures(paths: list[Path], data_dir: str | os.PathLike[str]) -> Iterator[Found]:
    if any(path.name.endswith("_ims.npy") for path in paths):
        for picture in scan_files.named(paths[0].parent, data_dir):
            name, found, boxes, where = picture
            boxes = None if boxes is None else np.asarray(boxes, np.float32)
            yield Found(name, np.asarray(found, np.float32), boxes, where)
        return
    for path in paths:
        if path.suffix == ".npz":
            yield region_files.read_npz(path)
        else:
            yield from region_files.read_tsv(path)


def _write(folder: Path, paths: list[Path], data_dir: str | os.PathLike[str]) -> None:
    """Writes every picture's rows behind each other, and last what tells them apart."""
    seen: dict[str, str] = {}
    counts: list[int] = []
    digests: list[str] = []
    first: Found | None = None
    with open(folder / ROWS, "wb") as rows, open(folder / BOXES, "wb") as boxes:
        for found in _pictures(paths, data_dir):
            if seen.setdefault(found.name, found.where) != found.where:
                raise DataError(
                    f"{found.where}: {found.name} a second time, first at {seen[found.name]}"
                )
            if len(found.features):
                first = first or found
                _check_like(found, first)
            both = found.features.tobytes(), b"" if found.boxes is None else found.boxes.tobytes()
            rows.write(both[0])
            boxes.write(both[1])
            digests.append(hashlib.sha256(b"".join(both)).hexdigest())
            counts.append(len(found.features))
        if first is None:
            raise DataError(f"{paths[0]}: no picture with features in it")
        for file in (rows, boxes):
            file.flush()
            os.fsync(file.fileno())
    index = {
        "names": list(seen),
        "counts": counts,
        "digests": digests,
        "width": first.features.shape[1],
        "boxes": first.boxes is not None,
    }
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "done.json").write_text(json.dumps([str(path) for path in paths[:100]]))


def _check_like(found: Found, first: Found) -> None:
    """Raises DataError where a picture's features are not finite, or not of the first's kind."""
    width = first.features.shape[1]
    if found.features.shape[1] != width:
        raise DataError(
            f"{found.where}: features of width {found.features.shape[1]}, but of {width} at "
            f"{first.where}"
        )
    if (found.boxes is None) != (first.boxes is None):
        with_, without = (found, first) if first.boxes is None else (first, found)
        raise DataError(
            f"{without.where}: no boxes, or no image_w and image_h for them, but {with_.where} has "
            "them; give every picture boxes, or none"
        )
    feature_files.check_finite(
        found.features, lambda row: f"{found.where}: region {row} of {found.name}"
    )


def _load(folder: Path) -> Stored:
    try:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text())
        count = np.array(index["counts"], np.int64)
        rows = _mapped(folder / ROWS, (int(count.sum()), index["width"]))
        boxes = _mapped(folder / BOXES, (len(rows), 4)) if index["boxes"] else None
        names, digests = list(index["names"]), list(index["digests"])
    except (OSError, ValueError, LookupError) as error:
        raise DataError(f"{folder}: cached features are damaged ({error}); delete it") from error
    return Stored(names, Regions(rows, np.cumsum(count) - count, count, boxes), digests)


def _mapped(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A file of nothing but float32 numbers, memory-mapped; ValueError where it has others."""
    if path.stat().st_size != 4 * shape[0] * shape[1]:
        raise ValueError(f"{path.name} is not of {list(shape)} numbers")
    return np.memmap(path, np.float32, "r", shape=shape)
