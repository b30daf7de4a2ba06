"""What scores are divided by and what is added to them before a loss looks at them, learned."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Scaling(NamedTuple):
    """Of scores: s / temperature + bias."""

    temperature: Float[Array, ""]
    bias: Float[Array, ""]


class Scale(nn.Module):
    """A learned temperature and, where one is given, a learned bias.

    The logarithm of one over the temperature is what is learned, and counts for no more than that
    of 100: beyond, the loss sees 100, and its gradient leads back. Source: Radford et al., CLIP,
    ICML 2021, section 2.5; Zhai et al., ICCV 2023, section 3.2.

    Attributes:
      temperature: at the start.
      bias: at the start; None: there is none.
    """

    temperature: float
    bias: float | None = None

    @nn.compact
    def __call__(self) -> Scaling:
        """Temperature and bias as they are now."""
        log_scale = self.param(
            "log_scale", nn.initializers.constant(-math.log(self.temperature)), (), jnp.float32
        )
        least = jnp.minimum(log_scale, math.log(100.0))
        held = log_scale + jax.lax.stop_gradient(least - log_scale)
        bias = jnp.zeros(())
        if self.bias is not None:
            bias = self.param("bias", nn.initializers.constant(self.bias), (), jnp.float32)
        return Scaling(jnp.exp(-held), bias)
