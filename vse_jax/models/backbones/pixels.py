"""Pixels as a backbone's weights expect them: each channel with its mean and deviation."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from vse_jax.models.backbones import weights
from vse_jax.models.backbones.weights import WeightsError

Channels = tuple[float, float, float]

# Of ImageNet's training pictures, pixels in [0, 1].
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
# Pixels from -1 to 1.
HALF: Channels = (0.5, 0.5, 0.5)


def statistics(
    said: Mapping[str, Any], names: tuple[str, str], mean: Channels, std: Channels, where: str
) -> tuple[Channels, Channels]:
    """Mean and deviation of the pixels, in [0, 1], as a configuration says.

    Args:
      said: the configuration.
      names: what it calls the two.
      mean, std: where it does not say.
      where: it stands, for messages.

    Raises:
      WeightsError: one is not three numbers, or a deviation is not positive.
    """
    found = [
        _three(said.get(n, usual), n, where) for n, usual in zip(names, (mean, std), strict=True)
    ]
    if min(found[1]) <= 0:
        raise WeightsError(f"{where}: {names[1]} is {list(found[1])}, expected positive numbers")
    return found[0], found[1]


def of_hugging_face(
    configuration: Mapping[str, Any], mean: Channels, std: Channels
) -> tuple[Channels, Channels]:
    """Those of `preprocessor_config.json`, which `weights.load_config` puts beside the rest.

    Raises:
      WeightsError: as `statistics`.
    """
    where = "preprocessor_config.json of the weights"
    return statistics(configuration, weights.PIXELS, mean, std, where)


def _three(value: Any, name: str, where: str) -> Channels:
    try:
        first, second, third = map(float, value)
    except (TypeError, ValueError):
        raise WeightsError(f"{where}: {name} is {value!r}, expected three numbers") from None
    return first, second, third


def normalize(
    image: UInt8[Array, "b h w 3"], mean: Channels, std: Channels, dtype: DTypeLike
) -> Float[Array, "b h w 3"]:
    """(pixel / 255 - mean) / std; worked out in float32, handed on as `dtype`."""
    # bfloat16 would round the mean.
    shift, scale = (255.0 * np.asarray(x, np.float32).reshape(1, 1, 1, 3) for x in (mean, std))
    return ((image.astype(jnp.float32) - shift) / scale).astype(dtype)
