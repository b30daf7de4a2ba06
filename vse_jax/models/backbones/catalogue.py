"""The backbones a config can name: each function makes one.

All take (weights, dtype, axis_name) and return the module, called with uint8 pictures
[b, h, w, 3] and `train=`, and its pretrained variables, None where `weights` is None.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vse_jax.models.backbones import mobilenet_v2 as _mobilenet_v2
from vse_jax.models.backbones import small_resnet as _small_resnet
from vse_jax.models.backbones.weights import WeightsError

__all__ = ["mobilenet_v2", "small_resnet"]


def mobilenet_v2(
    weights: str | None, dtype: jnp.dtype, axis_name: str
) -> tuple[nn.Module, dict[str, Any] | None]:
    """MobileNetV2, as the weights' config.json describes it, 1.0 without weights."""
    if weights is None:
        return _mobilenet_v2.MobileNetV2(dtype=dtype, axis_name=axis_name), None
    return _mobilenet_v2.from_pretrained(weights, dtype=dtype, axis_name=axis_name)


def small_resnet(
    weights: str | None, dtype: jnp.dtype, axis_name: str
) -> tuple[nn.Module, dict[str, Any] | None]:
    """A small residual network for training from scratch; there are no weights of it."""
    if weights is not None:
        raise WeightsError("'small_resnet' has no pretrained weights: unset model.image.weights")
    return _small_resnet.SmallResNet(dtype=dtype, axis_name=axis_name), None
