"""The backbones a config can name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from vse_jax.models.backbones import clip as _clip
from vse_jax.models.backbones import mobilenet_v2 as _mobilenet_v2
from vse_jax.models.backbones import resnet as _resnet
from vse_jax.models.backbones import siglip as _siglip
from vse_jax.models.backbones import small_resnet as _small_resnet
from vse_jax.models.backbones import vgg19 as _vgg19
from vse_jax.models.backbones import vit as _vit
from vse_jax.models.backbones.classifier import Classifier

__all__ = ["clip", "mobilenet_v2", "none", "resnet", "siglip", "small_resnet", "vgg19", "vit"]


class Backbone(NamedTuple):
    """How a backbone is made and filled.

    Attributes:
      make: (configuration, dtype, axis_name) -> the module, called with uint8 pictures
        [b, h, w, 3] and `train=`, which returns a FeatureMap; None where the data are features
        already. The configuration is `config.json` of pretrained weights, empty without them.
      load: (weights, module) -> the module's pretrained variables, raising WeightsError; None
        where there are no public weights.
      classifier: weights -> the linear classifier of a mean over cells that they carry, None where
        they were saved without it, raising WeightsError; None of a backbone that has no such.
    """

    make: Callable[[Mapping[str, Any], jnp.dtype, str], nn.Module | None]
    load: Callable[[str, Any], dict[str, Any]] | None
    classifier: Callable[[str], Classifier | None] | None = None


# As the weights' config.json describes it, 1.0 wide without weights.
mobilenet_v2 = Backbone(
    lambda configuration, dtype, axis_name: _mobilenet_v2.make(
        configuration, dtype=dtype, axis_name=axis_name
    ),
    _mobilenet_v2.load,
    _mobilenet_v2.load_classifier,
)

# ResNet-50, -101 or -152 as the weights' config.json says, ResNet-50 without weights.
resnet = Backbone(
    lambda configuration, dtype, axis_name: _resnet.make(
        configuration, dtype=dtype, axis_name=axis_name
    ),
    _resnet.load,
    _resnet.load_classifier,
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

# As the weights' config.json describes it, ViT-B/16 without weights.
vit = Backbone(lambda configuration, dtype, _: _vit.make(configuration, dtype=dtype), _vit.load)

# The image towers of models of pictures and sentences; their text towers: `text_catalogue`.
clip = Backbone(
    lambda configuration, dtype, _: _clip.make_image(configuration, dtype=dtype), _clip.load_image
)
siglip = Backbone(
    lambda configuration, dtype, _: _siglip.make_image(configuration, dtype=dtype),
    _siglip.load_image,
)

# For data that are features already.
none = Backbone(lambda *_: None, None)
