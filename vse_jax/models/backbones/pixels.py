"""Pixels as a backbone's weights expect them: each channel with its mean and deviation."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

Channels = tuple[float, float, float]

# Of ImageNet's training pictures, pixels in [0, 1].
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


def normalize(
    image: UInt8[Array, "b h w 3"], mean: Channels, std: Channels, dtype: DTypeLike
) -> Float[Array, "b h w 3"]:
    """(pixel / 255 - mean) / std; worked out in float32, handed on as `dtype`."""
    # bfloat16 would round the mean.
    shift, scale = (255.0 * np.asarray(x, np.float32).reshape(1, 1, 1, 3) for x in (mean, std))
    return ((image.astype(jnp.float32) - shift) / scale).astype(dtype)
