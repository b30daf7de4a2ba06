"""Users' own pictures and captions, read in place: JSONL, CSV, COCO or Karpathy JSON."""

import hashlib
import logging
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import numpy as np

from vse_jax.data import captions_files, pictures, sift
from vse_jax.data.seeded_order import place
from vse_jax.data.split import DataError, Dataset, Split

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


def load(
    path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    seed: int = 0,
    bad_share: float = 0.01,
    non_rgb: str = "skip",
    restval: bool = True,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
) -> Dataset:
    """The data set of a caption file (formats: `captions_files.read_records`), read in place.

    Args:
      path: the caption file.
      data_dir: folder for the list of verified pictures, made where there is none.
      images: folder that picture paths are relative to; None for the caption file's own.
      seed: of the hash that splits; without effect where the file has splits.
      bad_share: largest share of the pictures that may be unfit.
      non_rgb: "skip" pictures that are not stored as RGB, or "convert" them.
      restval: whether the pictures that the file calls "restval" are training pictures.
      fractions: shares of train, validation and test in a split by hash.

    Raises:
      DataError: for anything wrong with the file, the pictures, the splits or the arguments.
    """
    sift.check_options(bad_share, non_rgb)
    _check_fractions(fractions)
    path = pathlib.Path(path)
    records = captions_files.as_trained(captions_files.read_records(path), restval)
    split_by_hash(records, seed, fractions)
    folder = path.parent if images is None else pathlib.Path(images)
    key = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:8]
    cache = pathlib.Path(data_dir) / f"custom_{path.stem}_{key}_pictures.json"
    sifted = sift.sift(records, folder, cache, bad_share=bad_share, non_rgb=non_rgb)
    sift.log_skipped(path.name, sifted.skipped)
    return assembled(path, records, sifted)


def assembled(
    path: pathlib.Path, records: Sequence[captions_files.Record], sifted: sift.Sifted
) -> Dataset:
    """The data set of what is left of a file's records, each of which has a split.

    Args:
      path: the caption file.
      records: all that it has; they tell splits and classes.
      sifted: those that are fit for use.

    Raises:
      DataError: labels of two kinds, or a split that is left empty.
    """
    sift.log_class_only(path.name, sifted.records)
    classes = _classes(records)
    if classes:
        log.info("%s: %d classes: %s", path.name, len(classes), ", ".join(map(str, classes)))
    named = {record.split for record in records}
    splits = {
        name: _split(name, path, sifted, classes)
        for name in SPLITS
        if name in named or name != "test"
    }
    last = list(splits.values())[-1]
    return Dataset(
        name=path.stem,
        splits=splits,
        fingerprint=sift.fingerprint(sifted),
        protocol=f"custom_{len(last.images)}",
        skipped=sifted.skipped,
        classes=tuple(map(str, classes)),
    )


def split_of(image: str, seed: int, fractions: Sequence[float]) -> str:
    """The split of a picture by a hash of (seed, image) alone: no other picture moves it.

    Only where the pictures are so few that one of the splits stays empty, `load` moves some.

    Args:
      image: the picture's id, its path as in the caption file.
      seed: another seed, another split.
      fractions: shares of train, validation and test.
    """
    at = place(image, seed)
    if at < fractions[0]:
        return "train"
    return "validation" if at < fractions[0] + fractions[1] or not fractions[2] else "test"


def _check_fractions(fractions: Sequence[float]) -> None:
    if (
        len(fractions) != 3
        or min(fractions) < 0
        or not all(fractions[:2])
        or abs(sum(fractions) - 1) > 1e-6
    ):
        raise DataError(
            f"fractions are {tuple(fractions)}; expected shares of train, validation and test "
            "that sum to 1, the first two above 0"
        )


def split_by_hash(
    records: Sequence[captions_files.Record], seed: int, fractions: Sequence[float]
) -> None:
    """Gives every record a split where the file gives none; half of them is a mistake."""
    without = [record for record in records if record.split is None]
    if without and len(without) < len(records):
        example = next(record for record in records if record.split is not None)
        raise DataError(
            f"{without[0].where}: {without[0].image} has no split, but {example.image} at "
            f"{example.where} has one; give every picture a split, or none"
        )
    for record in without:
        record.split = split_of(record.image, seed, fractions)
    named = {record.split for record in records}
    wanted = [name for name, share in zip(SPLITS, fractions, strict=True) if share]
    if without and not named.issuperset(wanted) and len(records) >= len(wanted):
        # So few that the hash left a split empty: by its order, then, one each at least.
        ordered = sorted(without, key=lambda record: place(record.image, seed))
        counts = {
            name: max(1, round(share * len(ordered)))
            for name, share in zip(SPLITS[1:], fractions[1:], strict=True)
            if share
        }
        for name, count in counts.items():
            for record in ordered[len(ordered) - count :]:
                record.split = name
            del ordered[len(ordered) - count :]
        for record in ordered:
            record.split = "train"


def _classes(records: Iterable[captions_files.Record]) -> dict[str | int, int]:
    """Number of each class in the sorted order of names or numbers; empty without labels."""
    first: captions_files.Record | None = None
    labels: set[str | int] = set()
    for record in records:
        if record.label is None:
            continue
        first = first or record
        if type(record.label) is not type(first.label):
            raise DataError(
                f"{record.where}: label {record.label!r} beside {first.label!r} at {first.where}; "
                "labels are all names or all numbers"
            )
        labels.add(record.label)
    return {label: number for number, label in enumerate(sorted(labels))}


def _split(
    name: str, path: pathlib.Path, sifted: sift.Sifted, classes: dict[str | int, int]
) -> Split:
    records = [record for record in sifted.records if record.split == name]
    if not records:
        raise DataError(
            f"{path}: no picture is left for split {name!r}, of {len(sifted.records)} in all; give "
            "it pictures in the file, or, where the file names no splits, add more pictures"
        )
    counts = [len(record.captions) for record in records]
    no_box = np.zeros((0, 4), np.float32)
    with_boxes = any(record.boxes is not None for record in sifted.records)
    return Split(
        images=[record.image for record in records],
        captions=[caption for record in records for caption in record.captions],
        caption_image=np.repeat(np.arange(len(records), dtype=np.int32), counts),
        read=_Reader([sifted.paths[record.image] for record in records]),
        labels=_labels(records, classes) if classes else None,
        boxes=[no_box if record.boxes is None else record.boxes for record in records]
        if with_boxes
        else None,
    )


def _labels(records: Sequence[captions_files.Record], classes: dict[str | int, int]) -> np.ndarray:
    numbers = [-1 if record.label is None else classes[record.label] for record in records]
    return np.array(numbers, np.int32)


class _Reader:
    """Encoded pictures by number, from their own files."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __call__(self, numbers: Iterable[SupportsIndex]) -> list[bytes]:
        return [pictures.read_file(self._paths[int(number)]) for number in numbers]
