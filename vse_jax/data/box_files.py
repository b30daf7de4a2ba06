"""Files of boxes: a JSON line for each picture, as scripts/propose_regions.py writes them."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vse_jax.boxes import WHOLE
from vse_jax.data.captions_files import boxes_of, json_lines
from vse_jax.data.split import DataError, Dataset, count_and_name

log = logging.getLogger(__name__)

_LINE = '{"image": name, "boxes": [[y0, x0, y1, x1], ...]}'


def read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """float32 [r, 4] of each of these pictures, as (y0, x0, y1, x1) in [0, 1].

    Boxes of other pictures are told and left out.

    Raises:
      DataError: as `listed`; or pictures that have no boxes there.
    """
    found = listed(path)
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{path} has no boxes of {count_and_name(missing)} pictures of the {len(names)}; "
            f"its first is of {next(iter(found), 'no picture')}"
        )
    if others := sorted(found.keys() - set(names)):
        log.warning("%s: boxes of other pictures: %s", path, count_and_name(others))
    return {name: found[name] for name in names}


def listed(path: Path) -> dict[str, np.ndarray]:
    """float32 [r, 4] of every picture that a file names, as (y0, x0, y1, x1) in [0, 1].

    A line is `{"image": name, "boxes": [[y0, x0, y1, x1], ...]}`.

    Raises:
      DataError: no such file, or a malformed line, with its number.
    """
    found: dict[str, np.ndarray] = {}
    for where, value in json_lines(path, _LINE):
        name = value.get("image") if isinstance(value, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: expected {_LINE}")
        if name in found:
            raise DataError(f"{where}: {name} a second time")
        own = boxes_of(value.get("boxes"), where)
        if own is None or not len(own):
            raise DataError(f"{where}: {name} has no boxes")
        found[name] = own
    return found


def with_regions(dataset: Dataset, path: Path | None) -> Dataset:
    """The data set whose `boxes` are the regions to look at; the last of each is the whole picture.

    Args:
      dataset: its own boxes are the regions where there is no file.
      path: a file for `read`, with boxes of every picture of the data set.

    Raises:
      DataError: as `read`; or there are no boxes.
    """
    names = [name for split in dataset.splits.values() for name in split.images]
    known = None if path is None else read(path, names)
    splits, digest = {}, hashlib.sha256(dataset.fingerprint.encode())
    for name, split in dataset.splits.items():
        own = split.boxes if known is None else [known[image] for image in split.images]
        if own is None:
            raise DataError(
                f"{dataset.name} has no boxes of its pictures, which 'model.image.features' = "
                "'boxes' needs: set 'data.boxes' to a file of them, such as "
                "scripts/propose_regions.py writes"
            )
        boxes = [with_whole(some) for some in own]
        for some in boxes:
            digest.update(str(some.shape).encode() + some.tobytes())
        splits[name] = dataclasses.replace(split, boxes=boxes)
    return dataclasses.replace(dataset, splits=splits, fingerprint=digest.hexdigest())


def with_whole(boxes: np.ndarray) -> np.ndarray:
    """The boxes float32 [r, 4], the whole picture's as the last and only there."""
    others = boxes[~np.all(boxes == WHOLE, axis=1)]
    return np.concatenate([others, WHOLE]).astype(np.float32)
