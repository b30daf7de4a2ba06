"""The hinge on Euclidean distances whose margin is state, refined at each step."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vse_jax import parallel
from vse_jax.losses import triplet as losses
from vse_jax.losses.blocks import Rows
from vse_jax.losses.contrastive import cross_entropy
from vse_jax.objectives.base import Metrics, Spec
from vse_jax.objectives.pairs import Pairs, hinge_metrics, mean_negative
from vse_jax.similarity import Similarity, negative_euclidean


@dataclasses.dataclass(frozen=True)
class Hinge:
    """The hinge and the rule of its margin m.

    Attributes:
      weight: in the loss.
      negatives: "hardest" or "all".
      warmup_epochs: epochs of a softer loss over all negatives before the hardest.
      warmup: that loss: the hinge over "all", or the cross-entropy over them ("infonce").
      temperature: divides minus the distances in that cross-entropy.
      margin: m at the start.
      rule: "fixed"; "gap": m <- rho m + (1 - rho) clip(kappa (mean d_neg - mean d_pos), least,
        most), over all pairs and all negatives of the global batch; "active": m <- clip(m +
        (1 - rho) (active_share - a), least, most), a the share of hardest negatives that cost.
      rho: how slowly m moves, and the running distances.
      kappa: of "gap".
      active_share: of "active".
      least: bound of m.
      most: bound of m.
      pair_margins: whether a pair's margin is m clip(delta / mean delta, pair_low, pair_high),
        delta the distance of the two concepts' centers, quantized where there is a quantizer, and
        mean delta its moving average over pairs that are next to each other in the batch.
      pair_low: bound of that factor.
      pair_high: bound of that factor.
      quantized: weight of the same hinge on the quantized embeddings.
      quantized_distance: in that hinge, of embeddings to quantized ones ("asymmetric", as codes are
        searched), or of quantized ones to each other ("symmetric").
      chunk: pairs scored at a time; memory grows with rows of a device x chunk.
    """

    weight: float
    negatives: Literal["hardest", "all"]
    warmup_epochs: float
    warmup: Literal["all", "infonce"]
    temperature: float
    margin: float
    rule: Literal["fixed", "gap", "active"]
    rho: float
    kappa: float
    active_share: float
    least: float
    most: float
    pair_margins: bool
    pair_low: float
    pair_high: float
    quantized: float
    quantized_distance: Literal["asymmetric", "symmetric"]
    chunk: int


class MarginState(flax.struct.PyTreeNode):
    """The margin; see `TripletState` for the types.

    Attributes:
      step: int32, steps taken.
      warmup_steps: int32, steps of the softer loss.
      margin: float32, m.
      positive: float32, moving average of mean d_pos; 0: none seen.
      negative: float32, of mean d_neg.
      spread: float32, of mean delta.
    """

    step: Any
    warmup_steps: Any
    margin: Any
    positive: Any
    negative: Any
    spread: Any


def start(options: Hinge, spec: Spec) -> MarginState:
    """The state before the first step."""
    hardest = options.negatives == "hardest"
    warmup = round(options.warmup_epochs * spec.steps_per_epoch) if hardest else 0
    return MarginState(
        jnp.zeros((), jnp.int32),
        jnp.asarray(warmup, jnp.int32),
        jnp.asarray(options.margin, jnp.float32),
        *jnp.zeros(3),
    )


def terms(
    options: Hinge,
    state: MarginState,
    pairs: Pairs,
    quantized: tuple[Float[Array, ""], Pairs] | None,
    meanings: Float[Array, "b s"] | None,
) -> tuple[Float[Array, ""], MarginState, Metrics]:
    """(loss, the state after this step, metrics).

    Args:
      options: of the hinge.
      state: of the margin.
      pairs: of the batch.
      quantized: (weight of the hinge on these, the pairs quantized).
      meanings: each pair's center, zeros for one that has not been seen; None for one margin.
    """
    margin: losses.Margin = state.margin
    spread = state.spread
    if meanings is not None:
        pairs = pairs.with_meanings(meanings, meanings)
        spread = _updated_spread(options, spread, pairs.directions[0][1])
        margin = partial(_pair_margins, options, state.margin, spread)
    warming = state.step < state.warmup_steps

    def hinge(pairs: Pairs) -> tuple[Float[Array, ""], losses.Negatives]:
        def of(cost: Callable[..., Any]) -> Callable[[], Any]:
            with_margin = partial(cost, margin=margin, chunk=options.chunk)
            return lambda: pairs.both(with_margin)

        if options.negatives == "all":
            return of(losses.all_hinge)()
        softer = losses.all_hinge if options.warmup == "all" else partial(_softmax, options)
        return jax.lax.cond(warming, of(softer), of(losses.hardest_hinge))

    loss, seen = hinge(pairs)
    found = hinge_metrics(loss, pairs.positive, seen, pairs)
    negative = mean_negative(seen, pairs)
    watched = (options.negatives == "hardest") & ~warming
    # Similarities are minus the distances.
    gap = found["positive"] - negative
    some = jnp.any(pairs.directions[0][1].where)
    running = {
        name: _averaged(options, getattr(state, name), -score, some)
        for name, score in (("positive", found["positive"]), ("negative", negative))
    }
    metrics = {
        "loss_per_pair": found["loss_per_pair"],
        "collapse": jnp.where(watched, found["collapse"], 0.0),
        "distance/positive": running["positive"],
        "distance/negative": running["negative"],
        "distance/hardest_negative": -found["hardest_negative"],
        "violating": found["violating"],
        "margin": state.margin,
    }
    if meanings is not None:
        metrics["distance/meanings"] = spread
    moved = _moved(options, state.margin, gap, found["violating"])
    total = options.weight * loss
    if quantized is not None:
        weight, stored = quantized
        if meanings is not None:
            stored = stored.with_meanings(meanings, meanings)
        total += weight * hinge(stored)[0]
    new = state.replace(step=state.step + 1, margin=moved, spread=spread, **running)
    return total * parallel.device_count(), new, metrics


def _softmax(
    options: Hinge,
    similarity: Similarity,
    queries: Rows,
    keys: Rows,
    positive: Float[Array, " b"],
    margin: losses.Margin,
    chunk: int,
) -> tuple[Float[Array, ""], losses.Negatives]:
    """The cross-entropy, and what the hinge sees of the negatives: the margin moves by it."""
    data = similarity, queries, keys, positive
    _, seen = losses.all_hinge(*data, margin, chunk)
    return cross_entropy(*data, options.temperature, chunk), seen


def _pair_margins(
    options: Hinge, margin: Float[Array, ""], spread: Float[Array, ""], queries: Rows, keys: Rows
) -> Float[Array, "b c"]:
    """m clip(delta_ij / mean delta, low, high); m where either concept has not been seen."""
    delta = -negative_euclidean.matrix(_meanings(queries), _meanings(keys))
    seen = _seen(queries)[:, None] & _seen(keys)[None, :] & (spread > 0)
    factor = jnp.clip(
        delta / jnp.where(spread > 0, spread, 1.0), options.pair_low, options.pair_high
    )
    return margin * jnp.where(seen, factor, 1.0)


def _updated_spread(options: Hinge, spread: Float[Array, ""], keys: Rows) -> Float[Array, ""]:
    """The moving average of the distance of concepts' centers, by rows next to each other."""
    other = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), keys)
    apart = -negative_euclidean.rows(_meanings(keys), _meanings(other))
    counts = keys.where & other.where & (keys.ids != other.ids)
    counts &= _seen(keys) & _seen(other)
    mean = jnp.sum(jnp.where(counts, apart, 0.0)) / jnp.maximum(jnp.sum(counts), 1)
    return _averaged(options, spread, mean, jnp.any(counts))


def _averaged(
    options: Hinge, average: Float[Array, ""], value: Float[Array, ""], seen: Bool[Array, ""]
) -> Float[Array, ""]:
    """The moving average after `value`, which begins it; as it was where nothing was seen."""
    moved = jnp.where(average > 0, options.rho * average + (1.0 - options.rho) * value, value)
    return jnp.where(seen, moved, average)


def _meanings(rows: Rows) -> Float[Array, "b s"]:
    assert rows.meanings is not None, "pair margins are of pairs with meanings"
    return rows.meanings


def _seen(rows: Rows) -> Bool[Array, " b"]:
    return jnp.any(_meanings(rows) != 0.0, axis=1)


def _moved(
    options: Hinge,
    margin: Float[Array, ""],
    gap: Float[Array, ""],
    violating: Float[Array, ""],
) -> Float[Array, ""]:
    """The margin of the next step; `gap` is mean d_neg - mean d_pos."""
    low, high = options.least, options.most
    if options.rule == "gap":
        target = jnp.clip(options.kappa * gap, low, high)
        return options.rho * margin + (1.0 - options.rho) * target
    if options.rule == "active":
        step = (1.0 - options.rho) * (options.active_share - violating)
        return jnp.clip(margin + step, low, high)
    return margin
