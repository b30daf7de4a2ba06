"""InfoNCE over the global batch, as CLIP trains."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from vse_jax import parallel
from vse_jax.losses.blocks import Rows
from vse_jax.losses.contrastive import cross_entropy, log_total, picking_cost
from vse_jax.objectives import ring
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, no_state
from vse_jax.objectives.pairs import gather, own_rows
from vse_jax.similarity import Similarity, dot


def infonce(
    temperature: float,
    chunk: int,
    similarity: Similarity = dot,
    exchange: ring.Exchange = "gather",
) -> Objective:
    """The cross-entropy of each pair against its negatives, the mean of both directions.

    The loss is the mean over the pairs of the global batch; there is no state. Where the model has
    a learned temperature (`scales` of its outputs), that takes the place of the one given. Source:
    Radford et al., CLIP, ICML 2021, section 2.3.

    Args:
      temperature: divides the scores.
      chunk: pairs scored at a time; memory grows with rows of a device x chunk.
      similarity: of two embeddings.
      exchange: how a device's keys meet the others' queries: gathered on all of them, or device
        after device, see `ring`. A pairwise model's scores are all there already.
    """

    def apply(
        state: dict[str, Any], outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Any], Metrics]:
        learned = outputs.get("scales", {}).get("infonce")
        divisor = temperature if learned is None else learned.temperature
        if exchange == "ring" and "scores" not in outputs:
            images, texts = own_rows(outputs, batch)
            own = similarity.rows(images.vectors, texts.vectors) / divisor
            part = partial(_part, similarity, chunk)
            one, other = (
                picking_cost(own, _around(part, queries, keys, divisor), queries.where)
                for queries, keys in ((images, texts), (texts, images))
            )
            count = jnp.maximum(parallel.total(jnp.sum(images.where)), 1)
        else:
            pairs = gather(outputs, batch, similarity)
            one, other = (
                cross_entropy(pairs.similarity, queries, keys, pairs.positive, divisor, chunk)
                for queries, keys in pairs.directions
            )
            count = pairs.total
        loss = parallel.device_count() * (one + other) / (2 * count)
        metrics = {"loss_per_pair": parallel.mean(loss)}
        if learned is not None:
            metrics["temperature"] = learned.temperature
        return loss, state, metrics

    return Objective(no_state, apply)


def _around(
    part: ring.Part, queries: Rows, keys: Rows, divisor: float | Float[Array, ""]
) -> Float[Array, " b"]:
    own = queries.vectors, jnp.asarray(divisor, jnp.float32)
    return ring.total(
        ring.LOG_SUM, part, own, keys.vectors, (ring.labels(queries), ring.labels(keys))
    )


def _part(
    similarity: Similarity,
    chunk: int,
    own: tuple[Float[Array, "b d"], Float[Array, ""]],
    keys: Float[Array, "b d"],
    given: tuple[ring.Labels, ring.Labels],
) -> Float[Array, " b"]:
    vectors, divisor = own
    ours, theirs = given
    return log_total(similarity, Rows(vectors, *ours), Rows(keys, *theirs), divisor, chunk)
