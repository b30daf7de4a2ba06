"""The text backbones a config can name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from vse_jax.models.backbones import bert as _bert
from vse_jax.models.backbones import clip as _clip
from vse_jax.models.backbones import siglip as _siglip

__all__ = ["bert", "clip", "siglip"]


class TextBackbone(NamedTuple):
    """How a text backbone is made and filled.

    Attributes:
      make: (configuration, dtype) -> the module, called with tokens int32 [b, l], their mask
        bool [b, l] and `train=`, which gives `WordFeatures`. The configuration is `config.json`
        of pretrained weights, empty without them.
      load: (weights, module) -> the module's pretrained variables, raising WeightsError.
    """

    make: Callable[[Mapping[str, Any], jnp.dtype], nn.Module]
    load: Callable[[str, Any], dict[str, Any]]


# As the weights' config.json describes it, BERT-base without weights; MiniLM is one too.
bert = TextBackbone(lambda configuration, dtype: _bert.make(configuration, dtype=dtype), _bert.load)

# The text towers of models of pictures and sentences; their image towers: `catalogue`.
clip = TextBackbone(
    lambda configuration, dtype: _clip.make_text(configuration, dtype=dtype), _clip.load_text
)
siglip = TextBackbone(
    lambda configuration, dtype: _siglip.make_text(configuration, dtype=dtype), _siglip.load_text
)
