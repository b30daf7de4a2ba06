"""Prepared data on disk: a TFDS builder writes array_record, a Split reads it by number."""

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source

from vse_jax.data.split import DataError, Split

log = logging.getLogger(__name__)


def features(
    labels: Sequence[str] | None = None, boxes: bool = False, meanings: bool = False
) -> tfds.features.FeaturesDict:
    """Features of a picture with its captions, under the names that `read_split` knows.

    An example is {"image": encoded bytes, a file name or uint8 [h,w,3], "name": str,
    "captions": list of str} and, where asked for:

    Args:
      labels: names of the classes; adds "label", a name or a number, -1 for none. Without any
        name in it the builder gives the names before it makes examples.
      boxes: adds "boxes", float32 [r,4] as (y0, x0, y1, x1) in [0, 1].
      meanings: adds "scene", JSON text, and "meanings", JSON text for each caption.
    """
    parts: dict[str, Any] = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "name": tfds.features.Text(),
        "captions": tfds.features.Sequence(tfds.features.Text()),
    }
    if labels is not None:
        parts["label"] = tfds.features.ClassLabel(names=list(labels) or None)
    if boxes:
        parts["boxes"] = tfds.features.Tensor(shape=(None, 4), dtype=np.float32)
    if meanings:
        parts["scene"] = tfds.features.Text()
        parts["meanings"] = tfds.features.Sequence(tfds.features.Text())
    return tfds.features.FeaturesDict(parts)


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the builder's data as array_record, unless they are there already.

    TFDS writes into a folder `incomplete.*` and renames it when all is done, so that what has
    the final name is whole. The builder must declare `disable_shuffling=True`: the number of
    a picture is its place in the order in which the builder made it.

    Raises:
      DataError: if the folder cannot be written or the disk is full.
    """
    folder = os.fspath(builder.data_dir)
    if not builder.info.disable_shuffling:
        raise DataError(f"{builder.name}: the builder's DatasetInfo needs disable_shuffling=True")
    if os.path.isdir(folder):
        return
    log.info("preparing %s in %s, once", builder.name, folder)
    begun = time.perf_counter()
    tfds.display_progress_bar(sys.stderr.isatty())
    try:
        # TFDS prints what the line above says.
        with contextlib.redirect_stdout(None):
            builder.download_and_prepare(file_format="array_record")
    except OSError as error:
        if os.path.isdir(folder):  # Another process was quicker, and its work is whole.
            builder.info.read_from_directory(folder)
            return
        raise DataError(f"cannot write the data set to {folder}: {_reason(error)}") from error
    except RuntimeError as error:  # array_record's writer reports a full disk this way.
        raise DataError(f"cannot write the data set to {folder}: {error}") from error
    log.info("prepared %s in %.0f s", builder.name, time.perf_counter() - begun)


def read_split(builder: tfds.core.DatasetBuilder, split: str) -> Split:
    """A prepared split: everything but the pictures in memory, pictures fetched by number.

    Raises:
      DataError: if there is no such split, or its files are missing or damaged.
    """
    source = _open(builder, split)
    examples = [_without_image(example) for example in _examples(source, range(len(source)))]
    captions = [_texts(example, "captions") for example in examples]
    counts = [len(sentences) for sentences in captions]
    known = set(builder.info.features)
    return Split(
        images=[_texts(example, "name")[0] for example in examples],
        captions=[sentence for sentences in captions for sentence in sentences],
        caption_image=np.repeat(np.arange(len(examples), dtype=np.int32), counts),
        read=_reader(source, len(source)),
        labels=np.array([_label(e) for e in examples], np.int32) if "label" in known else None,
        boxes=[_boxes(example) for example in examples] if "boxes" in known else None,
        scenes=[json.loads(_texts(e, "scene")[0]) for e in examples] if "scene" in known else None,
        meanings=[json.loads(text) for e in examples for text in _texts(e, "meanings")]
        if "meanings" in known
        else None,
    )


def reader(
    builder: tfds.core.DatasetBuilder, split: str
) -> Callable[[Iterable[SupportsIndex]], list[bytes]]:
    """Encoded pictures of a prepared split by number, in the order asked for.

    Raises:
      DataError: if there is no such split, or its files are missing or damaged.
    """
    source = _open(builder, split)
    return _reader(source, len(source))


def fingerprint(builder: tfds.core.DatasetBuilder) -> str:
    """SHA-256 (hex) of a prepared data set: its name and, split by split, its records.

    Not of its files: in these the parts of a record are in another order whenever it is prepared.
    """
    digest = hashlib.sha256(builder.info.full_name.encode())
    for split in sorted(builder.info.splits):
        digest.update(split.encode())
        source = _open(builder, split)
        for example in _examples(source, range(len(source))):
            digest.update(example.SerializeToString(deterministic=True))
    return digest.hexdigest()


def files(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    """The record files of a split, every one of them there; raises DataError otherwise."""
    if split not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits)) or "none: it is not prepared"
        raise DataError(f"{builder.data_dir} has no split {split!r}; it has {known}")
    paths = [os.fspath(path) for path in builder.info.splits[split].filepaths]
    for path in paths:
        if not os.path.isfile(path):
            raise DataError(f"{path} is missing; remove its folder and prepare the data again")
    return paths


def _open(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    # Records are read without TFDS' decoding of every feature, which halves the rate.
    paths = files(builder, split)
    with damage_named(paths[0]):
        source = array_record_data_source.ArrayRecordDataSource(paths)
        found = len(source)
    expected = builder.info.splits[split].num_examples
    if found != expected:
        raise DataError(f"{paths[0]} holds {found} records where {expected} were written")
    return source


@contextlib.contextmanager
def damage_named(path: str) -> Iterator[None]:
    """Turns array_record's own errors into one that names the file and the way out."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        message = f"{path} is damaged ({error}); remove its folder and prepare the data again"
        raise DataError(message) from error


def _examples(source: Any, numbers: Sequence[int]) -> Iterator[Any]:
    """Parsed records by number, fetched in groups that stay small in memory."""
    for start in range(0, len(numbers), 256):
        for record in source.__getitems__(list(numbers[start : start + 256])):
            yield tf.train.Example.FromString(record)


def _reader(source: Any, size: int) -> Callable[[Iterable[SupportsIndex]], list[bytes]]:
    def read(numbers: Iterable[SupportsIndex]) -> list[bytes]:
        """Encoded pictures by number, in the order asked for."""
        wanted = [int(number) for number in numbers]
        for number in wanted:
            if not 0 <= number < size:
                raise IndexError(f"picture {number} of {size}: numbers are 0 to {size - 1}")
        return [
            example.features.feature["image"].bytes_list.value[0]
            for example in _examples(source, wanted)
        ]

    return read


def _without_image(example: Any) -> Any:
    del example.features.feature["image"]
    return example


def _texts(example: Any, name: str) -> list[str]:
    return [text.decode() for text in example.features.feature[name].bytes_list.value]


def _label(example: Any) -> int:
    return int(example.features.feature["label"].int64_list.value[0])


def _boxes(example: Any) -> np.ndarray:
    values = example.features.feature["boxes"].float_list.value
    return np.array(values, np.float32).reshape(-1, 4)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
