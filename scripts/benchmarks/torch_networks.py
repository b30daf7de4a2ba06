"""Networks with an embedding of each side, in PyTorch, as their authors have them.

See `torch_twins`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional

from benchmarks.torch_layers import (
    Features,
    Pooling,
    Sentences,
    gru_of,
    linear_of,
    norm_of,
    tensor_of,
)
from benchmarks.torch_objectives import Ranking

Tensors = Mapping[str, torch.Tensor]


class TowersLoss(nn.Module):
    """VSE++ on pooled features as its authors wrote it: two towers.

    Source: Faghri et al., VSE++, BMVC 2018, eq. 6, and their `model.py`.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        self.features = Features(config)
        self.text = Sentences(params["text"]["reader"], config.model.text.dropout)
        self.project = linear_of(params["image"]["head"]["project"])
        self.ranking = Ranking(params, config)

    def embed(self, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [b, d] of pictures and of captions, of length 1."""
        images = functional.normalize(self.project(self.features(batch["features"])[:, 0]))
        captions = self.text(batch["tokens"], batch["lengths"])[1]
        return images, functional.normalize(captions)

    def forward(self, batch: Tensors) -> torch.Tensor:
        """The loss of a batch.

        Args:
          batch: `features` [b, n, f], `tokens` [b, l], their number `lengths` [b], on the host, and
            `ids` [b] of pictures; `label` [b] and `text_features` [b, n, f] where there are such.
        """
        images, captions = self.embed(batch)
        return self.ranking(images @ captions.T, batch["ids"])


class VSEInfinityLoss(nn.Module):
    """VSE-infinity on parts as its authors wrote it.

    Source: Chen et al., CVPR 2021, and the released `lib/encoders.py` and `lib/modules/`.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        head = params["image"]["head"]
        self.drop = config.model.image.drop_parts
        self.features = Features(config)
        self.text = Sentences(params["text"]["reader"], config.model.text.dropout)
        self.project, self.hidden, self.out = (
            linear_of(head[name]) for name in ("project", "hidden", "out")
        )
        self.norm = norm_of(head["norm"])
        self.image_pool, self.text_pool = (
            Pooling(params[side]["head"]["pool"]) for side in ("image", "text")
        )
        self.ranking = Ranking(params, config)

    def forward(self, batch: Tensors) -> torch.Tensor:
        """As `TowersLoss`."""
        features, lengths = self.features(batch["features"]), batch["lengths"]
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
        words, _ = self.text(batch["tokens"], lengths)
        captions = functional.normalize(self.text_pool(words, lengths))
        return self.ranking(images @ captions.T, batch["ids"])


class ResidualLoss(nn.Module):
    """Two small residual perceptrons over vectors of frozen towers, compared as CLIP's are.

    There is no released code; `open_clip` computes its losses so.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        self.features = Features(config)
        self.text_dropout = nn.Dropout(config.model.text.dropout)
        self.image, self.text = (Residual(params[side]["head"]) for side in ("image", "text"))
        self.ranking = Ranking(params, config)

    def forward(self, batch: Tensors) -> torch.Tensor:
        """As `TowersLoss`."""
        images = self.image(self.features(batch["features"]).mean(1))
        captions = self.text(self.text_dropout(batch["text_features"]).mean(1))
        return self.ranking(images @ captions.T, batch["ids"])


class Residual(nn.Module):
    """A linear layer plus a perceptron, to length 1."""

    def __init__(self, params: Any) -> None:
        """Starts from a `ResidualHead`."""
        super().__init__()
        self.straight, self.inner, self.outer = (
            linear_of(params[name]) for name in ("straight", "inner", "outer")
        )
        self.gelu, self.dropout = nn.GELU(approximate="tanh"), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, d] of vectors [b, f]."""
        hidden = self.dropout(self.gelu(self.inner(x)))
        return functional.normalize(self.straight(x) + self.outer(hidden))


class VSRNLoss(nn.Module):
    """VSRN as its authors wrote it, told to write the captions too.

    Convolutions of one cell over [b, d, n], a loop over the words. Source: Li et al., ICCV 2019,
    and the released `model.py`, `GCN_lib/Rs_GCN.py` and `models/`.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        head = params["image"]["head"]
        self.features = Features(config)
        self.project = linear_of(head["project"])
        graphs = sorted(name for name in head if name.startswith("graph"))
        self.graphs = nn.ModuleList(RegionGraph(head[name]) for name in graphs)
        self.gru = gru_of(head)
        self.text = Sentences(params["text"]["reader"], config.model.text.dropout)
        self.ranking = Ranking(params, config)
        self.weight = config.objective.generation.weight
        if self.weight:
            self.generator = CaptionGenerator(params["generator"])

    def forward(self, batch: Tensors) -> torch.Tensor:
        """As `TowersLoss`."""
        tokens, lengths = batch["tokens"], batch["lengths"]
        # Of length 1 is each channel over the regions, as their code has it.
        regions = functional.normalize(self.project(self.features(batch["features"])), dim=1)
        graph = regions.transpose(1, 2).contiguous()
        for layer in self.graphs:
            graph = layer(graph)
        regions = functional.normalize(graph.transpose(1, 2).contiguous(), dim=1)
        images = functional.normalize(self.gru(regions)[1][0])
        captions = functional.normalize(self.text(tokens, lengths)[1])
        loss = self.ranking(images @ captions.T, batch["ids"])
        if self.weight:
            loss = loss + self.weight * self.generator(regions, tokens, lengths)
        return loss


class RegionGraph(nn.Module):
    """A residual graph convolution: the released `Rs_GCN`."""

    def __init__(self, params: Any) -> None:
        """Starts from a `graph0` or the like."""
        super().__init__()
        self.theta, self.phi, self.g, self.out = (
            _convolution_of(params[name]) for name in ("theta", "phi", "g", "out")
        )
        self.norm = norm_of(params["norm"])

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """[b, d, n] of the same."""
        gathered = self.g(regions).transpose(1, 2)
        relations = torch.matmul(self.theta(regions).transpose(1, 2), self.phi(regions))
        relations = relations / regions.shape[2]
        gathered = torch.matmul(relations, gathered).transpose(1, 2).contiguous()
        return self.norm(self.out(gathered)) + regions


class CaptionGenerator(nn.Module):
    """A GRU over the regions and one that writes words: the released `EncoderRNN`, `DecoderRNN`.

    Attention takes the decoder's state beside each of the encoder's, and is computed so.
    """

    def __init__(self, params: Any) -> None:
        """Starts from `generator`."""
        super().__init__()
        decoder = params["decoder"]
        self.dropout = nn.Dropout(0.2)
        self.project = linear_of(params["project"])
        self.encoder, self.decoder = gru_of({"gru": params["encoder"]}), gru_of(decoder)
        self.words = nn.Embedding.from_pretrained(tensor_of(params["words"]), freeze=False)
        self.attend, self.out = (
            linear_of({"kernel": decoder[name], "bias": decoder[f"{name}_bias"]})
            for name in ("attend", "out")
        )
        self.score = nn.Linear(len(decoder["score"]), 1, bias=False)
        with torch.no_grad():
            self.score.weight.copy_(tensor_of(decoder["score"])[None])

    def forward(
        self, regions: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Minus the log likelihood of a caption, the batch's mean."""
        states, state = self.encoder(self.dropout(self.project(regions)))
        words, found = self.words(tokens), []
        for place in range(tokens.shape[1] - 1):
            given = torch.cat([words[:, place], self._context(states, state[0])], 1)
            output, state = self.decoder(self.dropout(given)[:, None], state)
            found.append(functional.log_softmax(self.out(output[:, 0]), 1))
        chosen = torch.stack(found, 1).gather(2, tokens[:, 1:, None])[..., 0]
        places = torch.arange(1, tokens.shape[1])[None]
        real = (places < lengths[:, None]).to(chosen.device)
        return -(chosen * real).sum() / len(tokens)

    def _context(self, states: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        beside = state[:, None].repeat(1, states.shape[1], 1)
        layer = torch.tanh(self.attend(torch.cat([states, beside], 2).flatten(0, 1)))
        weights = torch.softmax(self.score(layer).view(states.shape[:2]), 1)
        return torch.bmm(weights[:, None], states)[:, 0]


def _convolution_of(params: Any) -> nn.Conv1d:
    """A convolution of one cell with a linear layer's parameters."""
    layer = nn.Conv1d(*params["kernel"].shape, 1)
    with torch.no_grad():
        layer.weight.copy_(tensor_of(params["kernel"].T)[..., None])
        layer.bias.copy_(tensor_of(params["bias"]))
    return layer
