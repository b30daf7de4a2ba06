"""The center loss and its centers, one a concept: a picture with its captions."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vse_jax import parallel
from vse_jax.losses import center as losses
from vse_jax.losses.blocks import Rows
from vse_jax.objectives.base import Metrics, Spec
from vse_jax.objectives.pairs import Pairs
from vse_jax.parallel import SplitRows


@dataclasses.dataclass(frozen=True)
class Center:
    """The center loss.

    Attributes:
      weight: of 1/2 mean_i (|x_i - c_i|^2 + |y_i - c_i|^2) in the loss, 0 in it for a pair whose
        concept has not been seen.
      kind: "table" (a center a training concept, in the state) or "batch" (the mean of the
        concept's embeddings in the batch).
      alpha: how far a center of the table moves at a step.
      chunk: rows looked at at a time.
    """

    weight: float
    kind: Literal["table", "batch"]
    alpha: float
    chunk: int


def empty(options: Center, spec: Spec) -> SplitRows | None:
    """The table: zeros, which say that a concept has not been seen; None without a table."""
    if options.kind != "table":
        return None
    return SplitRows(jnp.zeros((spec.images, spec.dimension)), spec.images)


def terms(
    options: Center, table: SplitRows | None, pairs: Pairs
) -> tuple[Float[Array, ""], Float[Array, "b d"], SplitRows | None, Metrics]:
    """(loss, each pair's center before this step, the table after it, metrics).

    Args:
      options: of the term.
      table: [n, d], centers by image id; None for those of the batch.
      pairs: of the batch.
    """
    (queries, texts), (_, images) = pairs.directions
    sums, counts = jax.lax.stop_gradient(
        losses.concept_sums(
            queries.ids, images._replace(vectors=images.vectors + texts.vectors), options.chunk
        )
    )
    # A picture and a caption each.
    counts = 2.0 * counts
    if table is None:
        centers = sums / jnp.maximum(counts, 1.0)[:, None]
    else:
        centers = parallel.take_rows(table, queries.ids)
        moved = losses.moved_centers(centers, sums, counts, options.alpha)
        table = parallel.put_rows(
            table, _first_rows(texts, table.count), parallel.all_gather(moved)
        )
    # A concept that has not been seen has no center to be drawn to.
    seen = pairs.where & jnp.any(centers != 0.0, axis=1)
    apart = sum(losses.center_loss(side, centers, seen) for side in (pairs.images, pairs.texts))
    mean = parallel.device_count() * apart / pairs.total
    metrics = {"center": parallel.mean(jax.lax.stop_gradient(mean))}
    return options.weight * mean, centers, table, metrics


def _first_rows(rows: Rows, concepts: int) -> Int[Array, " b"]:
    """The concepts of the global batch; -1 for padding and for repetitions.

    Rows of one concept have one center, but perhaps not to the last bit.
    """
    numbers = jnp.arange(len(rows.ids), dtype=jnp.int32)
    ids = jnp.where(rows.where, rows.ids, concepts)
    first = jnp.full(concepts + 1, len(ids), jnp.int32).at[ids].min(numbers)
    return jnp.where(rows.where & (first[ids] == numbers), ids, -1)
