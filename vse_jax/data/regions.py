"""Feature vectors of pictures' regions: any number a picture, stored one after the other."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Regions:
    """The regions of n pictures, read from the disk as they are asked for.

    Picture i has the rows `start[i]` to `start[i] + count[i] - 1`; several may have the same.

    Attributes:
      rows: floats [total, f], memory-mapped where they lie in a file.
      start: int64 [n].
      count: int64 [n], at least 1 each.
      boxes: float32 [total, 4] as (y0, x0, y1, x1) in [0, 1]; None where they are not known.
    """

    rows: np.ndarray
    start: np.ndarray
    count: np.ndarray
    boxes: np.ndarray | None = None

    @classmethod
    def of(cls, array: np.ndarray, boxes: np.ndarray | None = None) -> "Regions":
        """The same number r of every picture: [n, r, f], or [n, f] for one, and boxes [n, r, 4].

        `array` is not copied, so that a memory-mapped one stays on the disk.
        """
        n, r = len(array), array.shape[1] if array.ndim == 3 else 1
        return cls(
            rows=array.reshape(n * r, array.shape[-1]),
            start=np.arange(n, dtype=np.int64) * r,
            count=np.full(n, r, np.int64),
            boxes=None if boxes is None else boxes.reshape(n * r, 4),
        )

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self.start)

    @property
    def width(self) -> int:
        """Numbers in a feature vector, f."""
        return self.rows.shape[1]

    @property
    def most(self) -> int:
        """Regions of the picture that has the most."""
        return int(self.count.max(initial=0))

    def chosen(self, pictures: Sequence[int] | np.ndarray) -> "Regions":
        """Those of the pictures of these numbers, in their order."""
        numbers = np.asarray(pictures, np.int64)
        return dataclasses.replace(self, start=self.start[numbers], count=self.count[numbers])

    def gather(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`features` float32 [b, most, f] of some pictures and their `feature_mask` [b, most].

        Behind a picture's last region the features are 0 and the mask is False. Every batch is
        padded to the most regions of all pictures, not of its own: a compiled step has one shape.
        """
        place, mask = self._places(pictures)
        features = np.asarray(self.rows[place], np.float32)
        if not mask.all():
            features[~mask] = 0.0
        return features, mask

    def gather_boxes(self, pictures: np.ndarray) -> np.ndarray:
        """`boxes` float32 [b, most, 4] of some pictures, 0 behind the last of each."""
        assert self.boxes is not None
        place, mask = self._places(pictures)
        return np.where(mask[..., None], self.boxes[place], 0.0).astype(np.float32)

    def _places(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [b, most] of the pictures' regions, and which of them are real."""
        number = np.arange(self.most)
        mask = number < self.count[pictures][:, None]
        return np.where(mask, self.start[pictures][:, None] + number, 0), mask
