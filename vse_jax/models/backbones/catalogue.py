"""The backbones a config can name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from vse_jax.models.backbones import mobilenet_v2 as _mobilenet_v2
from vse_jax.models.backbones import resnet as _resnet
from vse_jax.models.backbones import small_resnet as _small_resnet
from vse_jax.models.backbones import vgg19 as _vgg19

__all__ = ["mobilenet_v2", "resnet", "small_resnet", "vgg19"]


class Backbone(NamedTuple):
    """How a backbone is made and filled.

    Attributes:
      make: (configuration, dtype, axis_name) -> the module, called with uint8 pictures
        [b, h, w, 3] and `train=`, which returns a FeatureMap. The configuration is `config.json`
        of pretrained weights, empty without them.
      load: (weights, module) -> the module's pretrained variables, raising WeightsError; None
        where there are no public weights.
    """

    make: Callable[[Mapping[str, Any], jnp.dtype, str], nn.Module]
    load: Callable[[str, Any], dict[str, Any]] | None


# As the weights' config.json describes it, 1.0 wide without weights.
mobilenet_v2 = Backbone(
    lambda configuration, dtype, axis_name: _mobilenet_v2.make(
        configuration, dtype=dtype, axis_name=axis_name
    ),
    _mobilenet_v2.load,
)

# ResNet-50, -101 or -152 as the weights' config.json says, ResNet-50 without weights.
resnet = Backbone(
    lambda configuration, dtype, axis_name: _resnet.make(
        configuration, dtype=dtype, axis_name=axis_name
    ),
    _resnet.load,
)

# For training from scratch.
small_resnet = Backbone(
    lambda _, dtype, axis_name: _small_resnet.SmallResNet(dtype=dtype, axis_name=axis_name),
    None,
)

# With batch norm where the weights' config.json says so.
vgg19 = Backbone(
    lambda configuration, dtype, axis_name: _vgg19.make(
        configuration, dtype=dtype, axis_name=axis_name
    ),
    _vgg19.load,
)
