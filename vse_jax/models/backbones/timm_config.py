"""What `timm`'s config.json says of its weights."""

from collections.abc import Collection, Mapping
from typing import Any

from vse_jax.models.backbones import pixels
from vse_jax.models.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD, Channels
from vse_jax.models.backbones.weights import WeightsError

_WHERE = "config.json of the weights"
# What timm notes of an architecture and features do not see, or the tensors' shapes tell.
_HARMLESS = {"num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate"}


def architecture(config: Mapping[str, Any], known: Collection[str]) -> str:
    """The name of the network, one of those `known`.

    Raises:
      WeightsError: it is another one, or a known one that was changed.
    """
    name: Any = config.get("architecture")
    if name not in known:
        raise WeightsError(f"{_WHERE}: architecture is {name!r}, expected one of {sorted(known)}")
    changes = sorted((config.get("model_args") or {}).keys() - _HARMLESS)
    if changes:
        raise WeightsError(f"{_WHERE}: model_args changes {changes} of {name}, expected no changes")
    return str(name)


def statistics(config: Mapping[str, Any]) -> tuple[Channels, Channels]:
    """Mean and deviation of the pixels, in [0, 1]; ImageNet's where none are given.

    They stand in `pretrained_cfg`; in older uploads, beside the name.

    Raises:
      WeightsError: one is not three numbers, or a deviation is not positive.
    """
    given = config.get("pretrained_cfg", config)
    return pixels.statistics(given, ("mean", "std"), IMAGENET_MEAN, IMAGENET_STD, _WHERE)
