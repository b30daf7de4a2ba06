"""The quantizer's terms and its codebook, state that every device moves alike."""

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vse_jax import parallel
from vse_jax import quantizer as quantizers
from vse_jax.losses import codes as losses
from vse_jax.objectives.base import Metrics, Spec
from vse_jax.objectives.pairs import Pairs

# Embeddings of pictures and of their captions.
Sides = tuple[Float[Array, "b d"], Float[Array, "b d"]]


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """The product codebook shared by pictures and captions.

    Attributes:
      weight: of the commitment term in the loss, beta (|x - sg(e)|^2 + |y - sg(e)|^2), its
        mean over the pairs.
      beta: of the commitment.
      parts: M, the bytes of an embedding.
      codes: K, at most 256.
      update: how the codebook moves: by moving "average" or by "gradient".
      decay: of the moving averages, of how often a code is chosen too.
      rate: of the gradient descent.
      dead_share: a code chosen less often than this share of an even choice is put where one
        of the batch's embeddings lies.
    """

    weight: float
    beta: float
    parts: int
    codes: int
    update: Literal["average", "gradient"]
    decay: float
    rate: float
    dead_share: float


@dataclasses.dataclass(frozen=True)
class Multitask:
    """Each side's codes as classes for the other side.

    Attributes:
      weight: of the cross-entropies in the loss, the mean over pairs and directions.
      temperature: of the soft assignment.
    """

    weight: float
    temperature: float


class CodebookState(flax.struct.PyTreeNode):
    """The codebook and the moving averages behind it; see `TripletState` for the types.

    Attributes:
      codebook: float32 [M, K, D/M].
      totals: float32 [M, K], how many parts of a batch choose each code.
      sums: float32 [M, K, D/M], what these sum to.
    """

    codebook: Any
    totals: Any
    sums: Any


def empty(options: Quantizer, spec: Spec) -> CodebookState:
    """A codebook of dead codes: the first batch seeds them."""
    shape = (options.parts, options.codes, spec.dimension // options.parts)
    return CodebookState(jnp.zeros(shape), jnp.zeros(shape[:2]), jnp.zeros(shape))


def terms(
    options: Quantizer,
    multitask: Multitask | None,
    state: CodebookState,
    step: Int[Array, ""],
    pairs: Pairs,
) -> tuple[Float[Array, ""], Sides, CodebookState, Metrics]:
    """(loss, q(images) and q(texts), the state after this step, metrics).

    The quantized embeddings have the gradient of the embeddings.

    Args:
      options: of the quantizer.
      multitask: of the cross-entropy; None leaves it out.
      state: of the codebook.
      step: chooses the embeddings that dead codes are put on.
      pairs: of the batch.
    """
    state = _seeded(options, state, step, pairs)
    sides = pairs.images, pairs.texts
    codes = [quantizers.encode(jax.lax.stop_gradient(z), state.codebook) for z in sides]
    found = [quantizers.decode(code, state.codebook) for code in codes]

    share = parallel.device_count() / pairs.total
    apart = sum(losses.commitment(z, e, pairs.where) for z, e in zip(sides, found, strict=True))
    loss = options.weight * options.beta * share * apart
    metrics = {"quantization": parallel.total(jax.lax.stop_gradient(apart)) / (2 * pairs.total)}
    if multitask is not None:
        surprise = sum(
            losses.code_cross_entropy(z, code, state.codebook, multitask.temperature, pairs.where)
            for z, code in zip(sides, reversed(codes), strict=True)
        )
        loss += multitask.weight * share * surprise / 2
        total = parallel.total(jax.lax.stop_gradient(surprise))
        metrics["code_entropy"] = total / (2 * pairs.total)

    used = [
        losses.usage(z, code, state.codebook, pairs.where)
        for z, code in zip(sides, codes, strict=True)
    ]
    counts, sums = parallel.total(jax.tree.map(lambda *x: sum(x), *used))
    quantized = tuple(quantizers.straight_through(z, e) for z, e in zip(sides, found, strict=True))
    state = _moved(options, state, counts, sums)
    # Of the moving average: a batch has fewer embeddings than most codebooks have codes.
    metrics["code_perplexity"] = losses.perplexity(state.totals)
    return loss, (quantized[0], quantized[1]), state, metrics


def _seeded(
    options: Quantizer, state: CodebookState, step: Int[Array, ""], pairs: Pairs
) -> CodebookState:
    """Dead codes put on embeddings of the batch, with the average of all codes' totals."""
    (_, texts), (_, images) = pairs.directions
    candidates = jax.lax.stop_gradient(jnp.concatenate([images.vectors, texts.vectors]))
    even = jnp.sum(state.totals, axis=1, keepdims=True) / options.codes
    dead = state.totals <= options.dead_share * even
    order = jax.random.permutation(jax.random.key(step), candidates.shape[0])
    codebook = losses.reseeded(
        state.codebook, dead, candidates, jnp.concatenate([images.where, texts.where]), order
    )
    # An even total, or a new code would be dead again at once; 1 before there is any.
    totals = jnp.where(dead, jnp.where(even > 0, even, 1.0), state.totals)
    sums = jnp.where(dead[:, :, None], codebook * totals[:, :, None], state.sums)
    return CodebookState(codebook, totals, sums)


def _moved(
    options: Quantizer,
    state: CodebookState,
    counts: Float[Array, "m k"],
    batch_sums: Float[Array, "m k p"],
) -> CodebookState:
    """The state after a batch whose parts chose the codes `counts` times."""
    totals, sums = losses.moved_by_average(
        state.totals, state.sums, counts, batch_sums, options.decay
    )
    if options.update == "average":
        codebook = sums / jnp.maximum(totals, 1e-12)[:, :, None]
    else:
        codebook = losses.moved_by_gradient(state.codebook, counts, batch_sums, options.rate)
    return CodebookState(codebook, totals, sums)
