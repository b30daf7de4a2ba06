"""LEAP: Euclidean embeddings with an adaptive margin, centers and a quantizer.

After Malali & Keller, Learning to Embed Semantic Similarity for Joint Image-Text Retrieval,
TPAMI 2022, arXiv 2210.03838. Only its abstract was at hand: every formula is this project's
own, and the paper's numbers are not claimed for it.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vse_jax import quantizer as quantizers
from vse_jax.objectives import centers, codebook, margin
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, Spec
from vse_jax.objectives.pairs import gather


class LeapState(flax.struct.PyTreeNode):
    """What LEAP learns beside the parameters; see `TripletState` for the types.

    Attributes:
      margin: of the hinge.
      centers: float32 [concepts, D], zeros until a concept is seen; None without a table.
      codebook: None without a quantizer.
    """

    margin: margin.MarginState
    centers: Any
    codebook: codebook.CodebookState | None


def leap(
    hinge: margin.Hinge,
    center: centers.Center | None = None,
    quantizer: codebook.Quantizer | None = None,
    multitask: codebook.Multitask | None = None,
) -> Objective:
    """L_h + weighted center, commitment and multitask terms over the global batch.

    L_h is a sum over the pairs, as that of the published triplet hinge; the other terms are
    means.

    Args:
      hinge: always there; its weight may be 0.
      center: None leaves it out; pair margins need it.
      quantizer: None leaves it out.
      multitask: None leaves it out; needs the quantizer.
    """

    def init(rng: PRNGKeyArray, spec: Spec) -> LeapState:
        del rng
        return LeapState(
            margin.start(hinge, spec),
            None if center is None else centers.empty(center, spec),
            None if quantizer is None else codebook.empty(quantizer, spec),
        )

    def apply(
        state: LeapState, outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], LeapState, Metrics]:
        pairs = gather(outputs, batch)
        loss, metrics = jnp.zeros(()), Metrics()
        codes, table, quantized, meanings = state.codebook, state.centers, None, None
        if quantizer is not None:
            assert codes is not None
            term, stored, codes, found = codebook.terms(
                quantizer, multitask, codes, state.margin.step, pairs
            )
            loss, metrics = loss + term, metrics | found
            if hinge.quantized:
                sides = stored.images, stored.texts
                among = pairs.among(*sides)
                both = among.of(*sides) if hinge.quantized_distance == "symmetric" else among
                quantized = hinge.quantized * stored.started, both
        if center is not None:
            term, own, table, found = centers.terms(center, table, pairs)
            loss, metrics = loss + term, metrics | found
            if hinge.pair_margins:
                meanings = _meanings(own, state.codebook)
        term, moved, found = margin.terms(hinge, state.margin, pairs, quantized, meanings)
        return loss + term, LeapState(moved, table, codes), metrics | found

    return Objective(init, apply)


def _meanings(
    own: Float[Array, "b d"], codes: codebook.CodebookState | None
) -> Float[Array, "b d"]:
    """The pairs' centers, quantized where there is a codebook; zeros stay zeros."""
    if codes is None:
        return own
    seen = jnp.any(own != 0.0, axis=1, keepdims=True)
    book = codes.codebook
    return jnp.where(seen, quantizers.decode(quantizers.encode(own, book), book), 0.0)
