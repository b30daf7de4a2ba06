"""Classes of pictures from a file beside the data set: a JSON line for each picture."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vse_jax.data.captions_files import checked_text, json_lines
from vse_jax.data.split import DataError, Dataset, Split, count_and_name

log = logging.getLogger(__name__)

_LINE = '{"image": name, "label": class name}'


def with_labels(dataset: Dataset, path: Path) -> Dataset:
    """The data set with the classes of a file in place of its own, if it has any.

    Its `classes` are the names, sorted, that pictures of the data set have there; its splits'
    `labels` int32 [n] are their numbers, -1 where the file has no line for a picture. Such pictures
    are counted in the log; lines of pictures that the data set lacks are told.

    Raises:
      DataError: as `read`; or no picture of a split has a label.
    """
    found = read(path)
    names = [name for split in dataset.splits.values() for name in split.images]
    if others := sorted(found.keys() - set(names)):
        log.warning("%s: labels of other pictures: %s", path, count_and_name(others))
    classes = tuple(sorted({found[name] for name in names if name in found}))
    numbers = {label: number for number, label in enumerate(classes)}
    digest = hashlib.sha256(f"labels {dataset.fingerprint} {json.dumps(classes)}".encode())
    splits: dict[str, Split] = {}
    for name, split in dataset.splits.items():
        own = [numbers[found[image]] if image in found else -1 for image in split.images]
        labels = np.array(own, np.int32)
        if not (labels >= 0).any():
            raise DataError(
                f"{path} has no label of the {len(labels)} pictures of split {name!r}; its first "
                f"is of {next(iter(found), 'no picture')}"
            )
        digest.update(f"{name} {len(labels)}".encode() + labels.tobytes())
        splits[name] = dataclasses.replace(split, labels=labels)
    without = [name for name in names if name not in found]
    log.info(
        "%s: %d classes; without a label %s of %d pictures",
        path, len(classes), count_and_name(without) if without else "none", len(names),
    )  # fmt: skip
    return dataclasses.replace(
        dataset, splits=splits, fingerprint=digest.hexdigest(), classes=classes
    )


def read(path: Path) -> Mapping[str, str]:
    """The class of each picture, by the picture's name.

    A line is `{"image": name, "label": class name}`; whatever else it says is not read.

    Raises:
      DataError: no such file, or a malformed line or a picture named again, with its number.
    """
    found: dict[str, tuple[str, str]] = {}
    for where, value in json_lines(path, _LINE):
        if not isinstance(value, dict) or not {"image", "label"} <= value.keys():
            raise DataError(f"{where}: expected {_LINE}")
        name, label = value["image"], value["label"]
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: the picture's name is {name!r}; expected {_LINE}")
        if not isinstance(label, str) or not label.strip():
            raise DataError(
                f"{where}: the label of {name} is {label!r}; expected the name of a class, as text "
                "(a picture without one has no line)"
            )
        if name in found:
            raise DataError(f"{where}: {name} a second time, first {found[name][1]}")
        found[name] = checked_text(label, where), where
    return {name: label for name, (label, _) in found.items()}
