"""LEAP in PyTorch: the distances of all pairs of a batch at once; see `torch_twins`.

There is no released code. What this project computes for its logs alone, such as the perplexity of
the codes, is left out.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from ml_collections import ConfigDict
from torch.nn import functional

from benchmarks.step import spec_of
from benchmarks.torch_networks import TowersLoss
from benchmarks.torch_objectives import only

Tensors = Mapping[str, torch.Tensor]


class LeapLoss(TowersLoss):
    """Two towers, and all terms of LEAP between them; see `vse_jax/objectives/leap.py`."""

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """As `TowersLoss`."""
        super().__init__(params, config)
        own = config.objective
        for name, value in (
            ("leap.negatives", "hardest"),
            ("leap.warmup_epochs", 0.0),
            ("leap.rule", "gap"),
            ("leap.pair_margins", True),
            ("leap.quantized_distance", "asymmetric"),
            ("center.kind", "table"),
            ("quantizer.rule", "average"),
        ):
            only(config, f"objective.{name}", value)
        if not all(part.weight for part in (own.center, own.quantizer, own.multitask)):
            raise ValueError("the twin of LEAP in PyTorch is of all its terms together")
        self.hinge, self.center = own.leap.to_dict(), own.center.to_dict()
        self.multitask, self.quantizer = own.multitask.to_dict(), Quantizer(config)
        spec = spec_of(config)
        self.step, self.margin, self.spread = 0, torch.tensor(own.leap.margin), torch.tensor(0.0)
        self.centers = torch.zeros(spec.images, spec.dimension)

    def forward(self, batch: Tensors) -> torch.Tensor:
        """As `TowersLoss`; moves the margin, the centers and the codebook."""
        (images, texts), ids = self.embed(batch), batch["ids"].long()
        self._settle(images.device)
        meanings = self.quantizer.meanings(self.centers[ids])
        loss, coded = self.quantizer(torch.cat([images, texts]), self.step, self.multitask)
        loss = loss + self.center["weight"] * self._center_loss(images, texts, ids)
        same = ids[:, None] == ids[None]
        margins = self.margin * self._factors(meanings, ids)
        distances = torch.cdist(images, texts)
        rows = distances, distances.T
        loss = loss + self.hinge["weight"] * _hinge(rows, margins, same)
        (x, y), (stored_x, stored_y) = coded.sides, coded.stored
        stored = torch.cdist(x, stored_y), torch.cdist(y, stored_x)
        loss = loss + self.hinge["quantized"] * coded.started * _hinge(stored, margins, same)
        self._move_margin(distances.detach(), same)
        self.step += 1
        return loss

    def _settle(self, device: torch.device) -> None:
        """State is no parameter and no buffer, of which moving averages are kept."""
        if self.centers.device != device:
            self.margin, self.spread, self.centers = (
                value.to(device) for value in (self.margin, self.spread, self.centers)
            )
        self.quantizer.settle(device)

    def _center_loss(
        self, images: torch.Tensor, texts: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """The mean over the pairs; the centers move. Source: Wen et al., ECCV 2016, eq. 2 and 4."""
        centers = self.centers[ids]
        seen = (centers != 0).any(1)
        apart = ((images - centers) ** 2 + (texts - centers) ** 2).sum(1) / 2
        with torch.no_grad():
            same = (ids[:, None] == ids[None]).float()
            count = 2 * same.sum(1, keepdim=True)
            pull = count * centers - same @ (images + texts)
            self.centers[ids] = centers - self.center["alpha"] * pull / (1 + count)
        return (apart * seen).sum() / len(ids)

    @torch.no_grad()
    def _factors(self, meanings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """What each pair's margin is the margin times of [b, b]; the spread moves."""
        hinge, seen, other = self.hinge, (meanings != 0).any(1), ids.roll(1)
        counts = (ids != other) & seen & seen.roll(1)
        apart = (meanings - meanings.roll(1, 0)).norm(dim=1)
        mean = (apart * counts).sum() / counts.sum().clamp(min=1)
        moved = hinge["rho"] * self.spread + (1 - hinge["rho"]) * mean
        moved = torch.where(self.spread > 0, moved, mean)
        self.spread = torch.where(counts.any(), moved, self.spread)
        where = seen[:, None] & seen[None] & (self.spread > 0)
        deltas = torch.cdist(meanings, meanings) / self.spread.clamp(min=1e-30)
        return torch.where(where, deltas.clamp(hinge["pair_low"], hinge["pair_high"]), 1.0)

    def _move_margin(self, distances: torch.Tensor, same: torch.Tensor) -> None:
        hinge = self.hinge
        negative = (distances * ~same).sum() / (~same).sum().clamp(min=1)
        target = hinge["kappa"] * (negative - distances.diagonal().mean())
        target = target.clamp(hinge["least"], hinge["most"])
        self.margin = hinge["rho"] * self.margin + (1 - hinge["rho"]) * target


