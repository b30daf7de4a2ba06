"""Where a classifier and a captioner look: the loss of maps that differ."""

from typing import Any

from jaxtyping import Array, Float

from vse_jax import parallel
from vse_jax.losses import maps
from vse_jax.objectives.base import Batch, Metrics, Objective, Outputs, mean_over, no_state


def disagreement(kind: maps.Kind) -> Objective:
    """The mean over the global batch of `maps.disagreement` of the class's map and the caption's.

    Pairs whose picture has no class, or whose caption no content word, cost nothing and do not
    count. Formulation ours; the idea: Yoon et al., ETRI Journal 42(1), 2020.

    Args:
      kind: "cosine", "l2" or "kl".
    """

    def apply(
        state: dict[str, Any], outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Any], Metrics]:
        ours, theirs = outputs["class_map"], outputs["caption_map"]
        where = (batch["weight"] > 0) & (batch["label"] >= 0) & outputs["has_caption_map"]
        loss = mean_over(maps.disagreement(ours, theirs, kind), where)
        agreement = mean_over(maps.cosine(ours, theirs), where)
        return loss, state, parallel.mean({"loss_per_pair": loss, "agreement": agreement})

    return Objective(no_state, apply)
