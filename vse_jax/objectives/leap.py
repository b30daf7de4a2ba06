"""LEAP: Euclidean embeddings with an adaptive margin, centers and a quantizer.

After Malali & Keller, Learning to Embed Semantic Similarity for Joint Image-Text Retrieval,
TPAMI 2022, arXiv 2210.03838. Only its abstract was at hand: every formula is this project's
own, and the paper's numbers are not claimed for it.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vse_jax import codebook as codebooks
from vse_jax.codebook import Codebook
from vse_jax.objectives import centers, margin
from vse_jax.objectives import quantizer as quantizers
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, Spec
from vse_jax.objectives.pairs import gather
from vse_jax.similarity import negative_euclidean


class LeapState(flax.struct.PyTreeNode):
    """What LEAP learns beside the parameters; see `TripletState` for the types.

    Attributes:
      margin: of the hinge.
      centers: `SplitRows` of float32 [concepts, D], zeros until a concept is seen; None without a
        table.
      quantizer: None without one.
    """

    margin: margin.MarginState
    centers: Any
    quantizer: quantizers.QuantizerState | None


def leap(
    hinge: margin.Hinge,
    center: centers.Center | None = None,
    quantizer: quantizers.Quantizer | None = None,
    multitask: quantizers.Multitask | None = None,
) -> Objective:
    """Weighted hinge, center, commitment and multitask terms over the global batch.

    The hinge is a sum over the pairs, as that of the published triplet hinge; the other terms are
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
            None if quantizer is None else quantizers.empty(quantizer, spec),
        )

    def apply(
        state: LeapState, outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], LeapState, Metrics]:
        pairs = gather(outputs, batch, negative_euclidean)
        loss, metrics = jnp.zeros(()), Metrics()
        new, quantized, meanings = state, None, None
        if state.quantizer is not None and quantizer is not None:
            term, coded, moved, logged = quantizers.terms(
                quantizer, multitask, state.quantizer, state.margin.step, pairs
            )
            loss, metrics = loss + term, metrics | logged
            new = new.replace(quantizer=moved)
            if hinge.quantized:
                asymmetric = hinge.quantized_distance == "asymmetric"
                queries = coded.sides if asymmetric else coded.stored
                searched = pairs.with_keys(*coded.stored).with_queries(*queries)
                quantized = hinge.quantized * coded.started, searched
        if center is not None:
            term, own, table, logged = centers.terms(center, state.centers, pairs)
            loss, metrics = loss + term, metrics | logged
            new = new.replace(centers=table)
            if hinge.pair_margins:
                meanings = _meanings(own, state.quantizer)
        term, followed, logged = margin.terms(hinge, state.margin, pairs, quantized, meanings)
        return loss + term, new.replace(margin=followed), metrics | logged

    return Objective(init, apply)


def _meanings(
    own: Float[Array, "b d"], quantizer: quantizers.QuantizerState | None
) -> Float[Array, "b d"]:
    """The pairs' centers; with a codebook quantized, in its axes. Zeros stay zeros."""
    if quantizer is None:
        return own
    seen = jnp.any(own != 0.0, axis=1, keepdims=True)
    book = Codebook(quantizer.codebook.centroids)
    codes = codebooks.encode(codebooks.turned(own, quantizer.codebook), book)
    return jnp.where(seen, codebooks.decode(codes, book), 0.0)