class Coded(NamedTuple):
    """A batch in the axes of the codebook.

    Attributes:
      sides: pictures and captions.
      stored: what their codes stand for, with their gradient.
      started: 1 once the codebook counts, else 0.
    """

    sides: tuple[torch.Tensor, torch.Tensor]
    stored: tuple[torch.Tensor, torch.Tensor]
    started: float


class Quantizer:
    """The product codebook, its terms and how it moves; see `vse_jax/objectives/quantizer.py`."""

    def __init__(self, config: ConfigDict) -> None:
        """A codebook of dead codes."""
        spec, options = spec_of(config), config.objective.quantizer
        self.options = options.to_dict()
        parts, codes, width = options.parts, options.codes, spec.dimension
        self.centroids = torch.zeros(parts, codes, width // parts)
        self.totals, self.sums = torch.zeros(parts, codes), torch.zeros_like(self.centroids)
        shares = (int(np.ceil(share * spec.steps)) for share in options.rotate_at)
        self.turns = tuple(max(1, min(share, spec.steps - 1)) for share in shares)
        self.rotation = torch.eye(width) if self.turns else None
        self.seen = torch.tensor(0.0), torch.zeros(width), torch.zeros(width, width)

    def settle(self, device: torch.device) -> None:
        """Brings the state to the device."""
        if self.centroids.device == device:
            return
        names = ["centroids", "totals", "sums"] + ["rotation"] * bool(self.turns)
        for name in names:
            setattr(self, name, getattr(self, name).to(device))
        self.seen = tuple(value.to(device) for value in self.seen)

    def __call__(
        self, both: torch.Tensor, step: int, multitask: Mapping[str, float]
    ) -> tuple[torch.Tensor, Coded]:
        """(the terms of pictures and captions [2b, d], what they are stored as)."""
        options, pairs = self.options, len(both) // 2
        self._turn(step)
        self._seed(both.detach(), step)
        started = float(not self.turns or any(step >= turn for turn in self.turns))
        z = both if self.rotation is None else both @ self.rotation
        scores = self._scores(z)
        codes = scores.argmax(2)
        stored = self._decode(codes)
        loss = options["weight"] * options["beta"] * ((z - stored) ** 2).sum() / pairs
        classes = codes.roll(pairs, 1)
        surprise = functional.cross_entropy(
            (scores / multitask["temperature"]).flatten(0, 1), classes.flatten(), reduction="sum"
        ) / len(codes)  # fmt: skip
        loss = loss + multitask["weight"] * surprise / 2 / pairs
        self._move(z.detach(), codes)
        self._follow(both.detach(), step)
        straight = z + (stored - z).detach()
        return started * loss, Coded(z.chunk(2), straight.chunk(2), started)

    def meanings(self, centers: torch.Tensor) -> torch.Tensor:
        """What centers [b, d] are stored as; zeros stay so."""
        seen = (centers != 0).any(1, keepdim=True)
        z = centers if self.rotation is None else centers @ self.rotation
        return self._decode(self._scores(z).argmax(2)) * seen

    def _scores(self, z: torch.Tensor) -> torch.Tensor:
        """2 z_m.e_mk - |e_mk|^2 [m, b, k], the larger the nearer."""
        parts = z.unflatten(1, (len(self.centroids), -1)).transpose(0, 1)
        squares = (self.centroids**2).sum(2)[:, None]
        return torch.baddbmm(squares, parts, self.centroids.transpose(1, 2), beta=-1, alpha=2)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        """[b, d] of codes [m, b]."""
        part = torch.arange(len(codes), device=codes.device)[:, None]
        return self.centroids[part, codes].transpose(0, 1).flatten(1)

    def _turn(self, step: int) -> None:
        """Begins anew in the principal axes. Source: Ge et al., TPAMI 2014, section 3.2."""
        if step not in self.turns:
            return
        count, total, squares = self.seen
        mean = total / count
        axes = torch.linalg.eigh(squares / count - torch.outer(mean, mean))[1].flip(1)
        largest = axes.gather(0, axes.abs().argmax(0)[None])
        order = np.arange(len(mean)).reshape(-1, len(self.centroids))
        order[1::2] = order[1::2, ::-1]
        self.rotation = (axes * torch.where(largest < 0, -1.0, 1.0))[:, order.T.ravel()]
        self.centroids = torch.zeros_like(self.centroids)
        self.totals = torch.zeros_like(self.totals)

    @torch.compiler.disable  # Its compiler would look into JAX.
    def _seed(self, both: torch.Tensor, step: int) -> None:
        """Puts dead codes on embeddings, in this project's random order."""
        even = self.totals.sum(1, keepdim=True) / self.totals.shape[1]
        dead = self.totals <= self.options["dead_share"] * even
        if not dead.any():
            return
        order = np.array(jax.random.permutation(jax.random.key(step), len(both)))
        z = both if self.rotation is None else both @ self.rotation
        parts = z.unflatten(1, (len(self.centroids), -1)).transpose(0, 1)
        number = (dead.cumsum(1) - 1) % len(both)
        row = torch.from_numpy(order).to(both.device)[number]
        fresh = parts[torch.arange(len(parts), device=both.device)[:, None], row]
        self.centroids = torch.where(dead[..., None], fresh, self.centroids)
        self.totals = torch.where(dead, torch.where(even > 0, even, 1.0), self.totals)
        self.sums = torch.where(dead[..., None], self.centroids * self.totals[..., None], self.sums)

    @torch.no_grad()
    def _move(self, z: torch.Tensor, codes: torch.Tensor) -> None:
        """Moving averages. Source: van den Oord et al., NeurIPS 2017, appendix A.1."""
        decay = self.options["decay"]
        chosen = functional.one_hot(codes, self.totals.shape[1]).float().transpose(1, 2)
        parts = z.unflatten(1, (len(codes), -1)).transpose(0, 1)
        self.totals = decay * self.totals + (1 - decay) * chosen.sum(2)
        self.sums = decay * self.sums + (1 - decay) * torch.bmm(chosen, parts)
        some = self.totals[..., None] > 1e-12
        moved = self.sums / torch.where(some, self.totals[..., None], 1.0)
        self.centroids = torch.where(some, moved, self.centroids)

    def _follow(self, both: torch.Tensor, step: int) -> None:
        """What the principal axes come of, until the last are taken."""
        if not self.turns or step >= max(self.turns):
            return
        decay, seen = self.options["decay"], (float(len(both)), both.sum(0), both.T @ both)
        self.seen = tuple(
            decay * old + (1 - decay) * new for old, new in zip(self.seen, seen, strict=True)
        )


def _hinge(
    rows: tuple[torch.Tensor, torch.Tensor], margins: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """Both directions' sums of the hardest negatives; distances [b, b] of queries to keys."""
    costs = (margins + one.diagonal()[:, None] - one for one in rows)
    return sum(cost.clamp(min=0).masked_fill(same, 0).max(1)[0].sum() for cost in costs)
