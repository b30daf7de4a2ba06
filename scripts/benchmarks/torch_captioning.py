"""The multimodal RNN and its beam search in PyTorch, to compare with."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.peak import torch_device
from vse_jax.captioning.captions import SpecialTokens


class BeamSearch:
    """Best captions of pictures, all pictures and beams of a step in one product.

    It stops, as the project's does, once each picture's best caption has ended.
    """

    def __init__(self, params: Any, special: SpecialTokens, max_length: int, beams: int) -> None:
        """Starts from this project's parameters, a tree of NumPy arrays."""
        device = torch_device()
        self.image = [_tensor(params["image"][name], device) for name in ("kernel", "bias")]
        names = ("words", "weight_hx", "weight_hh", "bias_h", "weight_oh", "bias_o")
        self.words, *self.cell, self.out, self.out_bias = (
            _tensor(params[name], device) for name in names
        )
        self.special, self.max_length, self.beams = special, max_length, beams
        self.banned = torch.tensor(special.banned, device=device)

    @torch.inference_mode()
    def __call__(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [b, l] and log probabilities [b] of the best captions of features [b, f]."""
        kernel, bias = self.image
        picture = torch.addmm(bias, torch.from_numpy(features).to(kernel.device), kernel)
        pictures, k, end = len(picture), self.beams, self.special.end
        last = torch.full((pictures, 1), self.special.start, device=picture.device)
        hidden, logits = self._step(picture, picture.new_zeros(pictures, len(self.out)), last)
        log_p, last = self._likeliest(logits)
        ended = last == end
        tokens = last.new_full((pictures, k, self.max_length), self.special.padding)
        tokens[:, :, 0] = last
        hidden = hidden.repeat_interleave(k, 0)
        first = torch.arange(pictures, device=picture.device)[:, None] * k
        stays = torch.tensor([0.0] + [-torch.inf] * (k - 1), device=picture.device)
        for time in range(1, self.max_length):
            if ended[:, 0].all():
                break
            hidden, logits = self._step(None, hidden, last)
            values, words = self._likeliest(logits)
            values = torch.where(ended[..., None], stays, values.view(pictures, k, k))
            log_p, chosen = (log_p[..., None] + values).view(pictures, -1).topk(k)
            parent = chosen // k
            last = words.view(pictures, -1).gather(1, chosen)
            hidden = hidden[(first + parent).view(-1)]
            tokens = tokens.gather(1, parent[..., None].expand_as(tokens))
            ended = ended.gather(1, parent)
            tokens[:, :, time] = torch.where(ended, self.special.padding, last)
            ended = ended | (last == end)
        return tokens[:, 0].cpu().numpy(), log_p[:, 0].cpu().numpy()

    def _step(
        self, picture: torch.Tensor | None, hidden: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next h, and logits of the words that may follow."""
        weight_hx, weight_hh, bias = self.cell
        argument = torch.addmm(bias, self.words[tokens.view(-1)], weight_hx)
        argument.addmm_(hidden, weight_hh)
        if picture is not None:
            argument += picture
        hidden = functional.relu(argument, inplace=True)
        return hidden, torch.addmm(self.out_bias, hidden, self.out)

    def _likeliest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities and numbers of the likeliest words that may be written."""
        scores = functional.log_softmax(logits, 1).index_fill_(1, self.banned, -torch.inf)
        return tuple(scores.topk(self.beams))


def _tensor(value: Any, device: str) -> torch.Tensor:
    return torch.from_numpy(np.array(value)).to(device)
