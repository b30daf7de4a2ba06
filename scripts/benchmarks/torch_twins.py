"""The same computations in PyTorch, to compare with; PyTorch is imported here alone."""

from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional
from torch.optim import swa_utils

from benchmarks.peak import torch_device, torch_wait


class TowersLoss(nn.Module):
    """VSE++ on pooled features as its authors wrote it: two towers, hardest negatives, sum.

    Source: Faghri et al., VSE++, BMVC 2018, eq. 6, and their `model.py`.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        image, text = params["image"]["head"]["project"], params["text"]["reader"]
        self.margin = config.objective.triplet.margin
        self.image_dropout = nn.Dropout(config.model.image.dropout)
        self.text_dropout = nn.Dropout(config.model.text.dropout)
        self.words = nn.Embedding.from_pretrained(_tensor(text["words"]), freeze=False)
        self.gru = nn.GRU(
            text["words"].shape[1], text["gru"]["weight_hh"].shape[1], batch_first=True
        )
        self.project = nn.Linear(*image["kernel"].shape)
        with torch.no_grad():
            for name, value in text["gru"].items():
                getattr(self.gru, f"{name}_l0").copy_(_tensor(value))
            self.project.weight.copy_(_tensor(image["kernel"].T))
            self.project.bias.copy_(_tensor(image["bias"]))

    def forward(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        """Loss of a batch: features [b, f], tokens [b, l], lengths [b] (on the host), ids [b]."""
        images = functional.normalize(
            self.project(self.image_dropout(functional.normalize(features)))
        )
        packed = nn.utils.rnn.pack_padded_sequence(
            self.text_dropout(self.words(tokens)), lengths, batch_first=True, enforce_sorted=False
        )
        captions = functional.normalize(self.gru(packed)[1][0])
        scores = images @ captions.T
        positive = scores.diagonal()
        same = ids[:, None] == ids[None, :]
        to_texts = (self.margin + scores - positive[:, None]).clamp(min=0).masked_fill(same, 0)
        to_images = (self.margin + scores - positive[None, :]).clamp(min=0).masked_fill(same, 0)
        return to_texts.max(1)[0].sum() + to_images.max(0)[0].sum()


class TrainStep:
    """Loss, gradient, clipping, Adam and, where asked for, the moving average; one batch a call."""

    def __init__(self, params: Any, config: ConfigDict, *, compiled: bool) -> None:
        """Starts from this project's parameters; `compiled` goes through `torch.compile`."""
        module = TowersLoss(params, config).to(torch_device())
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
            torch.from_numpy(batch["features"][:, 0]).to(device),
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


def _tensor(value: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(value, np.float32))
