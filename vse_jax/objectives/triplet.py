"""The triplet hinge over the global batch: LMH, LSH, and LSH for a start."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from vse_jax import parallel
from vse_jax.losses import triplet as losses
from vse_jax.losses.contrastive import cross_entropy
from vse_jax.models.similarity import Similarity, dot
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, Spec
from vse_jax.objectives.pairs import Pairs, gather

# (similarity, queries, keys, positives) -> (sum over the queries, score of each one's hardest
# negative)
_Cost = Callable[..., tuple[Float[Array, ""], Float[Array, " b"]]]


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
    warmup: Literal["all", "infonce"] = "all",
    temperature: float = 0.05,
    similarity: Similarity = dot,
) -> Objective:
    """The hinge of every pair of the global batch against its negatives, both directions.

    The loss is the sum over the pairs, as published. From scratch the hardest negatives
    alone collapse all embeddings to one point, where every pair costs 2 x margin and the
    gradient all but vanishes; `warmup_epochs` of a softer loss avoid it. The metric
    `collapse` is the loss of a pair over 2 x margin while hardest negatives are used (near 1
    for long: collapsed), else 0, as for a margin of 0. Source: Faghri et al., VSE++, BMVC 2018.

    Args:
      margin: of the hinge.
      negatives: "hardest" (LMH) or "all" (LSH).
      warmup_epochs: epochs of the softer loss before "hardest".
      chunk: pairs scored at a time; memory grows with rows of a device x chunk.
      warmup: the softer loss: "all" negatives, or the cross-entropy over them ("infonce").
      temperature: of that cross-entropy.
      similarity: of two embeddings.
    """

    every: _Cost = partial(losses.all_hinge, margin=margin, chunk=chunk)
    mined: _Cost = partial(losses.hardest_hinge, margin=margin, chunk=chunk)
    entropy = partial(cross_entropy, temperature=temperature, chunk=chunk)

    def softmax(*data: Any) -> tuple[Float[Array, ""], Float[Array, " b"]]:
        loss = entropy(*data)
        return loss, jnp.full(data[-1].shape, -jnp.inf)

    softer = every if warmup == "all" else softmax

    def init(rng: PRNGKeyArray, spec: Spec) -> TripletState:
        del rng
        warmup = round(warmup_epochs * spec.steps_per_epoch) if negatives == "hardest" else 0
        return TripletState(jnp.zeros((), jnp.int32), jnp.asarray(warmup, jnp.int32))

    def apply(
        state: TripletState, outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], TripletState, Metrics]:
        pairs = gather(outputs, batch)
        positive = pairs.positive(similarity)

        def both(cost: _Cost) -> tuple[Float[Array, ""], Float[Array, "2 b"]]:
            """The cost of pictures among captions and of captions among pictures."""
            found = [cost(similarity, *direction, positive) for direction in pairs.directions]
            return found[0][0] + found[1][0], jnp.stack([hardest for _, hardest in found])

        warming = state.step < state.warmup_steps
        if negatives == "all":
            loss, hardest = both(every)
        else:
            loss, hardest = jax.lax.cond(warming, lambda: both(softer), lambda: both(mined))
        loss = loss * parallel.device_count()

        metrics = _metrics(loss, positive, hardest, margin, pairs)
        watched = negatives == "hardest" and margin > 0
        collapse = metrics["loss_per_pair"] / (2 * margin) if watched else jnp.zeros(())
        metrics["collapse"] = jnp.where(warming, 0.0, collapse)
        return loss, state.replace(step=state.step + 1), metrics

    return Objective(init, apply)


def _metrics(
    loss: Float[Array, ""],
    positive: Float[Array, " b"],
    hardest: Float[Array, "2 b"],
    margin: float,
    pairs: Pairs,
) -> Metrics:
    """Means over the global batch: loss, scores, share of the hardest that cost something."""
    usable = pairs.where[None] & (hardest > -jnp.inf)
    violating = usable & (margin + hardest - positive[None] > 0)

    def total(values: float | Float[Array, "..."], where: Bool[Array, "..."]) -> Float[Array, ""]:
        return parallel.total(jnp.sum(jnp.where(where, values, 0.0)))

    return {
        "loss_per_pair": parallel.mean(loss) / pairs.total,
        "positive": total(positive, pairs.where) / pairs.total,
        "hardest_negative": total(hardest, usable) / jnp.maximum(total(1.0, usable), 1.0),
        "violating": total(1.0, violating) / (2 * pairs.total),
    }
