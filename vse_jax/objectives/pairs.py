"""The pairs of the global batch, as objectives over global embeddings see them."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax import parallel
from vse_jax.objectives.base import Batch, Outputs


class Pairs(flax.struct.PyTreeNode):
    """Pictures with their captions, row by row.

    Attributes:
      images: embeddings of the pictures.
      texts: embeddings of the captions.
      ids: of the pictures; rows of one id are never each other's negatives.
      where: False for padding.
    """

    images: Float[Array, "b d"]
    texts: Float[Array, "b d"]
    ids: Int[Array, " b"]
    where: Bool[Array, " b"]


def gather(outputs: Outputs, batch: Batch) -> tuple[Pairs, Pairs]:
    """(this device's pairs, every device's), float32."""
    local = Pairs(
        images=outputs["image"].pooled.astype(jnp.float32),
        texts=outputs["text"].pooled.astype(jnp.float32),
        ids=batch["image_id"],
        where=batch["weight"] > 0,
    )
    return local, parallel.all_gather(local)
