"""What of the files' records is fit for use, and what is left out, counted and named."""

import collections
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import types
from collections.abc import Mapping, Sequence

from vse_jax.data import captions_files, pictures
from vse_jax.data.split import NO_CAPTIONS, DataError, count_and_name

log = logging.getLogger(__name__)

NON_RGB = ("skip", "convert")
NO_PHOTO = "caption without photo"
NO_PHOTO_OF_CLASS = "class of a photo that is not there"
EMPTY_CAPTION = "empty caption"
_PLACE = re.compile(r" \([^()]*\)\Z")


@dataclasses.dataclass(frozen=True)
class Sifted:
    """What is left of a list of records.

    Attributes:
      records: those with a sound picture and a caption or a label; captions stripped, none empty.
      paths: the picture's file, by image name.
      digests: SHA-256 (hex) of the picture, by image name.
      skipped: reason -> names of what was left out, with their place (`placed`) where the fault
        is not in the picture's own file.
      classes: names of the classes, where the labels of the records are their numbers.
    """

    records: list[captions_files.Record]
    paths: Mapping[str, str]
    digests: Mapping[str, str]
    skipped: Mapping[str, tuple[str, ...]]
    classes: Sequence[str] = ()


def check_options(bad_share: float, non_rgb: str) -> None:
    """Raises DataError where `data.bad_share` or `data.non_rgb` is not a value they can have."""
    if not 0 <= bad_share <= 1:
        raise DataError(f"data.bad_share is {bad_share}; expected a share from 0 to 1")
    if non_rgb not in NON_RGB:
        raise DataError(f"data.non_rgb is {non_rgb!r}; expected one of {', '.join(NON_RGB)}")


def sift(
    records: Sequence[captions_files.Record],
    folder: pathlib.Path,
    cache: pathlib.Path,
    *,
    bad_share: float,
    non_rgb: str,
    unfit: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
) -> Sifted:
    """The records whose picture is sound and which have a caption or, alone, a label.

    Args:
      records: as read from the files.
      folder: what relative picture paths are relative to.
      cache: file that remembers which pictures were verified.
      bad_share: largest share of the pictures that may be unfit, missing ones among them.
      non_rgb: "skip" or "convert", see `pictures.problem`.
      unfit: reason -> names of listed pictures that have no record; they count as unfit.

    Raises:
      DataError: if no picture is there, or more than `bad_share` of them are unfit.
    """
    useful, skipped = captioned(records)
    root = os.path.abspath(folder)
    paths = {record.image: os.path.join(root, record.image) for record in useful}
    by_path = pictures.verify_files(list(paths.values()), cache)
    findings = {image: by_path[path] for image, path in paths.items()}
    if useful and all(found.fault == pictures.MISSING for found in findings.values()):
        raise DataError(
            f"none of the {len(paths)} pictures is there; the first, {useful[0].where}, is "
            f"looked for at {paths[useful[0].image]}"
        )
    kept = _sound(useful, findings, skipped, unfit, bad_share=bad_share, non_rgb=non_rgb)
    return dataclasses.replace(kept, paths=paths)


def sift_verified(
    records: Sequence[captions_files.Record],
    findings: Mapping[str, pictures.Finding],
    *,
    bad_share: float,
    non_rgb: str,
) -> Sifted:
    """As `sift`, of pictures that are no files: what verifying them showed is given by image name.

    `paths` is empty. Raises DataError if more than `bad_share` of the pictures are unfit.
    """
    useful, skipped = captioned(records)
    return _sound(useful, findings, skipped, {}, bad_share=bad_share, non_rgb=non_rgb)


