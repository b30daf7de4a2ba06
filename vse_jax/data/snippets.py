"""Regions and what is said of them as a data set of its own: what a captioner of regions learns."""

import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from vse_jax.boxes import WHOLE, cropped
from vse_jax.data import sift
from vse_jax.data.captions_files import boxes_of, checked_text, json_lines
from vse_jax.data.rgb import in_rgb
from vse_jax.data.split import DataError, Dataset, Split, count_and_name

log = logging.getLogger(__name__)

_LINE = '{"image": name, "box": [y0, x0, y1, x1], "snippet": words}'
NO_SNIPPET = "picture without a snippet"

Box = tuple[float, ...]
# What is said of each box of a picture, in the order in which they were found.
Said = Mapping[Box, Sequence[str]]


def read(path: Path) -> dict[str, dict[Box, list[str]]]:
    """What is said of each box (y0, x0, y1, x1) in [0, 1] of each picture, by the picture's name.

    A line is `{"image": name, "box": [y0, x0, y1, x1], "snippet": words}`, as `python -m
    vse_jax.align --snippets` writes it; whatever else a line says is not read.

    Raises:
      DataError: no such file, or a malformed line, with its number.
    """
    found: dict[str, dict[Box, list[str]]] = {}
    for where, value in json_lines(path, _LINE):
        if not isinstance(value, dict) or not {"image", "box", "snippet"} <= value.keys():
            raise DataError(f"{where}: expected {_LINE}")
        name, snippet = (checked_text(value[key], where) for key in ("image", "snippet"))
        if not snippet.strip():
            raise DataError(f"{where}: nothing is said of the box; leave out its line")
        boxes = boxes_of([value["box"]], where)
        assert boxes is not None
        box = tuple(boxes[0].tolist())
        found.setdefault(name, {}).setdefault(box, []).append(snippet)
    return found


def regions(dataset: Dataset, path: Path) -> Dataset:
    """The data set whose pictures are the boxes of a file, cropped, their captions its snippets.

    A region is called "photo.jpg#2": the third box of the picture in the file. Where the data tell
    the truth, as the scenes of `shapes` do, validation and test are the true boxes, each with what
    the scene calls its object: the file is what a model found, to learn from. Pictures of which the
    file says nothing are left out, and told.

    Args:
      dataset: of whole pictures.
      path: the file, for `read`.

    Raises:
      DataError: as `read`; or a split has no snippet.
    """
    known = read(path)
    splits: dict[str, Split] = {}
    silent: list[str] = []
    names: set[str] = set()
    digest = hashlib.sha256(f"regions {dataset.fingerprint}".encode())
    for name, split in dataset.splits.items():
        names.update(split.images)
        if name == "train" or split.scenes is None:
            said: list[Said] = [known.get(image, {}) for image in split.images]
        else:
            said = [
                {tuple(thing["box"]): [thing["snippet"]] for thing in scene["objects"]}
                for scene in split.scenes
            ]
        silent += [image for image, own in zip(split.images, said, strict=True) if not own]
        if not any(said):
            raise DataError(
                f"{path} has no snippet of the {len(split.images)} pictures of split {name!r}; its "
                f"first is of {next(iter(known), 'no picture')}"
            )
        splits[name] = _of_regions(split, said)
        told = [[image, list(own.items())] for image, own in zip(split.images, said, strict=True)]
        digest.update(json.dumps(told).encode())
    if others := sorted(known.keys() - names):
        log.warning("%s: snippets of other pictures: %s", path, count_and_name(others))
    skipped = {NO_SNIPPET: tuple(silent)} if silent else {}
    sift.log_skipped(path.name, skipped)
    last = list(splits.values())[-1]
    return dataclasses.replace(
        dataset,
        splits=splits,
        fingerprint=digest.hexdigest(),
        protocol=f"all_{len(last.images)}",
        skipped={**dataset.skipped, **skipped},
        classes=(),
    )


def _of_regions(split: Split, said: Sequence[Said]) -> Split:
    """The split of all boxes of its pictures."""
    source = np.repeat(np.arange(len(said), dtype=np.int32), [len(own) for own in said])
    boxes = np.array([box for own in said for box in own], np.float32)
    snippets = [texts for own in said for texts in own.values()]
    count = [len(texts) for texts in snippets]
    assert split.read is not None
    return Split(
        images=[
            f"{split.images[row]}#{n}" for row, own in enumerate(said) for n in range(len(own))
        ],
        captions=[text for texts in snippets for text in texts],
        caption_image=np.repeat(np.arange(len(snippets), dtype=np.int32), count),
        read=_reader(split.read, source, boxes),
    )


def _reader(
    read: Callable[[Sequence[int]], list[bytes]],
    source: Int[np.ndarray, " n"],
    boxes: Float[np.ndarray, "n 4"],
) -> Callable[[Iterable[SupportsIndex]], list[bytes]]:
    """Reads regions by number; a picture is decoded once, however many of its boxes are read."""

    def crops(numbers: Iterable[SupportsIndex]) -> list[bytes]:
        wanted = [int(number) for number in numbers]
        chosen = boxes[wanted]
        places: dict[int, list[int]] = {}
        for place, number in enumerate(wanted):
            places.setdefault(int(source[number]), []).append(place)
        found = [b""] * len(wanted)
        for own, encoded in zip(places.values(), read(list(places)), strict=True):
            # One picture's pixels at a time: those of a batch of photos may be gigabytes.
            for place, region in zip(own, _regions(encoded, chosen[own]), strict=True):
                found[place] = region
        return found

    return crops


def _regions(encoded: bytes, boxes: Float[np.ndarray, "n 4"]) -> list[bytes]:
    """What is under each box of an encoded picture, encoded without loss; the whole as it is."""
    whole = (boxes == WHOLE).all(axis=1)
    if whole.all():
        return [encoded] * len(boxes)
    with Image.open(io.BytesIO(encoded)) as opened:
        picture = in_rgb(opened)
    return [
        encoded if is_whole else _png(cropped(picture, box.tolist()))
        for is_whole, box in zip(whole, boxes, strict=True)
    ]


def _png(picture: Image.Image) -> bytes:
    """Quickly, at the price of some bytes."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
