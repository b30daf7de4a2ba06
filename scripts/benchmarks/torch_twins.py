"""The same computations in PyTorch, to compare with."""

from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional
from torch.optim import swa_utils

from benchmarks.peak import torch_device, torch_wait
from benchmarks.torch_layers import (
    Pooling,
    SelfAttention,
    Sentences,
    hardest_hinge,
    linear_of,
    unit,
)


class TowersLoss(nn.Module):
    """VSE++ on pooled features as its authors wrote it: two towers, hardest negatives, sum.

    Source: Faghri et al., VSE++, BMVC 2018, eq. 6, and their `model.py`.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        self.margin = config.objective.triplet.margin
        self.image_dropout = nn.Dropout(config.model.image.dropout)
        self.text = Sentences(params["text"]["reader"], config.model.text.dropout)
        self.project = linear_of(params["image"]["head"]["project"])

    def forward(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        """Loss of a batch: features [b, n, f], tokens [b, l], lengths [b] (host), ids [b]."""
        features = self.image_dropout(functional.normalize(features[:, 0]))
        images = functional.normalize(self.project(features))
        captions = functional.normalize(self.text(tokens, lengths)[1])
        return hardest_hinge(images @ captions.T, ids, self.margin)


class VSEInfinityLoss(nn.Module):
    """VSE-infinity on parts as its authors wrote it, the hardest negatives' sum.

    Source: Chen et al., CVPR 2021, and the released `lib/encoders.py` and `lib/modules/`.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        head = params["image"]["head"]
        self.margin = config.objective.triplet.margin
        self.drop = config.model.image.drop_parts
        self.image_dropout = nn.Dropout(config.model.image.dropout)
        self.text = Sentences(params["text"]["reader"], config.model.text.dropout)
        self.project, self.hidden, self.out = (
            linear_of(head[name]) for name in ("project", "hidden", "out")
        )
        self.norm = nn.BatchNorm1d(len(head["norm"]["scale"]))
        self.image_pool, self.text_pool = (
            Pooling(params[side]["head"]["pool"]) for side in ("image", "text")
        )

    def forward(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        """As `TowersLoss`."""
        features = self.image_dropout(functional.normalize(features, dim=-1))
        counts = torch.full((len(features),), features.shape[1])
        if self.drop:
            # Their loader drops regions and pads what is left.
            kept = [torch.rand(features.shape[1]) >= self.drop for _ in features]
            kept = [row if row.any() else ~row for row in kept]
            counts = torch.tensor([int(row.sum()) for row in kept])
            features = nn.utils.rnn.pad_sequence(
                [rows[row] for rows, row in zip(features, kept, strict=True)], batch_first=True
            )
        flat = features.flatten(0, 1)
        hidden = functional.relu(self.norm(self.hidden(flat)))
        parts = (self.project(flat) + self.out(hidden)).unflatten(0, features.shape[:2])
        images = functional.normalize(self.image_pool(parts, counts))
        words, _ = self.text(tokens, lengths)
        captions = functional.normalize(self.text_pool(words, lengths))
        return hardest_hinge(images @ captions.T, ids, self.margin)


class SAFLoss(nn.Module):
    """SGRAF's attention filtration as its authors wrote it: caption by caption, all pictures.

    Its copies of words and weights are made too, which the computation could do without: in turns
    on one machine a step takes 1.03 times as long as with the released code itself. Batch norms of
    regions are by channel here, as in this project. Source: Diao et al., AAAI 2021, and the
    released `model.py`.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        image, text, pair = params["image"]["head"], params["text"]["head"], params["pairwise"]
        self.margin = config.objective.triplet.margin
        self.image_dropout = nn.Dropout(config.model.image.dropout)
        self.text = Sentences(params["text"]["reader"], config.model.text.dropout)
        self.project = linear_of(image["project"])
        self.picture = SelfAttention(image, normed=True)
        self.sentence = SelfAttention(text, normed=False)
        self.local, self.whole, self.weight, self.score = (
            linear_of({"kernel": pair[f"{name}_kernel"], "bias": pair[f"{name}_bias"]})
            for name in ("local", "whole", "weight", "score")
        )
        self.norm = nn.BatchNorm1d(1)

    def encode(
        self, features: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Regions [b, n, d], their wholes, words [b, l, d], their lengths on the host."""
        features = self.image_dropout(functional.normalize(features, dim=-1))
        regions, words = unit(self.project(features)), unit(self.text(tokens, lengths)[0])
        return regions, self.picture(regions), words, lengths

    def compare(
        self,
        regions: torch.Tensor,
        wholes: torch.Tensor,
        words: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Scores [b, c]."""
        columns = []
        for caption, length in zip(words, lengths.tolist(), strict=True):
            own = caption[None, :length]
            word = own.repeat(len(regions), 1, 1)
            attention = functional.leaky_relu(torch.bmm(regions, word.transpose(1, 2)), 0.1)
            attention = unit(attention).transpose(1, 2).contiguous()
            attention = torch.softmax(9 * attention, 2).transpose(1, 2).contiguous()
            context = unit(torch.bmm(regions.transpose(1, 2), attention).transpose(1, 2))
            nodes = unit(self.local(torch.pow(context - word, 2)))
            whole = unit(self.whole(torch.pow(wholes - self.sentence(own), 2)))
            nodes = torch.cat([whole[:, None], nodes], 1)
            weight = torch.sigmoid(self.norm(self.weight(nodes).transpose(1, 2)))
            weight = functional.normalize(weight, p=1, dim=-1)
            vector = unit((weight @ nodes)[:, 0])
            columns.append(torch.sigmoid(self.score(vector)))
        return torch.cat(columns, 1)

    def forward(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        """As `TowersLoss`."""
        return hardest_hinge(
            self.compare(*self.encode(features, tokens, lengths)), ids, self.margin
        )

    @torch.inference_mode()
    def scores(
        self, regions: torch.Tensor, wholes: torch.Tensor, words: torch.Tensor, lengths: Any
    ) -> torch.Tensor:
        """Scores of encoded pictures and captions, a hundred of each at a time as released."""
        rows = [
            torch.cat(
                [
                    self.compare(
                        some, whole, words[start : start + 100], lengths[start : start + 100]
                    )
                    for start in range(0, len(words), 100)
                ],
                1,
            )
            for some, whole in zip(regions.split(100), wholes.split(100), strict=True)
        ]
        return torch.cat(rows)


# By `model.network`.
LOSSES = {"vsepp": TowersLoss, "vse_infinity": VSEInfinityLoss, "saf": SAFLoss}


class TrainStep:
    """Loss, gradient, clipping, Adam and, where asked for, the moving average; one batch a call."""

    def __init__(
        self, params: Any, config: ConfigDict, *, compiled: bool, still: bool = False
    ) -> None:
        """Starts from this project's parameters.

        Args:
          params: a tree of NumPy arrays.
          config: of the step.
          compiled: whether it goes through `torch.compile`.
          still: whether no dropout acts, for a comparison.
        """
        module = LOSSES[config.model.network](params, config).to(torch_device())
        for layer in module.modules():
            if still and isinstance(layer, nn.Dropout):
                layer.p = 0.0
        self.module = module
        self.parameters = list(module.parameters())
        self.loss = torch.compile(module) if compiled else module
        self.clip_norm = config.train.clip_norm
        self.optimizer = torch.optim.Adam(self.parameters, config.train.learning_rate)
        decay = config.train.ema
        average = swa_utils.get_ema_multi_avg_fn(decay)
        self.average = swa_utils.AveragedModel(module, multi_avg_fn=average) if decay else None

    def __call__(self, batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, norm of the gradient before clipping); one of this project's batches."""
        device = torch_device()
        lengths = torch.from_numpy(batch["token_mask"].sum(1))
        # As their loader does, only as wide as the longest caption here.
        tokens = torch.from_numpy(batch["tokens"][:, : int(lengths.max())].astype(np.int64))
        loss = self.loss(
            torch.from_numpy(batch["features"]).to(device),
            tokens.to(device),
            lengths,
            torch.from_numpy(batch["image_id"]).to(device),
        )
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.module)
        torch_wait()
        return loss.detach(), norm


class PooledFeatures:
    """MobileNetV2 of `transformers`, averaged over its cells."""

    def __init__(self, model: nn.Module, layout: torch.memory_format) -> None:
        """Takes the headless model; `layout` is of its pictures and weights."""
        self.model = model.eval().to(torch_device(), memory_format=layout)
        self.layout = layout

    @torch.inference_mode()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """float32 [b, 1280] features of uint8 [b, h, w, 3] pictures."""
        pixels = torch.from_numpy(pictures).to(torch_device()).permute(0, 3, 1, 2)
        pixels = (pixels.float() - 127.5) / 127.5
        grid = self.model(pixels.contiguous(memory_format=self.layout)).last_hidden_state
        return grid.mean((2, 3)).cpu().numpy()
