"""The sigmoid loss over the pairs of the global batch, as SigLIP trains."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from vse_jax import parallel
from vse_jax.losses.blocks import Rows
from vse_jax.losses.contrastive import pair_entropy, telling_cost, wrong_total
from vse_jax.objectives import ring
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, no_state
from vse_jax.objectives.pairs import gather, own_rows
from vse_jax.similarity import Similarity, dot


def sigmoid(
    chunk: int, similarity: Similarity = dot, exchange: ring.Exchange = "ring"
) -> Objective:
    """The logistic loss of telling for every pair of a picture and a sentence whether it is right.

    The loss is the sum over all pairs of the global batch, over the number of right ones; there is
    no state. Temperature and bias are the model's, `scales` of its outputs. Captions of one picture
    are no negatives of it, where in the paper they are. Source: Zhai et al., Sigmoid Loss for
    Language Image Pre-Training, ICCV 2023.

    Args:
      chunk: pairs scored at a time; memory grows with rows of a device x chunk.
      similarity: of two embeddings.
      exchange: as of `infonce`.
    """

    def apply(
        state: dict[str, Any], outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Any], Metrics]:
        temperature, bias = outputs["scales"]["sigmoid"]
        if exchange == "ring" and "scores" not in outputs:
            images, texts = own_rows(outputs, batch)
            own = similarity.rows(images.vectors, texts.vectors) / temperature + bias
            wrong = ring.total(
                ring.SUM,
                partial(_part, similarity, chunk),
                (texts.vectors, temperature, bias),
                images.vectors,
                (ring.labels(texts), ring.labels(images)),
            )
            cost = telling_cost(own, wrong, texts.where)
            count = jnp.maximum(parallel.total(jnp.sum(texts.where)), 1)
        else:
            pairs = gather(outputs, batch, similarity)
            _, (texts, images) = pairs.directions
            cost = pair_entropy(
                pairs.similarity, texts, images, pairs.positive, temperature, bias, chunk
            )
            count = pairs.total
        loss = parallel.device_count() * cost / count
        metrics = {
            "loss_per_pair": parallel.mean(loss), "temperature": temperature, "bias": bias
        }  # fmt: skip
        return loss, state, metrics

    return Objective(no_state, apply)


def _part(
    similarity: Similarity,
    chunk: int,
    own: tuple[Float[Array, "b d"], Float[Array, ""], Float[Array, ""]],
    keys: Float[Array, "b d"],
    given: tuple[ring.Labels, ring.Labels],
) -> Float[Array, " b"]:
    vectors, temperature, bias = own
    ours, theirs = given
    queries = Rows(vectors, *ours)
    return wrong_total(similarity, queries, Rows(keys, *theirs), temperature, bias, chunk)
