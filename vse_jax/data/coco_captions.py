"""COCO's photos and captions as TFDS' own builder `coco_captions` has prepared them.

Its splits are Karpathy's, "restval" apart; its records are in TFDS' order, by a hash of the name.
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
from vse_jax.data.captions_files import Record
from vse_jax.data.pictures import Finding
from vse_jax.data.split import DataError

log = logging.getLogger(__name__)

# TFDS' names of the splits, in the order in which they are read, and ours.
SPLITS = {"train": "train", "restval": "restval", "val": "validation", "test": "test"}
FOLDER = "coco_captions/2014"
FORMATS = ("tfrecord", "array_record")
_CACHE_VERSION = 1
_GROUP = 256


class Prepared(NamedTuple):
    """What TFDS has prepared.

    Attributes:
      listed: a record of every photo, split by split; `split` may be "restval".
      findings: what verifying the photo showed, by image name.
    """

    listed: list[Record]
    findings: Mapping[str, Finding]


def find(root: pathlib.Path) -> pathlib.Path | None:
    """The newest version of `coco_captions` in a `data_dir` of TFDS; None where there is none."""
    versions = sorted(
        (path.parent for path in (root / FOLDER).glob("*/dataset_info.json")),
        key=lambda folder: [int(part) for part in folder.name.split(".") if part.isdecimal()],
    )
    return versions[-1] if versions else None


def read(folder: pathlib.Path, cache: pathlib.Path) -> Prepared:
    """Photos' names, captions and soundness.

    All cores decode at once. What was found is kept in the file `cache` with sizes and times of
    the record files, so that a later call goes through them only if they have changed.

    Args:
      folder: from `find`.
      cache: where findings are kept.

    Raises:
      DataError: a split or a file is missing, damaged or of another format, two photos have one
        name, or the cache cannot be written.
    """
    builder = _builder(folder)
    stamps = {
        path: [os.stat(path).st_size, os.stat(path).st_mtime_ns]
        for split in SPLITS
        for path in records.files(builder, split)
    }
    known = _read_cache(cache, stamps)
    if known is None:
        log.info("verifying the photos of %s", folder)
        known = [entry for split in SPLITS for entry in _inspected(builder, split)]
        content = {"version": _CACHE_VERSION, "files": stamps, "photos": known}
        whole_file.write(cache, lambda file: file.write(json.dumps(content).encode()))
    findings: dict[str, Finding] = {}
    listed = []
    for split, number, name, captions, finding in known:
        where = f"{folder}, {split}, record {number}"
        if name in findings:
            raise DataError(f"{where}: {name} a second time; prepare coco_captions again")
        findings[name] = Finding(*finding)
        listed.append(Record(name, captions, where, SPLITS[split]))
    return Prepared(listed, findings)


def encoded(folder: pathlib.Path, splits: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Names and encoded photos of TFDS' splits, in the order of `read`."""
    builder = _builder(folder)
    for split in splits:
        for example in _examples(builder, split):
            yield _texts(example, "image/filename")[0], _bytes(example, "image")[0]


def _builder(folder: pathlib.Path) -> Any:
    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
    except Exception as error:  # whatever TFDS and protobuf raise of damaged files
        message = f"{folder} is no data set that TFDS can read ({error}); prepare it again"
        raise DataError(message) from error
    if builder.info.file_format.value not in FORMATS:
        raise DataError(
            f"{folder} is in the format {builder.info.file_format.value!r}; prepare coco_captions "
            f"with file_format={' or '.join(map(repr, FORMATS))}"
        )
    return builder


def _inspected(builder: Any, split: str) -> Iterator[list[Any]]:
    """[split, number, name, captions, finding] of each photo."""
    examples = enumerate(_examples(builder, split))
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        while group := list(itertools.islice(examples, _GROUP)):
            images = [_bytes(example, "image")[0] for _, example in group]
            findings = pool.map(pictures.inspect, images)
            for (number, example), found in zip(group, findings, strict=True):
                captions = _texts(example, "captions/text")
                name = _texts(example, "image/filename")[0]
                yield [split, number, name, captions, list(found)]


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


def _bytes(example: Any, name: str) -> list[bytes]:
    return list(example.features.feature[name].bytes_list.value)


def _texts(example: Any, name: str) -> list[str]:
    return [text.decode() for text in _bytes(example, name)]
