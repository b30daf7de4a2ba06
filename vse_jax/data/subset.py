"""Parts of a data set."""

import dataclasses
import hashlib

import numpy as np

from vse_jax.data.split import Dataset, Split


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
