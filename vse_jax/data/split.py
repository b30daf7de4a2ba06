"""What a data set is to the rest of the house: captions and ids in memory, pictures by number."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vse_jax.data.regions import Regions

# Why a picture that has no caption is left out of what learns from pairs.
NO_CAPTIONS = "photo without captions"


class DataError(Exception):
    """A mistake in the user's data: says where, what was met and what would be right."""


@dataclasses.dataclass(frozen=True)
class Split:
    """One split: n pictures, m captions, everything but the pixels in memory.

    A picture's id is its number in `images` (0..n-1), a caption's its number in `captions`.

    Attributes:
      images: n names (file name or key) for people: logs, reports.
      captions: m raw sentences, ordered by picture.
      caption_image: int32 [m], the picture number of each caption, ascending.
      read: encoded pictures (JPEG, PNG, ...) by picture numbers, in the order asked for; None
        where there are only features of them.
      labels: int32 [n] class of each picture, its number in the data set's `classes`, -1 where it
        has none; None without classes.
      boxes: n arrays float32 [r_i, 4] as (y0, x0, y1, x1) in [0, 1]; None without boxes.
      scenes: n JSON-like descriptions of what is in the picture (`shapes` only).
      meanings: m JSON-like descriptions of what each caption says (`shapes` only).
      features: of the regions of the n pictures, where the data are such; else None.
    """

    images: Sequence[str]
    captions: Sequence[str]
    caption_image: np.ndarray
    read: Callable[[Sequence[int]], list[bytes]] | None
    labels: np.ndarray | None = None
    boxes: Sequence[np.ndarray] | None = None
    scenes: Sequence[Any] | None = None
    meanings: Sequence[Any] | None = None
    features: Regions | None = None

    def captions_of(self, picture: int) -> list[str]:
        """The captions of the picture of this number."""
        first, last = np.searchsorted(self.caption_image, (picture, picture + 1))
        return list(self.captions[first:last])

    def without_captions(self) -> np.ndarray:
        """int64 [k], the numbers of the pictures that have no caption, ascending."""
        return np.setdiff1d(np.arange(len(self.images)), self.caption_image)

    def epoch_size(self, epoch: Literal["captions", "images"]) -> int:
        """Examples in an epoch, of either kind.

        "captions": every caption once, and every picture without captions once. "images": every
        picture once.
        """
        if epoch == "images":
            return len(self.images)
        return len(self.captions) + len(self.without_captions())


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of a data set and what had to be left out of it.

    Attributes:
      name: as in reports, e.g. "flickr8k".
      splits: "train", "validation", "test" (the last may be missing for users' own data).
      fingerprint: hex digest that changes whenever a picture, a caption or a split changes.
      protocol: name of the test protocol, e.g. "flickr8k_1k"; says the expected test size.
      skipped: reason -> names of what was left out, e.g. {"not a picture": ("a.jpg",)}.
      classes: names of the classes by their number in `Split.labels`; empty without any.
    """

    name: str
    splits: Mapping[str, Split]
    fingerprint: str
    protocol: str
    skipped: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    classes: Sequence[str] = ()


def without_training(dataset: Dataset) -> tuple[str, ...]:
    """Names of the classes that no training picture has, which a classifier cannot learn."""
    labels = dataset.splits["train"].labels
    if labels is None:
        return ()
    shown = set(labels.tolist())
    return tuple(name for number, name in enumerate(dataset.classes) if number not in shown)


def count_and_name(names: Sequence[str], shown: int = 5) -> str:
    """The count and the first names, such as "7 (a.jpg, b.jpg, ...)"."""
    rest = ", ..." if len(names) > shown else ""
    return f"{len(names)} ({', '.join(names[:shown])}{rest})"
