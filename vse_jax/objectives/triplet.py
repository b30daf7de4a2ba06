"""The triplet hinge over the global batch: LMH, LSH, and LSH for a start."""

from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vse_jax import parallel
from vse_jax.losses import triplet as losses
from vse_jax.models.similarity import Similarity, dot
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, Spec
from vse_jax.objectives.pairs import gather


class TripletState(flax.struct.PyTreeNode):
    """Counts the steps, for the warm-up.

    The fields are `Any` as those of `TrainState`: on the host they are NumPy arrays, and
    between the steps of `jax.pmap` they have an axis of devices in front.

    Attributes:
      step: int32, steps taken.
      warmup_steps: int32, steps over all negatives before the hardest ones are mined.
    """

    step: Any
    warmup_steps: Any


def triplet(
    margin: float,
    negatives: Literal["hardest", "all"],
    warmup_epochs: float,
    chunk: int,
    similarity: Similarity = dot,
) -> Objective:
    """The hinge of every pair of the global batch against its negatives, both directions.

    The loss is the sum over the pairs, as published. From scratch the hardest negatives
    alone collapse all embeddings to one point, where every pair costs 2 x margin and the
    gradient all but vanishes; `warmup_epochs` over all negatives avoid it. The metric
    `collapse` is the loss of a pair over 2 x margin while hardest negatives are used (near 1
    for long: collapsed), else 0, as for a margin of 0. Source: Faghri et al., VSE++, BMVC 2018.

    Args:
      margin: of the hinge.
      negatives: "hardest" (LMH) or "all" (LSH).
      warmup_epochs: epochs of "all" before "hardest".
      chunk: pairs scored at a time; memory grows with rows of a device x chunk.
      similarity: of two embeddings.
    """

    def init(rng: PRNGKeyArray, spec: Spec) -> TripletState:
        del rng
        warmup = round(warmup_epochs * spec.steps_per_epoch) if negatives == "hardest" else 0
        return TripletState(jnp.zeros((), jnp.int32), jnp.asarray(warmup, jnp.int32))

    def apply(
        state: TripletState, outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], TripletState, Metrics]:
        local, everywhere = gather(outputs, batch)
        positive = similarity.rows(local.images, local.texts)

        def both(hinge: Callable) -> tuple[Float[Array, ""], Float[Array, "2 b"]]:
            image_loss, image_hardest = hinge(
                similarity, local.images, local.ids, positive, local.where,
                everywhere.texts, everywhere.ids, everywhere.where, margin, chunk,
            )  # fmt: skip
            text_loss, text_hardest = hinge(
                similarity, local.texts, local.ids, positive, local.where,
                everywhere.images, everywhere.ids, everywhere.where, margin, chunk,
            )  # fmt: skip
            return image_loss + text_loss, jnp.stack([image_hardest, text_hardest])

        warming = state.step < state.warmup_steps
        if negatives == "all":
            loss, hardest = both(losses.all_hinge)
        else:
            loss, hardest = jax.lax.cond(
                warming, lambda: both(losses.all_hinge), lambda: both(losses.hardest_hinge)
            )
        loss = loss * parallel.device_count()

        pairs = jnp.maximum(jnp.sum(everywhere.where), 1)
        per_pair = parallel.mean(loss) / pairs
        watched = negatives == "hardest" and margin > 0
        collapse = jnp.where(warming, 0.0, per_pair / (2 * margin)) if watched else jnp.zeros(())
        usable = local.where[None] & (hardest > -jnp.inf)
        metrics = {
            "loss_per_pair": per_pair,
            "collapse": collapse,
            "positive": parallel.total(jnp.sum(jnp.where(local.where, positive, 0.0))) / pairs,
            "hardest_negative": parallel.total(jnp.sum(jnp.where(usable, hardest, 0.0)))
            / jnp.maximum(parallel.total(jnp.sum(usable)), 1),
            "violating": parallel.total(
                jnp.sum(usable & (margin + hardest - positive[None] > 0), dtype=jnp.float32)
            )
            / (2 * pairs),
        }
        return loss, state.replace(step=state.step + 1), metrics

    return Objective(init, apply)
