"""What writes captions, and tells classes beside it, in PyTorch; see `torch_twins`.

Of neither is there released code in PyTorch: recurrence is PyTorch's own layer wherever one fits.
"""

from collections.abc import Mapping
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn

from benchmarks.torch_layers import Features, Sentences, linear_of, tensor_of
from benchmarks.torch_objectives import cross_entropy, only

Tensors = Mapping[str, torch.Tensor]


class CaptionerLoss(nn.Module):
    """DVSA's generator: the likelihood of captions of whole pictures.

    Source: Karpathy & Fei-Fei, CVPR 2015, section 3.2.
    """

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays, under its config."""
        super().__init__()
        self.features = Features(config)
        self.captioner = Captioner(params["captioner"], config)
        self.weight = config.objective.generation.weight

    def forward(self, batch: Tensors) -> torch.Tensor:
        """As `TowersLoss`."""
        pooled = self.features(batch["features"]).mean(1)
        return self.weight * self.captioner(pooled, batch["tokens"], batch["lengths"])


class Captioner(nn.Module):
    """A rectified cell or an LSTM that is shown the picture at the first word alone."""

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from `captioner`."""
        super().__init__()
        self.image = linear_of(params["image"])
        self.words = nn.Embedding.from_pretrained(tensor_of(params["words"]), freeze=False)
        self.dropout = nn.Dropout(config.model.captioner.dropout)
        self.out = linear_of({"kernel": params["weight_oh"], "bias": params["bias_o"]})
        width, hidden = params["words"].shape[1], params["weight_hh"].shape[0]
        self.lstm = config.model.captioner.cell == "lstm"
        self.cell = (
            nn.LSTM(width, hidden, batch_first=True)
            if self.lstm
            else nn.RNN(width, hidden, batch_first=True, nonlinearity="relu")
        )
        with torch.no_grad():
            self.cell.weight_ih_l0.copy_(tensor_of(params["weight_hx"].T))
            self.cell.weight_hh_l0.copy_(tensor_of(params["weight_hh"].T))
            self.cell.bias_ih_l0.copy_(tensor_of(params["bias_h"]))
            self.cell.bias_hh_l0.zero_()
        # The cell has one bias; PyTorch's layers have two.
        self.cell.bias_hh_l0.requires_grad_(False)

    def forward(
        self, features: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Minus the log likelihood of a caption of features [b, f], the batch's mean."""
        words = self.dropout(self.words(tokens[:, :-1]))
        picture = self.dropout(self.image(features))
        if self.lstm:
            words = torch.cat([words[:, :1] + picture[:, None], words[:, 1:]], 1)
            states = self._states(words, lengths - 1)
        else:
            # The picture is in the cell's argument, where PyTorch's layer takes nothing.
            argument = functional.linear(words[:, 0], self.cell.weight_ih_l0, self.cell.bias_ih_l0)
            first = functional.relu(argument + picture)
            others = self._states(words[:, 1:], (lengths - 2).clamp(min=1), first[None])
            states = torch.cat([first[:, None], others], 1)
        places = torch.arange(1, tokens.shape[1])[None]
        real = (places < lengths[:, None]).to(tokens.device)
        logits, targets = self.out(self.dropout(states[real])), tokens[:, 1:][real]
        return functional.cross_entropy(logits, targets, reduction="sum") / len(tokens)

    def _states(self, words: torch.Tensor, lengths: torch.Tensor, *first: Any) -> torch.Tensor:
        packed = rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        return rnn.pad_packed_sequence(self.cell(packed, *first)[0], batch_first=True)[0]

    def word_gradients(
        self, pooled: torch.Tensor, tokens: torch.Tensor, content: torch.Tensor
    ) -> torch.Tensor:
        """d log p(w_t) / d z [b, t, d] of content words, 0 of others; of an LSTM shown tanh(z).

        Without dropout. A word's own state is where the way back begins, once for each place.

        Args:
          pooled: z [b, d].
          tokens: [b, l].
          content: [b, l - 1], which tokens from the second on are asked for.
        """
        with torch.enable_grad():
            z = pooled.detach().requires_grad_()
            weight_ih, weight_hh, bias = (
                weight.detach()
                for weight in (self.cell.weight_ih_l0, self.cell.weight_hh_l0, self.cell.bias_ih_l0)
            )
            given = self.words(tokens[:, :-1]).detach()
            arguments = functional.linear(given, weight_ih, bias)
            extra = functional.linear(self.image(torch.tanh(z)), weight_ih)
            state, memory = extra.new_zeros(len(z), len(weight_hh.T)), 0.0
            found = []
            for place in range(content.shape[1]):
                gates = arguments[:, place] + functional.linear(state, weight_hh)
                gates = gates + extra if place == 0 else gates
                i, f, g, o = gates.chunk(4, 1)
                memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
                state = torch.sigmoid(o) * torch.tanh(memory)
                asked = content[:, place]
                if not asked.any():
                    found.append(torch.zeros_like(z))
                    continue
                log_p = functional.log_softmax(self.out(state[asked]), 1)
                own = log_p.gather(1, tokens[asked, place + 1][:, None]).sum()
                found += torch.autograd.grad(own, z, retain_graph=True)
        return torch.stack(found, 1)


class JointLoss(nn.Module):
    """Classes and captions of one embedding, and maps of where each looks, which are to agree.

    The formulation is this project's; the idea is Yoon et al.'s, ETRI Journal 42(1), 2020. Maps:
    Zhou et al., CVPR 2016, eq. 2; Selvaraju et al., ICCV 2017, eq. 1 and 2.
    """

    def __init__(
        self, params: Any, config: ConfigDict, function_words: tuple[int, ...] = ()
    ) -> None:
        """As `CaptionerLoss`; no map is made of `function_words`."""
        super().__init__()
        for name, value in (
            ("embedding.kind", "contrast"),
            ("disagreement.kind", "cosine"),
            ("disagreement.second_order", False),
        ):
            only(config, f"objective.{name}", value)
        only(config, "model.captioner.cell", "lstm")
        own, head = config.objective, params["image"]["head"]
        names = "classification", "generation", "embedding", "disagreement"
        self.weights = tuple(own[name].weight for name in names)
        self.temperature = own.embedding.temperature
        self.function_words = torch.tensor(function_words)
        self.features = Features(config)
        kernel = head["project"]["kernel"]
        self.project = nn.Linear(*kernel.shape, bias=False)
        with torch.no_grad():
            self.project.weight.copy_(tensor_of(kernel.T))
        self.bias = nn.Parameter(tensor_of(head["bias"]))
        classifier = params["classifier"]
        self.classifier = linear_of({"kernel": classifier["weights"], "bias": classifier["bias"]})
        self.captioner = Captioner(params["captioner"], config)
        self.text = Sentences(params["text"]["reader"], config.model.text.dropout)
        self.sentence = linear_of(params["text"]["head"]["project"])

    def forward(self, batch: Tensors) -> torch.Tensor:
        """As `TowersLoss`; every picture has a class."""
        tokens, lengths, label = batch["tokens"], batch["lengths"], batch["label"]
        classification, generation, embedding, disagreement = self.weights
        local = self.project(self.features(batch["features"]))
        pooled = local.mean(1) + self.bias
        seen = torch.tanh(pooled)
        loss = classification * functional.cross_entropy(self.classifier(pooled), label)
        loss = loss + generation * self.captioner(seen, tokens, lengths)
        sentences = self.sentence(self.text(tokens, lengths)[1])
        cosines = functional.normalize(seen) @ functional.normalize(sentences).T
        loss = loss + embedding * cross_entropy(cosines / self.temperature, batch["ids"])
        if disagreement:
            loss = loss + disagreement * self._disagreement(local, pooled, tokens, lengths, label)
        return loss

    def _disagreement(
        self,
        local: torch.Tensor,
        pooled: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """1 - the cosine of both maps, the mean of captions with content words."""
        classes = torch.einsum("bnd,bd->bn", local, self.classifier.weight[label])
        real = torch.arange(1, tokens.shape[1])[None] < lengths[:, None]
        content = real.to(tokens.device)
        content = content & ~torch.isin(tokens[:, 1:], self.function_words.to(tokens.device))
        gradients = self.captioner.word_gradients(pooled, tokens, content)
        of_words = functional.relu(torch.bmm(gradients, local.transpose(1, 2)) / local.shape[1])
        count = content.sum(1, keepdim=True)
        caption = (of_words * content[..., None]).sum(1) / count.clamp(min=1)
        maps = functional.normalize(functional.relu(classes)), functional.normalize(caption)
        apart = 1 - (maps[0] * maps[1]).sum(1)
        some = (count[:, 0] > 0).to(apart.dtype)
        return (apart * some).sum() / some.sum().clamp(min=1)
