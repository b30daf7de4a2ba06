"""Captions told from their pictures: the loss of a model's generator."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from vse_jax import parallel
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, mean_over, no_state


def generation() -> Objective:
    """The mean over the global batch of minus the log likelihood of each pair's caption.

    Pictures without a caption do not count. Source: Li et al., VSRN, ICCV 2019, section 3.4.
    """

    def apply(
        state: dict[str, Any], outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Any], Metrics]:
        where = (batch["weight"] > 0) & jnp.any(batch["token_mask"], axis=1)
        loss = mean_over(outputs["generation"], where)
        return loss, state, {"loss_per_pair": parallel.mean(loss)}

    return Objective(no_state, apply)