def _sound(
    records: Sequence[captions_files.Record],
    findings: Mapping[str, pictures.Finding],
    skipped: Mapping[str, Sequence[str]],
    unfit: Mapping[str, Sequence[str]],
    *,
    bad_share: float,
    non_rgb: str,
) -> Sifted:
    """The records whose picture is sound, and all that is left out; without paths."""
    kept: list[captions_files.Record] = []
    bad = collections.defaultdict(list, {reason: list(names) for reason, names in unfit.items()})
    for record in records:
        reason = findings[record.image].problem(non_rgb)
        if reason == pictures.MISSING:
            why = NO_PHOTO if record.captions else NO_PHOTO_OF_CLASS
            bad[why].append(placed(record.image, record.where))
        elif reason:
            bad[reason].append(record.image)
        else:
            kept.append(record)
    refuse_too_many(bad, len(kept) + sum(map(len, bad.values())), bad_share)
    return Sifted(
        records=kept,
        paths={},
        digests={record.image: findings[record.image].digest or "" for record in kept},
        skipped={reason: tuple(names) for reason, names in {**skipped, **bad}.items() if names},
    )


def refuse_too_many(bad: Mapping[str, Sequence[str]], total: int, bad_share: float) -> None:
    """Raises DataError where more than `bad_share` of `total` pictures are in `bad` (by reason)."""
    count = sum(len(names) for names in bad.values())
    if count <= bad_share * total:
        return
    told = {reason: count_and_name(names) for reason, names in bad.items() if names}
    reasons = "; ".join(f"{reason}: {names}" for reason, names in told.items())
    convert = ' or data.non_rgb to "convert"' if "not RGB" in bad else ""
    raise DataError(
        f"{count} of {total} pictures are unfit, more than data.bad_share = {bad_share:g} allows: "
        f"{reasons}. Supply or replace them, or set data.bad_share higher{convert}"
    )


def fingerprint(sifted: Sifted) -> str:
    """SHA-256 (hex) of every picture's content, captions, split, label and boxes, in order."""
    digest = hashlib.sha256()
    for record in sifted.records:
        boxes = None if record.boxes is None else record.boxes.tolist()
        entry = (record.split, record.image, sifted.digests[record.image], record.captions)
        digest.update(json.dumps((*entry, record.label, boxes)).encode() + b"\n")
    return digest.hexdigest()


def log_skipped(name: str, skipped: Mapping[str, Sequence[str]]) -> None:
    """Logs how many pictures and captions each reason left out, with the first names."""
    for reason, names in skipped.items():
        log.warning("%s: left out, %s: %s", name, reason, count_and_name(names))


def log_class_only(name: str, records: Sequence[captions_files.Record]) -> None:
    """Logs how many of the records have no caption and are kept for their label."""
    silent = [placed(record.image, record.where) for record in records if not record.captions]
    if silent:
        log.warning("%s: %s, for their class only: %s", name, NO_CAPTIONS, count_and_name(silent))


def placed(name: str, where: str) -> str:
    """The name of what was left out with the file and line that named it: "a.jpg (list.csv:7)"."""
    return f"{name} ({os.path.basename(where)})"


def unplaced(name: str) -> str:
    """The name alone, of one with or without a place."""
    return _PLACE.sub("", name)


def _with_captions(
    record: captions_files.Record, skipped: dict[str, list[str]]
) -> captions_files.Record | None:
    """The record with its captions stripped and the empty ones dropped.

    None where none is left, unless the record has a label: a picture can show its class.
    """
    captions = [caption.strip() for caption in record.captions]
    for number, caption in enumerate(captions):
        if not caption:
            skipped[EMPTY_CAPTION].append(placed(f"{record.image}#{number}", record.where))
    if not any(captions) and record.label is None:
        skipped[NO_CAPTIONS].append(placed(record.image, record.where))
        return None
    return dataclasses.replace(record, captions=[caption for caption in captions if caption])


def captioned(
    records: Sequence[captions_files.Record],
) -> tuple[list[captions_files.Record], dict[str, list[str]]]:
    """The records that have a caption or a label, and reason -> names of what has neither."""
    skipped: dict[str, list[str]] = collections.defaultdict(list)
    kept = [found for record in records if (found := _with_captions(record, skipped))]
    return kept, skipped
