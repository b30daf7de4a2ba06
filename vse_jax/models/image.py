"""The image side: backbone or given features -> parts -> a network's head -> the common space."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from vse_jax.encoding import Encoding
from vse_jax.models.backbones.feature_map import FeatureMap
from vse_jax.models.dropout import Dropout
from vse_jax.models.normalize import l2_normalize
from vse_jax.models.regions import box_features, pyramid

Parts = Literal["pooled", "grid", "pyramid", "boxes"]


class ImageEncoder(nn.Module):
    """Pictures, or features of them, to the common space.

    Attributes:
      head: parts [b, n, f] and their mask to an encoding.
      backbone: pixels -> `FeatureMap`; None where only features are given.
      parts: what of a backbone's map the parts are, see `parts_of`.
      cells: of a "pyramid", a side.
      frozen: whether the backbone is used as it is: no gradient, running statistics.
      keep_statistics: whether it is run in training as in evaluation, though with a gradient: by
        running statistics, which stay as they are, and without dropout of its own.
      normalize_features: whether each part's features are scaled to length 1 first.
      dropout: share of feature channels dropped in training.
    """

    head: nn.Module
    backbone: nn.Module | None = None
    parts: Parts = "pooled"
    cells: int = 4
    frozen: bool = False
    keep_statistics: bool = False
    normalize_features: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        image: UInt8[Array, "b h w 3"] | None,
        features: Float[Array, "b n f"] | None,
        mask: Bool[Array, "b n"] | None,
        boxes: Float[Array, "b r 4"] | None = None,
        *,
        train: bool,
    ) -> Encoding:
        """Encodes pixels and, where parts are such, boxes; or else given features and their mask.

        Boxes are (y0, x0, y1, x1) as shares of the picture; those of no area are padding.
        """
        if image is not None:
            features = self._seen(image, boxes, train)
            mask = real_parts(features, self.parts, boxes)
        elif features is None or mask is None:
            raise ValueError("neither pixels nor features with their mask were given")
        if self.normalize_features:
            features = l2_normalize(features)
        features = Dropout(self.dropout)(features, train=train)
        return self.head(features, mask, train=train)

    def features(
        self, image: UInt8[Array, "b h w 3"], boxes: Float[Array, "b r 4"] | None = None
    ) -> Float[Array, "b n f"]:
        """What the backbone alone makes of pictures, as it is."""
        assert self.backbone is not None
        return parts_of(self.backbone(image, train=False), self.parts, self.cells, boxes)

    def _seen(
        self, image: UInt8[Array, "b h w 3"], boxes: Float[Array, "b r 4"] | None, train: bool
    ) -> Float[Array, "b n f"]:
        if self.frozen:
            return jax.lax.stop_gradient(self.features(image, boxes))
        assert self.backbone is not None
        seen = self.backbone(image, train=train and not self.keep_statistics)
        return parts_of(seen, self.parts, self.cells, boxes)


def parts_of(
    seen: FeatureMap,
    parts: Parts,
    cells: int = 4,
    boxes: Float[Array, "b r 4"] | None = None,
) -> Float[Array, "b n c"]:
    """Parts of pictures, float32.

    "pooled": the whole alone. "grid": every cell of the map, row by row. "pyramid": the map pooled
    to `cells` x `cells`, then its mean: regions of two sizes. "boxes": the map under each box, see
    `box_features`; 0 under one of no area.
    """
    if parts == "pooled":
        return seen.pooled.astype(jnp.float32)[:, None]
    grid = seen.grid.astype(jnp.float32)
    if parts == "pyramid":
        return pyramid(grid, cells)
    if parts == "boxes":
        if boxes is None:
            raise ValueError("the parts of these pictures are boxes, and none were given")
        return box_features(grid, boxes, have_area(boxes))
    return grid.reshape(grid.shape[0], -1, grid.shape[-1])


def real_parts(
    features: Float[Array, "b n c"], parts: Parts, boxes: Float[Array, "b r 4"] | None
) -> Bool[Array, "b n"]:
    """Which of the parts that `parts_of` gives are real: all, but boxes of no area."""
    if parts == "boxes" and boxes is not None:
        return have_area(boxes)
    return jnp.ones(features.shape[:2], bool)


def have_area(boxes: Float[Array, "b r 4"]) -> Bool[Array, "b r"]:
    """Which boxes (y0, x0, y1, x1) hold anything."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
