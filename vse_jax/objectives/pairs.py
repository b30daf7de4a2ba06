"""The pairs of the global batch, as objectives over global embeddings see them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax import parallel
from vse_jax.losses.blocks import Rows, negative_counts
from vse_jax.losses.triplet import Negatives
from vse_jax.objectives.base import Batch, Metrics, Outputs
from vse_jax.similarity import Similarity, look_up

# (similarity, queries, keys, positives) -> (sum over the queries, what was seen of negatives)
Cost = Callable[..., tuple[Float[Array, ""], Negatives]]


class Pairs(NamedTuple):
    """This device's pairs, and both directions of looking for their other halves.

    Attributes:
      similarity: of what is compared, see `gather`.
      where: False for padding.
      directions: (queries, keys) of pictures among captions and of captions among pictures;
        the queries are this device's rows, the keys every device's.
      halves: of each direction the right keys of this device's queries, row by row.
      total: pairs of the global batch without padding, at least 1.
    """

    similarity: Similarity
    where: Bool[Array, " b"]
    directions: tuple[tuple[Rows, Rows], tuple[Rows, Rows]]
    halves: tuple[Array, Array]
    total: Int[Array, ""]

    @property
    def images(self) -> Float[Array, "b d"]:
        """Embeddings of this device's pictures."""
        return self.directions[0][0].vectors

    @property
    def texts(self) -> Float[Array, "b d"]:
        """Embeddings of their captions, row by row."""
        return self.directions[1][0].vectors

    @property
    def positive(self) -> Float[Array, " b"]:
        """The similarity of each pair."""
        return self.similarity.rows(self.directions[0][0].vectors, self.halves[0])

    def both(self, cost: Cost) -> tuple[Float[Array, ""], Negatives]:
        """The cost of both directions, and what was seen in each: [2, b]."""
        similarity = self.similarity
        (one, seen), (other, more) = (
            cost(similarity, queries, keys, similarity.rows(queries.vectors, half))
            for (queries, keys), half in zip(self.directions, self.halves, strict=True)
        )
        return one + other, jax.tree.map(lambda *x: jnp.stack(x), seen, more)

    def with_keys(self, images: Float[Array, "b d"], texts: Float[Array, "b d"]) -> "Pairs":
        """The same queries, which look among these embeddings of every device's items."""
        all_images, all_texts = parallel.all_gather((images, texts))
        (pictures, captions), (sentences, photos) = self.directions
        return self._replace(
            directions=(
                (pictures, captions._replace(vectors=all_texts)),
                (sentences, photos._replace(vectors=all_images)),
            ),
            halves=(texts, images),
        )

    def with_queries(self, images: Float[Array, "b d"], texts: Float[Array, "b d"]) -> "Pairs":
        """The same keys, among which these embeddings of this device's items look."""
        (pictures, captions), (sentences, photos) = self.directions
        return self._replace(
            directions=(
                (pictures._replace(vectors=images), captions),
                (sentences._replace(vectors=texts), photos),
            )
        )

    def with_meanings(self, images: Float[Array, "b s"], texts: Float[Array, "b s"]) -> "Pairs":
        """The same pairs with what their margins depend on, gathered from every device.

        Args:
          images: of this device's pictures.
          texts: of their captions, row by row.
        """
        all_images, all_texts = parallel.all_gather((images, texts))
        (pictures, captions), (sentences, photos) = self.directions
        return self._replace(
            directions=(
                (pictures._replace(meanings=images), captions._replace(meanings=all_texts)),
                (sentences._replace(meanings=texts), photos._replace(meanings=all_images)),
            )
        )


def own_rows(outputs: Outputs, batch: Batch) -> tuple[Rows, Rows]:
    """This device's pictures and captions, row by row, in float32; see `gather`."""
    ids, where = batch["image_id"], batch["weight"] > 0
    images, texts = (outputs[side].pooled.astype(jnp.float32) for side in ("image", "text"))
    return Rows(images, ids, where), Rows(texts, ids, where)


def gather(outputs: Outputs, batch: Batch, similarity: Similarity) -> Pairs:
    """The pairs of the global batch in float32, the keys gathered from every device.

    Args:
      outputs: of the model: two encodings, whose wholes are compared by `similarity`; or their
        `scores`, of the pictures of every device with the captions of this one, which are then
        looked up.
      batch: of this device.
      similarity: of two embeddings.
    """
    ids, where = batch["image_id"], batch["weight"] > 0
    all_ids, all_where = parallel.all_gather((ids, where))
    if "scores" in outputs:
        similarity = look_up
        own = outputs["scores"].T
        numbers = jnp.arange(len(ids)) + parallel.device_index() * len(ids)
        every = jnp.arange(len(all_ids))
        # Rows of captions are whole here; those of pictures are on all devices.
        images, texts = parallel.transposed(own), own
        halves, all_images, all_texts = (numbers, numbers), every, every
    else:
        images, texts = (rows.vectors for rows in own_rows(outputs, batch))
        halves = texts, images
        all_images, all_texts = parallel.all_gather((images, texts))
    return Pairs(
        similarity,
        where,
        (
            (Rows(images, ids, where), Rows(all_texts, all_ids, all_where)),
            (Rows(texts, ids, where), Rows(all_images, all_ids, all_where)),
        ),
        halves,
        jnp.maximum(jnp.sum(all_where), 1),
    )


def hinge_metrics(
    loss: Float[Array, ""], positive: Float[Array, " b"], seen: Negatives, pairs: Pairs
) -> Metrics:
    """Means over the global batch: loss, scores, share of the hardest that cost something.

    `collapse` is the loss over the sum of the margins of the hardest negatives: 1 where all
    embeddings are one point.

    Args:
      loss: this device's sum over its pairs and both directions.
      positive: the score of each pair.
      seen: of both directions, [2, b].
      pairs: of the batch.
    """
    usable = pairs.where[None] & (seen.hardest > -jnp.inf)
    violating = usable & (seen.margin + seen.hardest - positive[None] > 0)
    loss = parallel.mean(loss) * parallel.device_count()
    return {
        "loss_per_pair": loss / pairs.total,
        "collapse": loss / jnp.maximum(_total(seen.margin, usable), 1e-12),
        "positive": _total(positive, pairs.where) / pairs.total,
        "hardest_negative": _total(seen.hardest, usable) / jnp.maximum(_total(1.0, usable), 1.0),
        "violating": _total(1.0, violating) / (2 * pairs.total),
    }


def mean_negative(seen: Negatives, pairs: Pairs) -> Float[Array, ""]:
    """The mean score of all negatives of the global batch, `seen` as in `hinge_metrics`."""
    numbers = jnp.stack([negative_counts(*rows) for rows in pairs.directions])
    where = jnp.broadcast_to(pairs.where[None], numbers.shape)
    return _total(seen.total, where) / jnp.maximum(_total(numbers, where), 1.0)


def _total(values: float | Float[Array, "..."], where: Bool[Array, "..."]) -> Float[Array, ""]:
    """The sum over every device of the values kept by `where`."""
    return parallel.total(jnp.sum(jnp.where(where, values, 0.0)))
