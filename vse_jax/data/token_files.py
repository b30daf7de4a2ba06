"""Readers of the text files that Flickr's data sets come with: token files and split lists."""

import collections
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

from vse_jax.data import captions_files
from vse_jax.data.split import DataError

_TOKEN_LINE = re.compile(r"([^\t]+)#(\d+)\t(.*)")


def token_captions(path: pathlib.Path) -> dict[str, captions_files.Record]:
    """A record by photo name, its captions by number: lines `name.jpg#number<tab>caption`.

    Raises:
      DataError: a line is malformed, or one caption stands there twice; names file and line.
    """
    numbered: dict[str, dict[int, tuple[str, int]]] = collections.defaultdict(dict)
    for line, text in lines(path):
        match = _TOKEN_LINE.fullmatch(text)
        if not match:
            raise DataError(
                f"{path}:{line}: expected <name>.jpg#<number><tab><caption>, found {text[:80]!r}"
            )
        name, number, caption = match[1], int(match[2]), match[3]
        _, before = numbered[name].setdefault(number, (caption, line))
        if before != line:
            raise DataError(f"{path}:{line}: {name}#{number} a second time, first on line {before}")
    return {
        name: captions_files.Record(
            image=name,
            captions=[captions[number][0] for number in sorted(captions)],
            where=f"{path}:{min(line for _, line in captions.values())}",
        )
        for name, captions in numbered.items()
    }


def split_lists(
    paths: Mapping[str, pathlib.Path], name_of: Callable[[str, str], str]
) -> dict[str, tuple[str, str]]:
    """Split and "file:line" by photo name, in the order of the lists.

    Args:
      paths: of each split the file with one photo a line.
      name_of: (line, "file:line") -> name of the photo; raises DataError where it is none.

    Raises:
      DataError: a photo is listed twice.
    """
    split_of: dict[str, tuple[str, str]] = {}
    for split, path in paths.items():
        for line, text in lines(path):
            where = f"{path}:{line}"
            name = name_of(text, where)
            if name in split_of:
                before, first = split_of[name]
                raise DataError(f"{where}: {name} is already in {before} ({first})")
            split_of[name] = split, where
    return split_of


def file_name(text: str, where: str) -> str:
    """The line of a split list as one file name; DataError where it is none."""
    if not text.lower().endswith(".jpg") or "/" in text:
        raise DataError(f"{where}: expected one file name, <name>.jpg, found {text[:80]!r}")
    return text


def lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines that are not blank."""
    for number, line in enumerate(captions_files.read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip("\r ")
