"""The pairs of the global batch, as objectives over global embeddings see them."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax import parallel
from vse_jax.losses.blocks import Rows
from vse_jax.models.similarity import Similarity
from vse_jax.objectives.base import Batch, Outputs


class Pairs(NamedTuple):
    """This device's pairs, and both directions of looking for their other halves.

    Attributes:
      images: embeddings of this device's pictures.
      texts: embeddings of their captions, row by row.
      where: False for padding.
      directions: (queries, keys) of pictures among captions and of captions among pictures;
        the queries are this device's rows, the keys every device's.
      total: pairs of the global batch without padding, at least 1.
    """

    images: Float[Array, "b d"]
    texts: Float[Array, "b d"]
    where: Bool[Array, " b"]
    directions: tuple[tuple[Rows, Rows], tuple[Rows, Rows]]
    total: Int[Array, ""]

    def positive(self, similarity: Similarity) -> Float[Array, " b"]:
        """The similarity of each pair."""
        return similarity.rows(self.images, self.texts)


def gather(outputs: Outputs, batch: Batch) -> Pairs:
    """The pairs in float32, the keys gathered from every device."""
    images, texts = (outputs[side].pooled.astype(jnp.float32) for side in ("image", "text"))
    ids, where = batch["image_id"], batch["weight"] > 0
    all_images, all_texts, all_ids, all_where = parallel.all_gather((images, texts, ids, where))
    return Pairs(
        images,
        texts,
        where,
        (
            (Rows(images, ids, where), Rows(all_texts, all_ids, all_where)),
            (Rows(texts, ids, where), Rows(all_images, all_ids, all_where)),
        ),
        jnp.maximum(jnp.sum(all_where), 1),
    )
