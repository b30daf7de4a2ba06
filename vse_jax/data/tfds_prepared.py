"""Photos as a builder of TFDS' own has prepared them, with what it knows of each.

Its records are in TFDS' order, by a hash of the name.
"""

import itertools
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source

from vse_jax.data import pictures, records, whole_file
from vse_jax.data.captions_files import Record, boxes_of
from vse_jax.data.pictures import Finding
from vse_jax.data.split import DataError

log = logging.getLogger(__name__)

FORMATS = ("tfrecord", "array_record")
_CACHE_VERSION = 2
_GROUP = 256


class Layout(NamedTuple):
    """What a builder of TFDS calls its parts.

    Attributes:
      folder: of its versions in a `data_dir` of TFDS; it begins with the builder's name.
      splits: its splits, in the order in which they are read, and ours.
      sources: of our splits those of its own that may hold them, in that order.
      name: the feature that names the photo.
      parts: how many last parts of that path are the photo's name here.
      captions: the feature of the captions; None without any.
      label: of the class; None without any.
      box: of one box; None without any.
    """

    folder: str
    splits: Mapping[str, str]
    sources: Mapping[str, Sequence[str]]
    name: str = "image/filename"
    parts: int = 1
    captions: str | None = None
    label: str | None = None
    box: str | None = None

    @property
    def builder(self) -> str:
        """The builder's name."""
        return self.folder.split("/")[0]


class Prepared(NamedTuple):
    """What TFDS has prepared.

    Attributes:
      listed: a record of every photo, split by split, its label the number of the class.
      findings: what verifying the photo showed, by image name.
      classes: names of the classes, or their numbers as text; empty without any.
    """

    listed: list[Record]
    findings: Mapping[str, Finding]
    classes: tuple[str, ...] = ()


def find(root: pathlib.Path, layout: Layout) -> pathlib.Path | None:
    """The newest version in a `data_dir` of TFDS; None where there is none."""
    versions = sorted(
        (path.parent for path in (root / layout.folder).glob("*/dataset_info.json")),
        key=lambda folder: [int(part) for part in folder.name.split(".") if part.isdecimal()],
    )
    return versions[-1] if versions else None


def read(folder: pathlib.Path, layout: Layout, cache: pathlib.Path) -> Prepared:
    """Photos' names, soundness and whatever of captions, classes and boxes there is.

    All cores decode at once. What was found is kept in the file `cache` with sizes and times of
    the record files, so that a later call goes through them only if they have changed.

    Args:
      folder: from `find`.
      layout: of the builder.
      cache: where findings are kept.

    Raises:
      DataError: a split or a file is missing, damaged or of another format, two photos have one
        name, a box is none, or the cache cannot be written.
    """
    builder = _builder(folder, layout)
    stamps = {
        path: [os.stat(path).st_size, os.stat(path).st_mtime_ns]
        for split in layout.splits
        for path in records.files(builder, split)
    }
    known = _read_cache(cache, stamps)
    if known is None:
        log.info("verifying the photos of %s", folder)
        known = [entry for split in layout.splits for entry in _inspected(builder, layout, split)]
        content = {"version": _CACHE_VERSION, "files": stamps, "photos": known}
        whole_file.write(cache, lambda file: file.write(json.dumps(content).encode()))
    findings: dict[str, Finding] = {}
    listed = []
    for split, number, name, captions, label, box, finding in known:
        where = f"{folder}, {split}, record {number}"
        if name in findings:
            raise DataError(f"{where}: {name} a second time; prepare {layout.builder} again")
        findings[name] = Finding(*finding)
        boxes = boxes_of(None if box is None else [box], where)
        listed.append(Record(name, captions, where, layout.splits[split], label, boxes))
    classes = () if layout.label is None else tuple(builder.info.features[layout.label].names)
    return Prepared(listed, findings, classes)


def encoded(folder: pathlib.Path, layout: Layout, split: str) -> Iterator[tuple[str, bytes]]:
    """Names and encoded photos of what may hold our split, in the order of `read`."""
    builder = _builder(folder, layout)
    for source in layout.sources[split]:
        for example in _examples(builder, source):
            yield _name(example, layout), _bytes(example, "image")[0]


def _builder(folder: pathlib.Path, layout: Layout) -> Any:
    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
    except Exception as error:  # whatever TFDS and protobuf raise of damaged files
        message = f"{folder} is no data set that TFDS can read ({error}); prepare it again"
        raise DataError(message) from error
    if builder.info.file_format.value not in FORMATS:
        raise DataError(
            f"{folder} is in the format {builder.info.file_format.value!r}; prepare "
            f"{layout.builder} with file_format={' or '.join(map(repr, FORMATS))}"
        )
    return builder


def _inspected(builder: Any, layout: Layout, split: str) -> Iterator[list[Any]]:
    """[split, number, name, captions, label, box, finding] of each photo."""
    examples = enumerate(_examples(builder, split))
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        while group := list(itertools.islice(examples, _GROUP)):
            images = [_bytes(example, "image")[0] for _, example in group]
            findings = pool.map(pictures.inspect, images)
            for (number, example), found in zip(group, findings, strict=True):
                name = _name(example, layout)
                captions = _texts(example, layout.captions) if layout.captions else []
                yield [split, number, name, captions, *_class(example, layout), list(found)]


def _examples(builder: Any, split: str) -> Iterator[Any]:
    """The split's records, parsed, in their order."""
    paths = records.files(builder, split)
    count = 0
    for path in paths:
        with records.damage_named(path):
            for serialized in _serialized(path, builder.info.file_format.value):
                count += 1
                yield tf.train.Example.FromString(serialized)
    expected = builder.info.splits[split].num_examples
    if count != expected:
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise DataError(f"{paths[0]}{others}: {count} records where {expected} were written")


def _serialized(path: str, file_format: str) -> Iterator[bytes]:
    if file_format == "array_record":
        source = array_record_data_source.ArrayRecordDataSource(path)
        for start in range(0, len(source), _GROUP):
            yield from source.__getitems__(list(range(start, min(start + _GROUP, len(source)))))
        return
    try:
        yield from tf.data.TFRecordDataset(path).as_numpy_iterator()
    except tf.errors.DataLossError as error:
        raise ValueError("a record is cut short or altered") from error


def _read_cache(cache: pathlib.Path, stamps: Mapping[str, list[int]]) -> list[Any] | None:
    """The photos as they were found in these very files; None where that is not known."""
    try:
        content = json.loads(cache.read_text())
        if content["version"] == _CACHE_VERSION and content["files"] == stamps:
            return list(content["photos"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return None


def _name(example: Any, layout: Layout) -> str:
    return "/".join(_texts(example, layout.name)[0].split("/")[-layout.parts :])


def _class(example: Any, layout: Layout) -> tuple[int | None, list[float] | None]:
    """The photo's class, None for TFDS' -1, and its box (y0, x0, y1, x1)."""
    feature = example.features.feature
    label = feature[layout.label].int64_list.value[0] if layout.label else -1
    box = list(feature[layout.box].float_list.value) if layout.box else None
    return (None if label < 0 else int(label)), box


def _bytes(example: Any, name: str) -> list[bytes]:
    return list(example.features.feature[name].bytes_list.value)


def _texts(example: Any, name: str) -> list[str]:
    return [text.decode() for text in _bytes(example, name)]
