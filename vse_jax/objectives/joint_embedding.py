"""Pictures and their sentences at one place of the embedding that two tasks share."""

from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from vse_jax import parallel
from vse_jax.losses import maps
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, mean_over
from vse_jax.objectives.infonce import infonce

Kind: TypeAlias = Literal["contrast", "cosine"]


def joint_embedding(kind: Kind, temperature: float = 0.05, chunk: int = 4096) -> Objective:
    """How far e = tanh(z) of pictures is from t, the embedding of the captions.

    "cosine": the mean over the global batch of 1 - cos(e, t). It has no negatives, and is nothing
    when all pictures and sentences are at one place, where it leads: then no task sees the picture.
    "contrast": the cross-entropy of each pair against the others of the batch, by the same cosine;
    see `infonce`. Pairs without a caption do not count.

    Args:
      kind: of the two.
      temperature: divides the cosines of "contrast".
      chunk: pairs scored at a time, likewise.
    """
    contrast = infonce(temperature, chunk)

    def apply(
        state: dict[str, Any], outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Any], Metrics]:
        image, text = jnp.tanh(outputs["image"].pooled), outputs["text"].pooled
        where = (batch["weight"] > 0) & jnp.any(batch["token_mask"], axis=1)
        if kind == "contrast":
            given = {
                "image": outputs["image"].replace(pooled=maps.unit(image)),
                "text": outputs["text"].replace(pooled=maps.unit(text)),
            }
            return contrast.apply(state, given, {**batch, "weight": where.astype(jnp.float32)})
        loss = mean_over(1.0 - maps.cosine(image, text), where)
        return loss, state, {"loss_per_pair": parallel.mean(loss)}

    return Objective(contrast.init, apply)
