"""The quantizer's terms and its codebook, state that every device moves alike."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vse_jax import codebook as codebooks
from vse_jax import parallel
from vse_jax.codebook import Codebook
from vse_jax.losses import codes as losses
from vse_jax.objectives.base import Metrics, Spec
from vse_jax.objectives.pairs import Pairs


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """The product codebook shared by pictures and captions.

    Attributes:
      weight: of the commitment term in the loss, beta (|x - sg(e)|^2 + |y - sg(e)|^2), its
        mean over the pairs.
      beta: of the commitment.
      parts: M, the bytes of an embedding.
      codes: K, at most 256.
      rule: how the codebook moves: by moving "average" or by "gradient".
      decay: of the moving averages, of how often a code is chosen too.
      rate: of the gradient descent.
      dead_share: a code chosen less often than this share of an even choice is put where one
        of the batch's embeddings lies.
      rotate_at: after each of these shares of the training the codebook begins anew, in the
        principal axes that the embeddings have then; before the first the quantizer's terms have
        no weight. Empty: embeddings are cut into parts as they are.
    """

    weight: float
    beta: float
    parts: int
    codes: int
    rule: Literal["average", "gradient"]
    decay: float
    rate: float
    dead_share: float
    rotate_at: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Multitask:
    """Each side's codes as classes for the other side.

    Attributes:
      weight: of the cross-entropies in the loss, the mean over pairs and directions.
      temperature: of the soft assignment.
    """

    weight: float
    temperature: float


class RotationState(flax.struct.PyTreeNode):
    """Where the principal axes come from; see `TripletState` for the types.

    Attributes:
      steps: int32 [n], at which the axes are taken.
      count: float32, moving average of the embeddings of a batch.
      sum: float32 [D], of what they sum to.
      squares: float32 [D, D], of what their outer products sum to.
    """

    steps: Any
    count: Any
    sum: Any
    squares: Any


class QuantizerState(flax.struct.PyTreeNode):
    """The codebook and the moving averages behind it; see `TripletState` for the types.

    Attributes:
      codebook: float32, a `codebook.Codebook`.
      totals: float32 [M, K], how many parts of a batch choose each code; a new code begins with
        the average of all.
      sums: float32 [M, K, D/M], what these sum to.
      chosen: float32 [M, K], as totals, but new codes begin with nothing: what is logged.
      rotation: None where embeddings are cut into parts as they are.
    """

    codebook: Any
    totals: Any
    sums: Any
    chosen: Any
    rotation: RotationState | None


class Quantized(NamedTuple):
    """A batch as its codes have it, in the axes of the codebook.

    Attributes:
      sides: (x, y), pictures and captions.
      stored: (q(x), q(y)), with the gradient of x and y.
      started: 1 from the first of `rotate_at` on, else 0.
    """

    sides: tuple[Float[Array, "b d"], Float[Array, "b d"]]
    stored: tuple[Float[Array, "b d"], Float[Array, "b d"]]
    started: Float[Array, ""]


def empty(options: Quantizer, spec: Spec) -> QuantizerState:
    """A codebook of dead codes: the first batch seeds them."""
    width = spec.dimension
    shape = (options.parts, options.codes, width // options.parts)
    rotation = None
    if options.rotate_at:
        # Upwards, as steps of a validation: it sees the codes before they begin anew. Not the first
        # step: nothing has been seen before it.
        steps = [
            max(1, min(math.ceil(share * spec.steps), spec.steps - 1))
            for share in options.rotate_at
        ]
        rotation = RotationState(
            jnp.asarray(steps, jnp.int32), jnp.zeros(()), jnp.zeros(width), jnp.zeros((width,) * 2)
        )
    codebook = Codebook(jnp.zeros(shape), None if rotation is None else jnp.eye(width))
    none = jnp.zeros(shape[:2])
    return QuantizerState(codebook, none, jnp.zeros(shape), none, rotation)


def terms(
    options: Quantizer,
    multitask: Multitask | None,
    state: QuantizerState,
    step: Int[Array, ""],
    pairs: Pairs,
) -> tuple[Float[Array, ""], Quantized, QuantizerState, Metrics]:
    """(loss, the pairs quantized, the state after this step, metrics).

    Args:
      options: of the quantizer.
      multitask: of the cross-entropy; None leaves it out.
      state: of the codebook.
      step: chooses the embeddings that dead codes are put on.
      pairs: of the batch.
    """
    state = _seeded(options, _turned(options, state, step), step, pairs)
    started = jnp.ones(())
    if state.rotation is not None:
        started = jnp.any(step >= state.rotation.steps).astype(jnp.float32)
    # From here on pictures, then captions, in the axes of the codebook.
    z = codebooks.turned(jnp.concatenate([pairs.images, pairs.texts]), state.codebook)
    where = jnp.tile(pairs.where, 2)
    book = Codebook(state.codebook.centroids)
    codes = codebooks.encode(jax.lax.stop_gradient(z), book)
    e = codebooks.decode(codes, book)

    share = started * parallel.device_count() / pairs.total
    apart = losses.commitment(z, e, where)
    loss = options.weight * options.beta * share * apart
    metrics = {"quantization": parallel.total(jax.lax.stop_gradient(apart)) / (2 * pairs.total)}
    if multitask is not None:
        others = jnp.roll(codes, len(pairs.where), axis=0)
        surprise = losses.code_cross_entropy(z, others, book, multitask.temperature, where)
        loss += multitask.weight * share * surprise / 2
        total = parallel.total(jax.lax.stop_gradient(surprise))
        metrics["code_entropy"] = total / (2 * pairs.total)

    counts, sums = parallel.total(losses.usage(z, codes, book, where))
    state = _moved(options, state, counts, sums)
    if state.rotation is not None:
        state = state.replace(rotation=_followed(options, state.rotation, step, pairs))
    # Of a moving average: a batch has fewer embeddings than most codebooks have codes.
    metrics["code_perplexity"] = losses.perplexity(state.chosen)
    images, texts = jnp.split(z, 2)
    stored_images, stored_texts = jnp.split(codebooks.straight_through(z, e), 2)
    quantized = Quantized((images, texts), (stored_images, stored_texts), started)
    return loss, quantized, state, metrics


def _turned(options: Quantizer, state: QuantizerState, step: Int[Array, ""]) -> QuantizerState:
    """At the steps of the rotation a codebook of dead codes in new axes, else the state."""
    rotation = state.rotation
    if rotation is None:
        return state

    def turn() -> Codebook:
        mean = rotation.sum / rotation.count
        covariance = rotation.squares / rotation.count - jnp.outer(mean, mean)
        axes = losses.principal_rotation(covariance, options.parts)
        return Codebook(jnp.zeros_like(state.codebook.centroids), axes)

    now = jnp.any(step == rotation.steps)
    return state.replace(
        codebook=jax.lax.cond(now, turn, lambda: state.codebook),
        totals=jnp.where(now, 0.0, state.totals),
        chosen=jnp.where(now, 0.0, state.chosen),
    )


def _followed(
    options: Quantizer, rotation: RotationState, step: Int[Array, ""], pairs: Pairs
) -> RotationState:
    """The moving averages after a batch, until the last axes are taken."""

    def moved() -> RotationState:
        vectors = jnp.concatenate([pairs.images, pairs.texts])
        rows = jnp.where(jnp.tile(pairs.where, 2)[:, None], vectors, 0.0)
        rows = jax.lax.stop_gradient(rows)
        squares = jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)
        seen = parallel.total((jnp.sum(rows, axis=0), squares))
        averages = (rotation.count, rotation.sum, rotation.squares)
        count, total, squares = jax.tree.map(
            lambda old, new: options.decay * old + (1.0 - options.decay) * new,
            averages, (2.0 * pairs.total, *seen),
        )  # fmt: skip
        return RotationState(rotation.steps, count, total, squares)

    return jax.lax.cond(step < jnp.max(rotation.steps), moved, lambda: rotation)


def _seeded(
    options: Quantizer, state: QuantizerState, step: Int[Array, ""], pairs: Pairs
) -> QuantizerState:
    """Dead codes put on embeddings of the batch, with the average of all codes' totals."""
    (_, texts), (_, images) = pairs.directions
    even = jnp.sum(state.totals, axis=1, keepdims=True) / options.codes
    dead = state.totals <= options.dead_share * even

    def mended() -> Float[Array, "m k p"]:
        candidates = jax.lax.stop_gradient(jnp.concatenate([images.vectors, texts.vectors]))
        return losses.reseeded(
            state.codebook.centroids,
            dead,
            codebooks.parts_of(candidates, state.codebook),
            jnp.concatenate([images.where, texts.where]),
            jax.random.permutation(jax.random.key(step), candidates.shape[0]),
        )

    # Few steps have dead codes, and all would turn every embedding of the global batch.
    centroids = jax.lax.cond(jnp.any(dead), mended, lambda: state.codebook.centroids)
    # An even total, or a new code would be dead again at once; 1 before there is any.
    totals = jnp.where(dead, jnp.where(even > 0, even, 1.0), state.totals)
    sums = jnp.where(dead[:, :, None], centroids * totals[:, :, None], state.sums)
    codebook = state.codebook._replace(centroids=centroids)
    chosen = jnp.where(dead, 0.0, state.chosen)
    return state.replace(codebook=codebook, totals=totals, sums=sums, chosen=chosen)


def _moved(
    options: Quantizer,
    state: QuantizerState,
    counts: Float[Array, "m k"],
    batch_sums: Float[Array, "m k p"],
) -> QuantizerState:
    """The state after a batch whose parts chose the codes `counts` times."""
    totals, sums = losses.moved_by_average(
        state.totals, state.sums, counts, batch_sums, options.decay
    )
    chosen = options.decay * state.chosen + (1.0 - options.decay) * counts
    if options.rule == "average":
        # A code that nothing chose for long stays where it is.
        some = totals[:, :, None] > 1e-12
        centroids = jnp.where(
            some, sums / jnp.where(some, totals[:, :, None], 1.0), state.codebook.centroids
        )
    else:
        centroids = losses.moved_by_gradient(
            state.codebook.centroids, counts, batch_sums, options.rate
        )
    codebook = state.codebook._replace(centroids=centroids)
    return state.replace(codebook=codebook, totals=totals, sums=sums, chosen=chosen)
