"""What a picture is: the loss of a model's classifier."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vse_jax import parallel
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, mean_over, no_state


def classification() -> Objective:
    """The mean over the global batch of minus the log probability of each picture's class.

    A picture without a class, whose `label` is -1, costs nothing and does not count. Accuracy is in
    percent.
    """

    def apply(
        state: dict[str, Any], outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Any], Metrics]:
        logits, label = outputs["logits"], batch["label"]
        where = (batch["weight"] > 0) & (label >= 0)
        costs = optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, jnp.maximum(label, 0)
        )
        right = (jnp.argmax(logits, axis=1) == label).astype(jnp.float32)
        loss, accuracy = mean_over(costs, where), 100 * mean_over(right, where)
        means = parallel.mean({"loss_per_picture": loss, "accuracy": accuracy})
        return loss, state, means

    return Objective(no_state, apply)
