"""Networks that compare pairs, in PyTorch, as their authors have them; see `torch_twins`."""

from collections.abc import Mapping
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional

from benchmarks.torch_layers import (
    Features,
    SelfAttention,
    Sentences,
    linear_of,
    norm_of,
    tensor_of,
    unit,
)
from benchmarks.torch_objectives import Ranking

Tensors = Mapping[str, torch.Tensor]


class SGRAFLoss(nn.Module):
    """SGRAF as its authors wrote it: caption by caption, each with all pictures.

    Its copies of words and weights are made too, which the computation could do without: in turns
    on one machine a step of SAF takes 1.03 times as long as with the released code itself. Batch
    norms of regions are by channel here, as in this project. Source: Diao et al., AAAI 2021, and
    the released `model.py`.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        image, text, pair = params["image"]["head"], params["text"]["head"], params["pairwise"]
        self.features = Features(config)
        self.text = Sentences(params["text"]["reader"], config.model.text.dropout)
        self.project = linear_of(image["project"])
        self.picture = SelfAttention(image, normed=True)
        self.sentence = SelfAttention(text, normed=False)
        self.local, self.whole, self.score = (
            _pair_linear(pair, name) for name in ("local", "whole", "score")
        )
        self.ranking = Ranking(params, config)

    def compile_parts(self) -> None:
        """Compiles what is done for each caption: its loop of 128 would be a program by itself."""
        self.column = torch.compile(self.column, dynamic=True)

    def encode(
        self, features: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Regions [b, n, d], their wholes, words [b, l, d], their lengths on the host."""
        regions = unit(self.project(self.features(features)))
        words = unit(self.text(tokens, lengths)[0])
        return regions, self.picture(regions), words, lengths

    def compare(
        self,
        regions: torch.Tensor,
        wholes: torch.Tensor,
        words: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Scores [b, c]."""
        columns = [
            self.column(regions, wholes, caption[None, :length])
            for caption, length in zip(words, lengths.tolist(), strict=True)
        ]
        return torch.cat(columns, 1)

    def column(
        self, regions: torch.Tensor, wholes: torch.Tensor, own: torch.Tensor
    ) -> torch.Tensor:
        """Scores [b, 1] of all pictures with a caption's words [1, l, d]."""
        word = own.repeat(len(regions), 1, 1)
        attention = functional.leaky_relu(torch.bmm(regions, word.transpose(1, 2)), 0.1)
        attention = unit(attention).transpose(1, 2).contiguous()
        attention = torch.softmax(9 * attention, 2).transpose(1, 2).contiguous()
        context = unit(torch.bmm(regions.transpose(1, 2), attention).transpose(1, 2))
        nodes = unit(self.local(torch.pow(context - word, 2)))
        whole = unit(self.whole(torch.pow(wholes - self.sentence(own), 2)))
        return torch.sigmoid(self.score(self.judge(torch.cat([whole[:, None], nodes], 1))))

    def judge(self, nodes: torch.Tensor) -> torch.Tensor:
        """The vector [b, s] that says how well nodes [b, n, s], the wholes' first, fit."""
        raise NotImplementedError

    def forward(self, batch: Tensors) -> torch.Tensor:
        """As `TowersLoss`."""
        encoded = self.encode(batch["features"], batch["tokens"], batch["lengths"])
        return self.ranking(self.compare(*encoded), batch["ids"])

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


class SAFLoss(SGRAFLoss):
    """Attention filtration: every alignment counts as much as it is found to matter."""

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """As `SGRAFLoss`."""
        super().__init__(params, config)
        pair = params["pairwise"]
        self.weight = _pair_linear(pair, "weight")
        self.norm = norm_of({"scale": pair["norm_scale"], "bias": pair["norm_bias"]})

    def hold_statistics(self) -> None:
        """Takes the statistics of nodes for constants in the gradient, as this project does."""
        held = ConstantStatistics(self.norm.num_features)
        held.load_state_dict(self.norm.state_dict())
        self.norm = held

    def judge(self, nodes: torch.Tensor) -> torch.Tensor:
        """The nodes' sum, weighted."""
        weight = torch.sigmoid(self.norm(self.weight(nodes).transpose(1, 2)))
        weight = functional.normalize(weight, p=1, dim=-1)
        return unit((weight @ nodes)[:, 0])


class ConstantStatistics(nn.BatchNorm1d):
    """A batch norm whose gradient does not go through its mean and variance."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Of a batch [b, c, n]."""
        fixed = values.detach()
        mean, variance = fixed.mean((0, 2)), fixed.var((0, 2), correction=0)
        return functional.batch_norm(values, mean, variance, self.weight, self.bias, eps=self.eps)


class SGRLoss(SGRAFLoss):
    """Graph reasoning: alignments exchange what they say, then the wholes' one decides."""

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """As `SGRAFLoss`."""
        super().__init__(params, config)
        pair = params["pairwise"]
        steps = sum(name.endswith("_out_kernel") for name in pair)
        self.steps = nn.ModuleList(Reasoning(pair, f"step{step}") for step in range(steps))

    def judge(self, nodes: torch.Tensor) -> torch.Tensor:
        """The wholes' node after the steps, which the last takes for all nodes, as released."""
        for step in self.steps:
            nodes = step(nodes)
        return nodes[:, 0]


class Reasoning(nn.Module):
    """A step over the graph of a pair's nodes: the released `GraphReasoning`."""

    def __init__(self, pair: Any, name: str) -> None:
        """Starts from the parameters of the step of that name."""
        super().__init__()
        self.query, self.out = (_pair_linear(pair, f"{name}_{part}") for part in ("query", "out"))
        kernel = pair[f"{name}_key_kernel"]
        # As released it has a bias, which adds the same to all that a softmax is over.
        self.key = linear_of({"kernel": kernel, "bias": 0 * kernel[0]})

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        """The nodes [b, n, s], each after what the others say."""
        edges = torch.softmax(torch.bmm(self.query(nodes), self.key(nodes).transpose(1, 2)), -1)
        return functional.relu(self.out(torch.bmm(edges, nodes)))


class DVSALoss(nn.Module):
    """DVSA's alignment model: every word finds its region.

    There is no released code in PyTorch. All words of the batch meet all regions in one product.
    Source: Karpathy & Fei-Fei, CVPR 2015, section 3.1.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        reader = params["text"]["reader"]
        self.features = Features(config)
        self.project = linear_of(params["image"]["head"]["project"])
        self.words = nn.Embedding.from_pretrained(tensor_of(reader["words"]), freeze=False)
        self.embed = linear_of(reader["embed"])
        self.dropout = nn.Dropout(config.model.text.dropout)
        self.ahead, self.back = (
            linear_of({"kernel": reader[name], "bias": reader[f"{name}_bias"]})
            for name in ("forward", "backward")
        )
        self.out = linear_of(params["text"]["head"]["project"])
        self.ranking = Ranking(params, config)

    def read(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The sums [b, l, h] of both directions' states; 0 of padding, which is behind."""
        given = self.dropout(functional.relu(self.embed(self.words(tokens)))).unbind(1)
        ahead = [torch.zeros_like(given[0])]
        for vector in given:
            ahead.append(functional.relu(vector + self.ahead(ahead[-1])))
        back = [torch.zeros_like(given[0])]
        for vector, here in zip(reversed(given), reversed(real.unbind(1)), strict=True):
            state = functional.relu(vector + self.back(back[-1]))
            back.append(state * here[:, None])
        states = torch.stack(ahead[1:], 1) + torch.stack(back[:0:-1], 1)
        return states * real[..., None]

    def forward(self, batch: Tensors) -> torch.Tensor:
        """As `TowersLoss`; <start> and <end> are no words."""
        tokens = batch["tokens"][:, 1:-1]
        lengths = (batch["lengths"] - 2).to(tokens.device)
        real = torch.arange(tokens.shape[1], device=tokens.device)[None] < lengths[:, None]
        words = functional.relu(self.out(self.read(tokens, real)[real]))
        regions = self.project(self.features(batch["features"]))
        best = (regions.flatten(0, 1) @ words.T).unflatten(0, regions.shape[:2]).max(1)[0]
        caption = torch.arange(len(tokens), device=tokens.device).repeat_interleave(lengths)
        scores = best.new_zeros(len(regions), len(tokens)).index_add(1, caption, best)
        return self.ranking(scores, batch["ids"])


def _pair_linear(pair: Any, name: str) -> nn.Linear:
    return linear_of({"kernel": pair[f"{name}_kernel"], "bias": pair[f"{name}_bias"]})
