"""The triplet hinge over the global batch: LMH, LSH, LSEH, and a softer loss for a start."""

from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from vse_jax import parallel
from vse_jax.losses import triplet as losses
from vse_jax.losses.contrastive import Among, cross_entropy
from vse_jax.losses.semantics import largest_product, related_margin
from vse_jax.losses.triplet import Negatives
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, Spec
from vse_jax.objectives.pairs import Cost, Pairs, gather, hinge_metrics
from vse_jax.similarity import Similarity, dot

# Pairs that are compared with each other in the warm-up "grouped".
GROUP = 16


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
    warmup: Literal["all", "infonce", "grouped"] = "all",
    temperature: float = 0.05,
    similarity: Similarity = dot,
    semantic: float = 0.0,
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
      warmup: the softer loss: "all" negatives, or the cross-entropy over them ("infonce"); or,
        cheap where a score's gradient is not (SAF, SGR), over the others of a group of `GROUP`
        drawn at random ("grouped").
      temperature: of that cross-entropy.
      similarity: of two embeddings.
      semantic: how much wider the margin is between pairs whose captions mean the same, by
        `semantics` [b, s] of the batch; with the hardest negatives this is LSEH (Gong & Cosma,
        Pattern Recognition 2023).
    """

    wanted: losses.Margin = partial(related_margin, margin, semantic) if semantic else margin
    every: Cost = partial(losses.all_hinge, margin=wanted, chunk=chunk)
    mined: Cost = partial(losses.hardest_hinge, margin=wanted, chunk=chunk)
    entropy = partial(cross_entropy, temperature=temperature, chunk=chunk)

    def softmax(*data: Any, among: Among | None = None) -> tuple[Float[Array, ""], Negatives]:
        return entropy(*data, among=among), losses.nothing_seen(data[-1].shape[0])

    def softer(pairs: Pairs) -> Cost:
        grouped: Cost = partial(softmax, among=_group(pairs))
        return {"all": every, "infonce": softmax, "grouped": grouped}[warmup]

    def init(rng: PRNGKeyArray, spec: Spec) -> TripletState:
        del rng
        warmup = round(warmup_epochs * spec.steps_per_epoch) if negatives == "hardest" else 0
        return TripletState(jnp.zeros((), jnp.int32), jnp.asarray(warmup, jnp.int32))

    def apply(
        state: TripletState, outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], TripletState, Metrics]:
        pairs = gather(outputs, batch, similarity)
        if semantic:
            pairs = _with_semantics(pairs, batch, chunk)
        both = pairs.both
        warming = state.step < state.warmup_steps
        if negatives == "all":
            loss, seen = both(every)
        else:
            first = softer(pairs)
            loss, seen = jax.lax.cond(warming, lambda: both(first), lambda: both(mined))

        metrics = hinge_metrics(loss, pairs.positive, seen, pairs)
        watched = negatives == "hardest" and margin > 0
        metrics["collapse"] = jnp.where(watched & ~warming, metrics["collapse"], 0.0)
        return loss * parallel.device_count(), state.replace(step=state.step + 1), metrics

    return Objective(init, apply)


def _group(pairs: Pairs) -> Among:
    """Of each of this device's pairs those of its group, which batches in random order draw."""
    own = pairs.where.shape[0]
    groups = (parallel.device_index() * own + jnp.arange(own)) // GROUP

    def among(keys: Int[Array, " c"]) -> Bool[Array, "b c"]:
        return keys[None] // GROUP == groups[:, None]

    return among


def _with_semantics(pairs: Pairs, batch: Batch, chunk: int) -> Pairs:
    """The pairs with S_ij = <u_i, u_j> / max_k <u_i, u_k> as the product of their meanings."""
    own = batch["semantics"].astype(jnp.float32)
    every, where = parallel.all_gather((own, pairs.where))
    # By the picture's caption in both directions, as in the published code.
    most = largest_product(own, every, where, chunk)
    return pairs.with_meanings(own / most[:, None], own)
