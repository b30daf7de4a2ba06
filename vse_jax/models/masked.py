"""Statistics, weights and order of parts of which some are absent."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int


def masked_softmax(
    scores: Float[Array, "..."], mask: Bool[Array, "..."], axis: int = -1
) -> Float[Array, "..."]:
    """exp(s_i) / sum_j exp(s_j) over the entries of an axis that `mask` keeps; 0 elsewhere.

    The mask has the shape of the scores, or 1 where it is the same for all. A row without any is
    zero and passes no gradient.
    """
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=axis, keepdims=True))
    raised = jnp.where(mask, jnp.exp(scores - highest), 0.0)
    total = jnp.sum(raised, axis=axis, keepdims=True)
    # Not the larger of it and 1: of equals, as with a single entry, each gets half the gradient.
    return raised / jnp.where(jnp.any(mask, axis=axis, keepdims=True), total, 1.0)


def to_front(
    parts: Float[Array, "b n d"], mask: Bool[Array, "b n"]
) -> tuple[Float[Array, "b n d"], Int[Array, " b"]]:
    """The parts that `mask` keeps, in their order and without holes, and how many they are.

    What lies behind them is not cleared.
    """
    order = jnp.argsort(~mask, axis=1, stable=True)
    count = jnp.sum(mask, axis=1, dtype=jnp.int32)
    return jnp.take_along_axis(parts, order[..., None], axis=1), count


class MaskedBatchNorm(nn.Module):
    """Batch normalisation whose statistics are those of the parts that a mask keeps.

    (x - mean) / sqrt(var + epsilon) * scale + bias for each channel. Flax's own layer takes a mask
    too, but averages the devices' means as if each had as many parts; here sums and counts are
    added over `axis_name`. Parameters and statistics have the names and, in `var`, the biased
    estimate of `nn.BatchNorm`. Without any part the running statistics stay as they are.
    Source: Ioffe & Szegedy, ICML 2015, algorithm 1.

    Attributes:
      momentum: share of the old running statistics that a step keeps.
      epsilon: added to the variance.
      scale_init: of the scale.
      axis_name: mapped axis over which statistics are shared; None for those of this device.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"], *, train: bool
    ) -> Float[Array, "b n d"]:
        """The normalised parts, in float32; `train` decides on batch or running statistics."""
        x, (channels,) = x.astype(jnp.float32), x.shape[-1:]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var, count = self._statistics(x, mask)
            if not self.is_initializing():
                old = jnp.where(count > 0, self.momentum, 1.0)
                running_mean.value = old * running_mean.value + (1 - old) * mean
                running_var.value = old * running_var.value + (1 - old) * var
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x - mean[None, None]) * factor[None, None] + bias[None, None]

    def _statistics(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"], Float[Array, ""]]:
        """(mean, variance, number of parts) over all devices."""
        kept = mask[..., None]
        count = self._total(jnp.sum(mask, dtype=jnp.float32))
        share = 1 / jnp.maximum(count, 1.0)
        mean = self._total(jnp.sum(jnp.where(kept, x, 0.0), axis=(0, 1))) * share
        # From the mean, not from the squares' mean: that one cancels where the mean is large.
        square = jnp.square(jnp.where(kept, x - mean[None, None], 0.0))
        return mean, self._total(jnp.sum(square, axis=(0, 1))) * share, count

    def _total(self, x: Array) -> Array:
        return x if self.axis_name is None else jax.lax.psum(x, self.axis_name)
