"""Parts of a data set."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int

from vse_jax.data.split import NO_CAPTIONS, Dataset, Split, count_and_name

log = logging.getLogger(__name__)


def with_limit(dataset: Dataset, name: str, limit: int | None) -> Dataset:
    """The data set with at most the first `limit` pictures of the split of this name.

    Where some are left out the fingerprint is another, as what is cached of the split is.
    """
    split = dataset.splits.get(name)
    if limit is None or split is None or len(split.images) <= limit:
        return dataset
    digest = hashlib.sha256(f"{dataset.fingerprint} {name} {limit}".encode()).hexdigest()
    splits = {**dataset.splits, name: first_pictures(split, limit)}
    return dataclasses.replace(dataset, splits=splits, fingerprint=digest)


def with_captions(dataset: Dataset) -> Dataset:
    """The data set without the pictures that no caption describes, for what learns from pairs.

    What is left out is counted and named, in the log and in `skipped`. Where there is any, the
    fingerprint is another, and the protocol that of so many test pictures.
    """
    silent = {name: split.without_captions() for name, split in dataset.splits.items()}
    names = tuple(
        dataset.splits[name].images[number]
        for name, numbers in silent.items()
        for number in numbers.tolist()
    )
    if not names:
        return dataset
    log.warning("%s: left out, %s: %s", dataset.name, NO_CAPTIONS, count_and_name(names))
    before = dataset.skipped.get(NO_CAPTIONS, ())
    splits = {
        name: _of_captions(split, silent[name]) if len(silent[name]) else split
        for name, split in dataset.splits.items()
    }
    return dataclasses.replace(
        dataset,
        splits=splits,
        fingerprint=hashlib.sha256(f"{dataset.fingerprint} with captions".encode()).hexdigest(),
        protocol=_protocol(dataset, len(list(splits.values())[-1].images)),
        skipped={**dataset.skipped, NO_CAPTIONS: (*before, *names)},
    )


def first_pictures(split: Split, count: int) -> Split:
    """The split's first pictures, with their captions."""
    captions = int(np.searchsorted(split.caption_image, count))
    return dataclasses.replace(
        split,
        images=split.images[:count],
        captions=split.captions[:captions],
        caption_image=split.caption_image[:captions],
        labels=None if split.labels is None else split.labels[:count],
        boxes=None if split.boxes is None else split.boxes[:count],
        scenes=None if split.scenes is None else split.scenes[:count],
        meanings=None if split.meanings is None else split.meanings[:captions],
        features=None if split.features is None else split.features.chosen(range(count)),
    )


def _of_captions(split: Split, silent: Int[np.ndarray, " k"]) -> Split:
    """The split without these pictures, which have no caption: every caption stays."""
    kept = np.setdiff1d(np.arange(len(split.images)), silent)
    return dataclasses.replace(
        split,
        images=[split.images[number] for number in kept],
        caption_image=np.searchsorted(kept, split.caption_image).astype(np.int32),
        read=None if split.read is None else _reader(split.read, kept),
        labels=None if split.labels is None else split.labels[kept],
        boxes=None if split.boxes is None else [split.boxes[number] for number in kept],
        scenes=None if split.scenes is None else [split.scenes[number] for number in kept],
        features=None if split.features is None else split.features.chosen(kept),
    )


def _reader(
    read: Callable[[Sequence[int]], list[bytes]], kept: Int[np.ndarray, " n"]
) -> Callable[[Iterable[SupportsIndex]], list[bytes]]:
    """Encoded pictures by their number among the kept ones."""

    def of_kept(numbers: Iterable[SupportsIndex]) -> list[bytes]:
        return read([int(kept[int(number)]) for number in numbers])

    return of_kept


def _protocol(dataset: Dataset, images: int) -> str:
    """The protocol of so many test pictures: a name that promises a size is kept for that size."""
    before = len(list(dataset.splits.values())[-1].images)
    if images == before:
        return dataset.protocol
    if dataset.protocol.endswith(f"_{before}"):
        return f"{dataset.protocol.removesuffix(f'_{before}')}_{images}"
    return f"{dataset.name}_{images}"
