"""Readers of the caption files that users bring: JSONL, CSV, COCO captions JSON, Karpathy JSON."""

import collections
import csv
import dataclasses
import io
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vse_jax.data import split as split_lib

log = logging.getLogger(__name__)

DataError = split_lib.DataError

SPLITS = {
    "train": "train",
    "restval": "restval",
    "val": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
SUFFIXES = (".jsonl", ".csv", ".json")


@dataclasses.dataclass
class Record:
    """What a caption file says of one picture, before anything is looked up on disk.

    Attributes:
      image: path or file name as the file has it; the picture's id.
      captions: sentences as the file has them, empty ones included.
      where: "file:line" (or entry) that named the picture first, for messages.
      split: "train", "validation", "test" or "restval" (COCO's pictures that may train or be left
        out, see `as_trained`); None where the file has none.
      label: class name or number; None without one.
      boxes: float32 [r, 4] as (y0, x0, y1, x1) in [0, 1]; None without any.
      id: COCO's number of the picture or another that the file gives it; None without one.
    """

    image: str
    captions: list[str]
    where: str
    split: str | None = None
    label: str | int | None = None
    boxes: np.ndarray | None = None
    id: str | None = None


def read_text(path: pathlib.Path) -> str:
    """The file's text as UTF-8, without a byte order mark; raises DataError with file and line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def csv_rows(path: pathlib.Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV with a header, each with the number of the line on which it begins.

    Quoting is that of RFC 4180: a field with commas, quotes or line breaks stands in double quotes.
    Raises DataError with file and line for a missing column, a field too many or too few, or a
    quote never closed.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    begins = 1
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if missing := [name for name in required if name not in header]:
            commas = "; separate the columns by commas" if ";" in ",".join(header) else ""
            raise DataError(
                f"{path}:1: no column {', '.join(missing)}; the first line must be a header with "
                f"{','.join(required)}, and is {','.join(header)[:80]!r}{commas}"
            )
        begins = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise DataError(
                    f"{path}:{begins}: {len(row)} fields where {len(header)} are expected "
                    f"({','.join(header)}); a caption with commas must stand in double quotes"
                )
            if row:
                yield begins, dict(zip(header, row, strict=True))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{begins}: not a CSV row ({error}); check its quotes") from error


def read_records(path: pathlib.Path) -> list[Record]:
    """One record a picture, in the order of the file; the format goes by suffix and content.

    `.jsonl`: objects `{"image": path, "captions": [...]}`, with `split`, `label` or `boxes` if
    wanted; of a picture that only shows its class `"captions": []` and a label. `.csv`: columns
    image, caption, and split or label if wanted, one caption a row. `.json`: COCO captions
    (`images` and `annotations`) or Karpathy's (`images` with `sentences`). A picture named again
    adds its captions to the first record. Raises DataError with the file and line (or entry) of
    what is wrong.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(
            f"{path} {what}; configs/custom.py:PATH takes a caption file: JSONL "
            '({"image": path, "captions": [...]} a line), CSV (image,caption), COCO captions JSON '
            "or Karpathy JSON. A system comes behind a comma: PATH,leap"
        )
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: unknown suffix {suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if suffix == ".jsonl":
        records = _merged(_jsonl(path))
    elif suffix == ".csv":
        records = _merged(_csv(path))
    else:
        records = _merged(_json(path))
    if not records:
        raise DataError(f"{path}: no picture in it")
    return records


def read_karpathy(path: pathlib.Path) -> list[Record]:
    """One record a picture of a Karpathy JSON in which each has a split, in the order of the file.

    Raises DataError with the entry that is malformed, has no split, or names a picture again.
    """
    images = _images(_content(path), path)
    records: dict[str, Record] = {}
    for record in _karpathy(path, images):
        if record.split is None:
            raise DataError(f"{record.where}: {record.image} has no split")
        first = records.setdefault(record.image, record)
        if first is not record:
            raise DataError(f"{record.where}: {record.image} a second time, first {first.where}")
    return list(records.values())


def as_trained(records: Iterable[Record], restval: bool) -> list[Record]:
    """The records, those of "restval" as training ones or not at all."""
    return [
        dataclasses.replace(record, split="train") if record.split == "restval" else record
        for record in records
        if restval or record.split != "restval"
    ]


def _merged(records: Iterator[Record]) -> list[Record]:
    """Records with those of the same picture joined; raises DataError where they contradict."""
    merged: dict[str, Record] = {}
    repeated: list[str] = []
    for record in records:
        first = merged.setdefault(os.path.normpath(record.image), record)
        if first is record:
            continue
        for field in ("split", "label", "boxes"):
            old, new = getattr(first, field), getattr(record, field)
            if not np.array_equal(old, new):
                raise DataError(
                    f"{record.where}: {field} of {record.image} is {new}, but was {old} at "
                    f"{first.where}"
                )
        if any(caption.strip() and caption in first.captions for caption in record.captions):
            repeated.append(record.where)
        first.captions += record.captions
    if repeated:
        log.warning(
            "captions that their picture has already, which count twice: %d, first at %s",
            len(repeated), repeated[0],
        )  # fmt: skip
    return list(merged.values())


def json_lines(path: pathlib.Path, expected: str) -> Iterator[tuple[str, Any]]:
    """("file:line", value) of each line that is not blank.

    Raises DataError, with the line and what was `expected`, at one that is not JSON.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); expected {expected}") from error


def _jsonl(path: pathlib.Path) -> Iterator[Record]:
    for where, value in json_lines(path, _JSONL_LINE):
        if not isinstance(value, dict) or not isinstance(value.get("captions"), list):
            raise DataError(f'{where}: no "captions": [...] in it; expected {_JSONL_LINE}')
        yield _record(value, value.get("image"), value["captions"], where)


_JSONL_LINE = '{"image": path, "captions": [sentence, ...]} on one line ([] where there is none)'


def _csv(path: pathlib.Path) -> Iterator[Record]:
    for number, row in csv_rows(path, ("image", "caption")):
        # An empty cell is how a CSV leaves a value out.
        optional: dict[str, Any] = {
            name: row[name].strip() or None for name in ("split", "label") if name in row
        }
        yield _record(optional, row["image"].strip(), [row["caption"]], f"{path}:{number}")


def _json(path: pathlib.Path) -> Iterator[Record]:
    content = _content(path)
    images = _images(content, path)
    if "annotations" in content:
        return _coco(path, images, content["annotations"])
    return _karpathy(path, images)


def _content(path: pathlib.Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply to be a caption file") from error


def _images(content: Any, path: pathlib.Path) -> list[dict[str, Any]]:
    """The file's list "images" of objects."""
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise DataError(
            f'{path}: no "images": [{{...}}, ...]; expected COCO captions JSON ("images" and '
            '"annotations") or Karpathy JSON ("images" with "sentences")'
        )
    return images


def _coco(path: pathlib.Path, images: list[dict[str, Any]], annotations: Any) -> Iterator[Record]:
    captions = collections.defaultdict(list)
    if not isinstance(annotations, list):
        raise DataError(f'{path}: "annotations" must be a list')
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or not {"image_id", "caption"} <= annotation.keys():
            raise DataError(
                f'{path}: annotations[{number}] must have "image_id" and "caption"; is this a '
                "captions_*.json and not an instances_*.json?"
            )
        captions[str(annotation["image_id"])].append((number, annotation["caption"]))
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        if "id" not in image:
            raise DataError(f'{where} must have "id" and "file_name"')
        own = [caption for _, caption in captions.pop(str(image["id"]), [])]
        yield _record(image, image.get("file_name"), own, where)
    for image_id, orphans in captions.items():
        raise DataError(
            f'{path}: annotations[{orphans[0][0]}] has image_id {image_id}, which no "id" of '
            '"images" has, or a second time'
        )


def _karpathy(path: pathlib.Path, images: list[dict[str, Any]]) -> Iterator[Record]:
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        sentences = image.get("sentences")
        if not isinstance(sentences, list) or not all(
            isinstance(sentence, dict) and "raw" in sentence for sentence in sentences
        ):
            raise DataError(f'{where} must have "sentences": [{{"raw": ...}}, ...]')
        name, folder = image.get("filename"), image.get("filepath", "")
        if isinstance(name, str) and name and isinstance(folder, str):
            name = os.path.join(folder, name)
        yield _record(image, name, [sentence["raw"] for sentence in sentences], where)


def _record(value: Mapping[str, Any], image: Any, captions: list[Any], where: str) -> Record:
    """The checked record of one entry; raises DataError saying where and what is expected."""
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise DataError(f"{where}: the picture's path is {image!r}; expected a file name or path")
    for text in (image, *captions):
        checked_text(text, where)
    return Record(
        image=image,
        captions=captions,
        where=where,
        split=_split(value.get("split"), where),
        label=_label(value.get("label"), where),
        boxes=boxes_of(value.get("boxes"), where),
        id=_id(value.get("cocoid", value.get("id"))),
    )


def checked_text(text: Any, where: str) -> str:
    """A caption or name of a JSON value; raises DataError saying where it is none."""
    if not isinstance(text, str):
        raise DataError(f"{where}: caption {text!r} is not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half a surrogate pair in {text!r}; not valid Unicode") from error
    return text


def _split(value: Any, where: str) -> str | None:
    if value is None:
        return None
    known = SPLITS.get(value.strip().lower()) if isinstance(value, str) else None
    if known is None:
        raise DataError(f"{where}: split is {value!r}; expected one of {', '.join(SPLITS)}")
    return known


def _label(value: Any, where: str) -> str | int | None:
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise DataError(
        f"{where}: label is {value!r}; expected a class name or a number from 0 "
        "(leave it out where there is none)"
    )


def _id(value: Any) -> str | None:
    """Of a file that numbers its pictures; anything else than a number or a name is none."""
    return str(value) if isinstance(value, int | str) else None


def boxes_of(value: Any, where: str) -> np.ndarray | None:
    """The boxes float32 [r, 4] of a JSON value, None of null; raises DataError saying where."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise DataError(f"{where}: boxes is {value!r}; expected [[y0, x0, y1, x1], ...]")
    for box in value:
        if not _is_box(box):
            raise DataError(
                f"{where}: box {box!r} is not [y0, x0, y1, x1] with 0 <= y0 < y1 <= 1 and "
                "0 <= x0 < x1 <= 1 (shares of the picture's height and width)"
            )
    return np.asarray(value, np.float32).reshape(-1, 4)


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    # NaN and infinities fail this, and a whole number too large for a float.
    if not all(type(side) in (int, float) and 0 <= side <= 1 for side in box):
        return False
    y0, x0, y1, x1 = np.asarray(box, np.float32)
    return bool(0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1)
