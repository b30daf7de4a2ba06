"""Data sets whose pictures are known by features alone: others' regions, or our own extraction."""

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vse_jax.data import captions_files, custom, region_store, scan_files, sift
from vse_jax.data.captions_files import Record
from vse_jax.data.split import DataError, Dataset

NO_FEATURES = "caption without features"
NO_CAPTION = "features without caption"
NO_REGIONS = "picture without regions"
FRACTIONS = (0.8, 0.1, 0.1)
# No letter before it: names of Flickr's photos end in a hexadecimal number.
_NUMBER = re.compile(r"(?:^|[\W_])([0-9]+)\Z")


def load(
    path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    features: str | os.PathLike[str] | None = None,
    seed: int = 0,
    bad_share: float = 0.01,
    restval: bool = True,
) -> Dataset:
    """The data set of a folder in the layout of SCAN, or of a caption file and features.

    Args:
      path: a folder, see `scan_files.load`, or a caption file, see `captions_files.read_records`.
      data_dir: where features that cannot be read in place are copied, and what was looked through
        is remembered.
      features: with a caption file: see `region_files.files`.
      seed: of the hash that splits a caption file without splits.
      bad_share: with a caption file: largest share of its pictures that may have no features, or
        no region in them.
      restval: whether the pictures that a caption file calls "restval" are training pictures.

    Raises:
      DataError: for anything wrong with the files, or files that do not go together.
    """
    path = Path(path)
    if path.is_dir():
        if features is not None:
            raise DataError(
                f"{path} is a folder of features with their captions; data.features is for a "
                "caption file: unset it, or give a caption file"
            )
        return scan_files.load(path, data_dir)
    if features is None:
        what = (
            "is a caption file, and data.features is not set"
            if path.exists()
            else ("does not exist")
        )
        raise DataError(
            f"{path} {what}; expected a folder with {{train,dev,test}}_ims.npy and _caps.txt, or a "
            "caption file with data.features"
        )
    return _with_captions(path, Path(features), data_dir, seed, bad_share, restval)


def _with_captions(
    path: Path,
    features: Path,
    data_dir: str | os.PathLike[str],
    seed: int,
    bad_share: float,
    restval: bool,
) -> Dataset:
    """The pictures of a caption file that have features."""
    listed = captions_files.read_records(path)
    records = captions_files.as_trained(listed, restval)
    custom.split_by_hash(records, seed, FRACTIONS)
    stored = region_store.stored(features, data_dir)
    kept, skipped = sift.captioned(records)
    # Features of pictures that are not asked for are known, though, as theirs.
    unasked = [record for record in listed if record.split == "restval" and not restval]
    row = joined([*kept, *unasked], stored.names, features)
    skipped[NO_CAPTION] = _without(stored.names, row.values())
    count = {image: stored.regions.count[number] for image, number in row.items()}
    unfit = {
        NO_FEATURES: [record for record in kept if record.image not in row],
        NO_REGIONS: [record for record in kept if count.get(record.image) == 0],
    }
    bad = {
        reason: [sift.placed(record.image, record.where) for record in found]
        for reason, found in unfit.items()
    }
    sift.refuse_too_many(bad, len(kept), bad_share)
    kept = [record for record in kept if count.get(record.image)]
    sifted = sift.Sifted(
        records=kept,
        paths={record.image: record.image for record in kept},
        digests={record.image: stored.digests[row[record.image]] for record in kept},
        skipped={reason: tuple(names) for reason, names in {**skipped, **bad}.items() if names},
    )
    sift.log_skipped(path.name, sifted.skipped)
    dataset = custom.assembled(path, records, sifted)
    splits = {
        name: dataclasses.replace(
            split,
            read=None,
            boxes=None,
            features=stored.regions.chosen([row[image] for image in split.images]),
        )
        for name, split in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits)


def joined(records: Sequence[Record], names: Sequence[str], source: Path) -> dict[str, int]:
    """Of each record that has features, by its image, their number in `names`.

    A name is a record's path, its file name, its id (COCO's), its file name without the suffix, or
    the number at that one's end: 391895 is COCO_val2014_000000391895.jpg, but 83 is not
    102_e3de83.jpg, whose last digits are part of a word.

    Raises:
      DataError: a name that could be two pictures', two names of one picture, or none of any.
    """
    keys = [_keys(record) for record in records]
    tables: list[dict[str, list[int]]] = []
    for level in range(len(keys[0]) if keys else 0):
        table: dict[str, list[int]] = collections.defaultdict(list)
        for number, own in enumerate(keys):
            if (value := own[level]) is not None:
                table[value].append(number)
        tables.append(table)
    found: dict[str, int] = {}
    if not records:
        return found
    for place, name in enumerate(names):
        hits = _hits(name, tables)
        if len(hits) > 1:
            one, other = (records[number] for number in hits[:2])
            raise DataError(
                f"{source}: {name!r} could be {one.image} ({one.where}) or {other.image} "
                f"({other.where}); name the features by the pictures' file names"
            )
        for number in hits:
            image = records[number].image
            if image in found:
                raise DataError(
                    f"{source}: both {names[found[image]]!r} and {name!r} are features of "
                    f"{image} ({records[number].where})"
                )
            found[image] = place
    if not found:
        raise DataError(
            f"none of the {len(records)} pictures has features in {source}; the first, "
            f"{records[0].where}, is {records[0].image}, the first features are named {names[0]!r}"
        )
    return found


def _keys(record: Record) -> tuple[str | None, ...]:
    """What features of the record may be called, the surest first."""
    base = os.path.basename(record.image)
    stem = os.path.splitext(base)[0]
    digits = _NUMBER.search(stem)
    number = (digits[1].lstrip("0") or "0") if digits else None
    return os.path.normpath(record.image), base, record.id, stem, number


def _hits(name: str, tables: Sequence[dict[str, list[int]]]) -> list[int]:
    """The records that a name fits, by the surest of the ways in which it fits any."""
    numeric = name.isascii() and name.isdigit()
    # The name of a feature file may have its picture's suffix.
    ways = [(table, name) for table in tables[:-1]] + [(tables[3], os.path.splitext(name)[0])]
    if numeric:
        ways += [(tables[2], name.lstrip("0")), (tables[-1], name.lstrip("0") or "0")]
    return next((table[key] for table, key in ways if key in table), [])


def _without(names: Sequence[str], used: Iterable[int]) -> list[str]:
    """The names whose number is not among the used ones."""
    missing = np.ones(len(names), bool)
    missing[list(used)] = False
    return [name for name, alone in zip(names, missing, strict=True) if alone]
