"""InfoNCE over the global batch, as CLIP trains."""

from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from vse_jax import parallel
from vse_jax.losses.contrastive import cross_entropy
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, Spec
from vse_jax.objectives.pairs import gather
from vse_jax.similarity import Similarity, dot


def infonce(temperature: float, chunk: int, similarity: Similarity = dot) -> Objective:
    """The cross-entropy of each pair against its negatives, the mean of both directions.

    The loss is the mean over the pairs of the global batch; there is no state. Source: Radford
    et al., CLIP, ICML 2021, section 2.3, with a fixed temperature.

    Args:
      temperature: divides the scores.
      chunk: pairs scored at a time; memory grows with rows of a device x chunk.
      similarity: of two embeddings.
    """

    def init(rng: PRNGKeyArray, spec: Spec) -> dict[str, Any]:
        del rng, spec
        return {}

    def apply(
        state: dict[str, Any], outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Any], Metrics]:
        pairs = gather(outputs, batch, similarity)
        one, other = (
            cross_entropy(pairs.similarity, queries, keys, pairs.positive, temperature, chunk)
            for queries, keys in pairs.directions
        )
        loss = parallel.device_count() * (one + other) / (2 * pairs.total)
        return loss, state, {"loss_per_pair": parallel.mean(loss)}

    return Objective(init, apply)
