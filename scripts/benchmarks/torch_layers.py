"""Pieces of networks in PyTorch, as their authors have them, started from our parameters."""

from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional


class Features(nn.Module):
    """Cached features of pictures as heads take them: at length 1 if so configured, dropped out."""

    def __init__(self, config: ConfigDict) -> None:
        """As `config.model.image` says."""
        super().__init__()
        self.normalize = config.model.image.normalize_features
        self.dropout = nn.Dropout(config.model.image.dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [b, n, f] of the same shape."""
        if self.normalize:
            features = functional.normalize(features, dim=-1)
        return self.dropout(features)


class Sentences(nn.Module):
    """Word vectors and a GRU; in two directions averaged, as SCAN's authors do."""

    def __init__(self, params: Any, dropout: float) -> None:
        """Starts from `text/reader`."""
        super().__init__()
        self.both = "gru_reverse" in params
        self.dropout = nn.Dropout(dropout)
        self.words = nn.Embedding.from_pretrained(tensor_of(params["words"]), freeze=False)
        self.gru = gru_of(params)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """States [b, l, h] after each word, and after the last; lengths on the host."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(self.words(tokens)), lengths, batch_first=True, enforce_sorted=False
        )
        states, last = self.gru(packed)
        if not self.both:
            return None, last[0]
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        half = states.shape[-1] // 2
        return (states[..., :half] + states[..., half:]) / 2, last.mean(0)


class Pooling(nn.Module):
    """The generalized pooling operator: weights of ranks from a GRU over position codes."""

    def __init__(self, params: Any) -> None:
        """Starts from a head's `pool`."""
        super().__init__()
        self.gru = gru_of(params)
        self.score = nn.Linear(self.gru.hidden_size, 1, bias=False)
        self.width = self.gru.input_size
        with torch.no_grad():
            self.score.weight.copy_(tensor_of(params["score"])[None])

    def forward(self, parts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """[b, d] of parts [b, n, d], the first `counts` of which are real (on the host)."""
        size = int(counts.max())
        angle = torch.arange(size)[:, None] * torch.exp(
            torch.arange(0, self.width, 2) * -(np.log(10000.0) / self.width)
        )
        code = torch.stack([torch.sin(angle), torch.cos(angle)], -1).reshape(size, self.width)
        codes = code.to(parts.device)[None].expand(len(parts), -1, -1)
        packed = nn.utils.rnn.pack_padded_sequence(
            codes, counts, batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        half = states.shape[-1] // 2
        states = (states[..., :half] + states[..., half:]) / 2
        real = (torch.arange(size)[None] < counts[:, None]).to(parts.device)
        logits = self.score(states)[..., 0].masked_fill(~real, -10000)
        weights = torch.softmax(logits / 0.1, dim=1)
        ranked = parts[:, :size].masked_fill(~real[..., None], -10000).sort(1, descending=True)[0]
        ranked = ranked.masked_fill(~real[..., None], 0)
        return (ranked * weights[..., None]).sum(1)


class SelfAttention(nn.Module):
    """The sum of parts by their own and their mean's say, of length 1."""

    def __init__(self, params: Any, *, normed: bool) -> None:
        """Starts from a head of SAF."""
        super().__init__()
        self.part, self.mean, self.weight = (
            linear_of(params[name]) for name in ("part", "mean", "weight")
        )
        self.part_norm, self.mean_norm = (
            norm_of(params[f"{name}_norm"]) if normed else nn.Identity()
            for name in ("part", "mean")
        )
        self.dropout = nn.Dropout(0.4)

    def forward(self, parts: torch.Tensor) -> torch.Tensor:
        """[b, d] of parts [b, n, d]."""
        own = self.part_norm(self.part(parts).flatten(0, 1)).unflatten(0, parts.shape[:2])
        common = self.mean_norm(self.mean(parts.mean(1)))
        own, common = (self.dropout(torch.tanh(x)) for x in (own, common))
        weights = torch.softmax(self.weight(own * common[:, None])[..., 0], dim=1)
        return functional.normalize((weights[..., None] * parts).sum(1), dim=-1)


def unit(x: torch.Tensor) -> torch.Tensor:
    """Vectors of length 1, by the steps of the released code of SCAN and its successors."""
    return x / (torch.pow(x, 2).sum(-1, keepdim=True).sqrt() + 1e-8)


def linear_of(params: Any) -> nn.Linear:
    """A linear layer with this project's parameters."""
    layer = nn.Linear(*params["kernel"].shape)
    with torch.no_grad():
        layer.weight.copy_(tensor_of(params["kernel"].T))
        layer.bias.copy_(tensor_of(params["bias"]))
    return layer


def norm_of(params: Any) -> nn.BatchNorm1d:
    """A batch norm with this project's parameters; numbers are of a single channel."""
    scale, bias = (tensor_of(params[name]).reshape(-1) for name in ("scale", "bias"))
    layer = nn.BatchNorm1d(len(scale))
    with torch.no_grad():
        layer.weight.copy_(scale)
        layer.bias.copy_(bias)
    return layer


def gru_of(params: Any) -> nn.GRU:
    """A GRU with this project's parameters, in both directions if there are such."""
    gates, width = params["gru"]["weight_ih"].shape
    layer = nn.GRU(width, gates // 3, batch_first=True, bidirectional="gru_reverse" in params)
    with torch.no_grad():
        for direction, suffix in (("gru", "_l0"), ("gru_reverse", "_l0_reverse")):
            for name, value in params.get(direction, {}).items():
                getattr(layer, name + suffix).copy_(tensor_of(value))
    return layer


def tensor_of(value: Any) -> torch.Tensor:
    """In float32, a copy."""
    return torch.from_numpy(np.array(value, np.float32))
