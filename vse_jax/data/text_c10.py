"""Captions of birds and flowers: a folder `text_c10` with ten of each photo, one a line.

Source: Reed, Akata, Schiele and Lee, "Learning Deep Representations of Fine-Grained Visual
Descriptions", CVPR 2016; their archives `cvpr2016_cub` and `cvpr2016_flowers` have the folder, and
in it a folder a class with a file PHOTO.txt a photo.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from vse_jax.data import sift
from vse_jax.data.captions_files import Record, read_text
from vse_jax.data.split import DataError

# A letter that was lost before the captions were released.
_LOST = re.compile("\ufffd+")


def find(places: Iterable[pathlib.Path], archive: str, instructions: str) -> pathlib.Path:
    """The first folder `text_c10` in one of these places, or in the archive's folder there.

    Args:
      places: folders to look in.
      archive: the archive's name, such as "cvpr2016_cub".
      instructions: what goes where, for messages.

    Raises:
      DataError: there is none.
    """
    places = list(dict.fromkeys(places))
    for place in places:
        for folder in (place / "text_c10", place / archive / "text_c10"):
            if folder.is_dir():
                return folder
    raise DataError(
        f"{' and '.join(map(str, places))}: no folder text_c10 with the captions, nor "
        f"{archive}/text_c10. {instructions}"
    )


def read(folder: pathlib.Path) -> dict[str, Record]:
    """The captions of each photo by its name without the suffix, as `Record.image` has it too.

    The folders of the classes are not compared with the photos': another release of the captions
    spells some of their names otherwise (Brewers_Blackbird), and photos' names are unique.

    Raises:
      DataError: no file CLASS/PHOTO.txt, two of one photo, or one that is not UTF-8.
    """
    found: dict[str, Record] = {}
    for path in sorted(folder.glob("*/*.txt")):
        # An archive that was packed on a Mac has ._PHOTO.txt beside PHOTO.txt.
        if path.name.startswith("."):
            continue
        lines = read_text(path).removesuffix("\n").split("\n")
        captions = [_LOST.sub(" ", line) for line in lines] if lines != [""] else []
        first = found.setdefault(path.stem, Record(path.stem, captions, os.fspath(path)))
        if first.where != os.fspath(path):
            raise DataError(f"{path}: captions of {path.stem} a second time, first {first.where}")
    if not found:
        raise DataError(f"{folder}: no captions (CLASS/PHOTO.txt); files .t7 and .h5 are not read")
    return found


def joined(
    listed: Sequence[Record], captions: dict[str, Record]
) -> tuple[list[Record], dict[str, list[str]]]:
    """The records with their captions, and reason -> captions of photos that are not listed.

    A photo without a file keeps none: it can serve for its class.
    """
    records = []
    used = set()
    for record in listed:
        stem = pathlib.PurePosixPath(record.image).stem
        own = captions.get(stem)
        used.add(stem)
        if own is not None:
            record = dataclasses.replace(record, captions=list(own.captions), where=own.where)
        records.append(record)
    loose = [
        sift.placed(own.image, own.where) for stem, own in captions.items() if stem not in used
    ]
    return records, {sift.NO_PHOTO: loose} if loose else {}
