"""The image side: backbone or cached features -> linear -> the common space."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from vse_jax.encoding import Encoding
from vse_jax.models.normalize import l2_normalize


class ImageEncoder(nn.Module):
    """Pictures, or features of them, to the common space: linear, then length 1 by default.

    `pooled` is the projected mean over the parts (and their maximum, channel by channel, where
    asked for), `local` each part projected as if it were alone. Source: Faghri et al., VSE++,
    BMVC 2018, section 3.3.

    Attributes:
      dimension: of the common space.
      backbone: pixels -> grid map; None where only features are given.
      pool: whether a backbone's grid is averaged to one part first.
      pooling: what is projected of the parts: "mean", or "mean_max", both side by side.
      frozen: whether the backbone is used as it is: no gradient, running statistics.
      normalize_features: whether each part's features are scaled to length 1 first.
      normalize: whether embeddings are scaled to length 1.
      dropout: share of feature channels dropped in training.
      dtype: of the computation.
    """

    dimension: int
    backbone: nn.Module | None = None
    pool: bool = True
    pooling: Literal["mean", "mean_max"] = "mean"
    frozen: bool = False
    normalize_features: bool = False
    normalize: bool = True
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: UInt8[Array, "b h w 3"] | None,
        features: Float[Array, "b n f"] | None,
        mask: Bool[Array, "b n"] | None,
        *,
        train: bool,
    ) -> Encoding:
        """Encodes pixels, or else the given features and their mask."""
        if image is not None:
            features, mask = self._parts(image, train)
        elif features is None or mask is None:
            raise ValueError("neither pixels nor features with their mask were given")
        if self.normalize_features:
            features = l2_normalize(features)
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
        project = nn.Dense(
            self.dimension,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            name="project",
        )
        count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        whole = jnp.sum(jnp.where(mask[..., None], features, 0.0), axis=1) / count
        parts = features
        if self.pooling == "mean_max":
            # A picture without parts has no maximum; zero, like its mean.
            highest = jnp.max(features, axis=1, where=mask[..., None], initial=-jnp.inf)
            highest = jnp.where(jnp.any(mask, axis=1, keepdims=True), highest, 0.0)
            whole = jnp.concatenate([whole, highest], axis=-1)
            parts = jnp.concatenate([features, features], axis=-1)
        local, pooled = (project(x).astype(jnp.float32) for x in (parts, whole))
        if self.normalize:
            local, pooled = l2_normalize(local), l2_normalize(pooled)
        return Encoding(local=local * mask[..., None], mask=mask, pooled=pooled)

    def _parts(
        self, image: UInt8[Array, "b h w 3"], train: bool
    ) -> tuple[Float[Array, "b n f"], Bool[Array, "b n"]]:
        assert self.backbone is not None
        grid = self.backbone(image, train=train and not self.frozen).grid
        if self.frozen:
            grid = jax.lax.stop_gradient(grid)
        parts = parts_of(grid, self.pool)
        return parts, jnp.ones(parts.shape[:2], bool)


def parts_of(grid: Float[Array, "b h w c"], pool: bool) -> Float[Array, "b n c"]:
    """A grid map as float32 parts: its cells, row by row, or their mean alone."""
    cells = grid.astype(jnp.float32).reshape(grid.shape[0], -1, grid.shape[-1])
    return jnp.mean(cells, axis=1, keepdims=True) if pool else cells
