"""What backbones hand on: of pictures a grid and a whole, of sentences words and a whole."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class FeatureMap(NamedTuple):
    """Pictures as a backbone sees them.

    Attributes:
      grid: a vector for each cell.
      pooled: one for the whole, as the backbone's own task uses it: the mean of the cells, a
        class token, or an embedding in the space of a text tower.
    """

    grid: Float[Array, "b h w c"]
    pooled: Float[Array, "b p"]


class WordFeatures(NamedTuple):
    """Sentences as a backbone reads them.

    Attributes:
      words: a vector for each token; what stands behind a sentence's last does not matter.
      pooled: one for the whole, as the backbone's own task uses it.
    """

    words: Float[Array, "b l c"]
    pooled: Float[Array, "b p"]


def averaged(grid: Float[Array, "b h w c"]) -> FeatureMap:
    """The grid, and the mean of its cells in float32 as its whole."""
    return FeatureMap(grid, jnp.mean(grid, axis=(1, 2), dtype=jnp.float32))
