"""What tells pairs apart, in PyTorch: all pairs of a batch at once, as released codes do."""

from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional

from benchmarks.torch_layers import tensor_of


class Ranking(nn.Module):
    """The weighted losses of a config that look at the scores of all pairs of a batch."""

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, the scales of scores that are learned."""
        super().__init__()
        triplet, infonce, sigmoid = (
            config.objective[name] for name in ("triplet", "infonce", "sigmoid")
        )
        only(config, "objective.triplet.semantic", 0.0)
        only(config, "objective.infonce.learned", False)
        self.weights = triplet.weight, infonce.weight, sigmoid.weight
        self.hinge = hardest_hinge if triplet.negatives == "hardest" else all_hinge
        self.margin, self.temperature = triplet.margin, infonce.temperature
        if sigmoid.weight:
            scales = params["scales_sigmoid"]
            self.log_scale, self.bias = (
                nn.Parameter(tensor_of(scales[name])) for name in ("log_scale", "bias")
            )

    def forward(self, scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The loss of scores [pictures, captions], whose pairs are on the diagonal."""
        hinge, entropy, sigmoid = self.weights
        loss = scores.new_zeros(())
        if hinge:
            loss = loss + hinge * self.hinge(scores, ids, self.margin)
        if entropy:
            loss = loss + entropy * cross_entropy(scores / self.temperature, ids)
        if sigmoid:
            # As CLIP's code, whose scale is never above 100.
            logits = scores * self.log_scale.exp().clamp(max=100) + self.bias
            loss = loss + sigmoid * sigmoid_loss(logits, ids)
        return loss


def hardest_hinge(scores: torch.Tensor, ids: torch.Tensor, margin: float) -> torch.Tensor:
    """The sum of both directions, as VSE++'s authors wrote it."""
    to_texts, to_images = _costs(scores, ids, margin)
    return to_texts.max(1)[0].sum() + to_images.max(0)[0].sum()


def all_hinge(scores: torch.Tensor, ids: torch.Tensor, margin: float) -> torch.Tensor:
    """The sum of both directions and all negatives, theirs too."""
    to_texts, to_images = _costs(scores, ids, margin)
    return to_texts.sum() + to_images.sum()


def _costs(
    scores: torch.Tensor, ids: torch.Tensor, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    positive, same = scores.diagonal(), ids[:, None] == ids[None]
    to_texts = (margin + scores - positive[:, None]).clamp(min=0).masked_fill(same, 0)
    to_images = (margin + scores - positive[None, :]).clamp(min=0).masked_fill(same, 0)
    return to_texts, to_images


def cross_entropy(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """CLIP's, the mean of both directions; pairs of one picture are no negatives."""
    right = torch.arange(len(ids), device=ids.device)
    same = (ids[:, None] == ids[None]) & (right[:, None] != right[None])
    logits = logits.masked_fill(same, -torch.inf)
    to_texts, to_images = (functional.cross_entropy(rows, right) for rows in (logits, logits.T))
    return (to_texts + to_images) / 2


def sigmoid_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """SigLIP's, over the number of right pairs; pairs of one picture are no negatives."""
    right = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    same = (ids[:, None] == ids[None]) & ~right
    costs = functional.softplus(torch.where(right, -logits, logits))
    return costs.masked_fill(same, 0).sum() / len(ids)


def only(config: ConfigDict, name: str, value: object) -> None:
    """Raises ValueError unless the config's field has the one value that the twin computes."""
    found: Any = config
    for part in name.split("."):
        found = found[part]
    if found != value:
        raise ValueError(f"{name} is {found!r}; the twin in PyTorch is of {value!r} alone")
