"""The same computations in PyTorch, to compare with."""

from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.optim import swa_utils
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peak import torch_device, torch_wait
from benchmarks.torch_captioners import CaptionerLoss, JointLoss
from benchmarks.torch_leap import LeapLoss
from benchmarks.torch_networks import ResidualLoss, TowersLoss, VSEInfinityLoss, VSRNLoss
from benchmarks.torch_pairwise import DVSALoss, SAFLoss, SGRLoss

# By `model.network`.
LOSSES = {
    "vsepp": TowersLoss,
    "vse_infinity": VSEInfinityLoss,
    "vsrn": VSRNLoss,
    "saf": SAFLoss,
    "sgr": SGRLoss,
    "dvsa": DVSALoss,
    "multimodal_rnn": CaptionerLoss,
    "residual": ResidualLoss,
}


def loss_of(params: Any, config: ConfigDict, function_words: tuple[int, ...] = ()) -> nn.Module:
    """The config's network and objective, called with a batch for its loss.

    Args:
      params: this project's, a tree of NumPy arrays, to start from.
      config: of the step.
      function_words: tokens that no map is made of.
    """
    if config.model.network == "cam":
        return JointLoss(params, config, function_words)
    if config.objective.leap.weight:
        return LeapLoss(params, config)
    return LOSSES[config.model.network](params, config)


def tensors(batch: dict[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """One of this project's batches as the losses here take it; see `TowersLoss`."""
    names = {"features": "features", "text_features": "text_features", "image_id": "ids"}
    given = {own: batch[name] for name, own in names.items() if name in batch}
    if "label" in batch:
        given["label"] = batch["label"].astype(np.int64)
    found = {name: torch.from_numpy(rows).to(device) for name, rows in given.items()}
    if "tokens" in batch:
        # Packing wants them on the host.
        lengths = torch.from_numpy(batch["token_mask"].sum(1))
        # As released loaders do, only as wide as the longest caption here.
        tokens = torch.from_numpy(batch["tokens"][:, : int(lengths.max())].astype(np.int64))
        found |= {"tokens": tokens.to(device), "lengths": lengths}
    return found


def products(
    params: Any,
    config: ConfigDict,
    batch: dict[str, np.ndarray],
    function_words: tuple[int, ...] = (),
    *,
    backward: bool = True,
) -> int:
    """FLOPs of the matrix products in a batch's loss and, unless told otherwise, its gradient.

    Counted on the processor, where PyTorch's recurrent layers are made of single products.
    """
    module = loss_of(params, config, function_words)
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        loss = module(tensors(batch, "cpu"))
        if backward:
            loss.backward()
    return counter.get_total_flops()


class TrainStep:
    """Loss, gradient, clipping, update and, where asked for, the moving average; a batch a call."""

    def __init__(
        self,
        params: Any,
        config: ConfigDict,
        *,
        compiled: bool,
        still: bool = False,
        function_words: tuple[int, ...] = (),
    ) -> None:
        """Starts from this project's parameters.

        Args:
          params: a tree of NumPy arrays.
          config: of the step.
          compiled: whether it goes through `torch.compile`.
          still: for a comparison: no dropout acts, and statistics of pairs are constants.
          function_words: tokens that no map is made of.
        """
        module = loss_of(params, config, function_words).to(torch_device())
        for layer in module.modules():
            if still and isinstance(layer, nn.Dropout):
                layer.p = 0.0
        if still and hasattr(module, "hold_statistics"):
            module.hold_statistics()
        train = config.train
        average = swa_utils.get_ema_multi_avg_fn(train.ema)
        self.average = swa_utils.AveragedModel(module, multi_avg_fn=average) if train.ema else None
        self.module = self.loss = module
        if compiled and hasattr(module, "compile_parts"):
            module.compile_parts()
        elif compiled:
            self.loss = torch.compile(module)
        self.parameters = [value for value in module.parameters() if value.requires_grad]
        self.clip_value, self.clip_norm = train.clip_value, train.clip_norm
        self.optimizer = _optimizer(self.parameters, train)
        self.matrices = [value for value in self.parameters if value.ndim > 1]
        self.kept = 1 - train.learning_rate * train.weight_decay

    def __call__(self, batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, norm of the gradient before clipping); one of this project's batches."""
        loss = self.loss(tensors(batch, torch_device()))
        self.optimizer.zero_grad()
        loss.backward()
        norm = self._clip()
        if self.kept < 1:
            with torch.no_grad():
                torch._foreach_mul_(self.matrices, self.kept)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.module)
        torch_wait()
        return loss.detach(), norm

    def _clip(self) -> torch.Tensor:
        """Element by element, then by the norm; returns the norm as it was before."""
        if self.clip_value is None and self.clip_norm is not None:
            return nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        norm = nn.utils.get_total_norm([value.grad for value in self.parameters])
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.parameters, self.clip_value)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        return norm


def _optimizer(parameters: list[nn.Parameter], train: ConfigDict) -> torch.optim.Optimizer:
    """The rule of the update that the section `train` of a config names."""
    rate = train.learning_rate
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, train.momentum)
    if train.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, train.rms_decay, 1e-8)
    return torch.optim.Adam(parameters, rate)


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
