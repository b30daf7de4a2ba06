"""Heads of single vectors: a linear layer, a residual perceptron, or nothing."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vse_jax.encoding import Encoding
from vse_jax.models.dropout import Dropout
from vse_jax.models.normalize import l2_normalize
from vse_jax.models.rows_product import rows_product

Pooling = Literal["mean", "max", "mean_max"]


class LinearHead(nn.Module):
    """The mean over the parts, through a linear layer, scaled to length 1 by default: VSE++.

    `local` is each part by itself. Source: Faghri et al., VSE++, BMVC 2018, section 3.3.

    Attributes:
      dimension: of the common space; None leaves the layer out, for parts of that width.
      pooling: what is projected: the parts' "mean", each channel's "max", or "mean_max", both.
      normalize: whether embeddings are scaled to length 1.
      dtype: of the computation.
    """

    dimension: int | None = 1024
    pooling: Pooling = "mean"
    normalize: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, parts: Float[Array, "b n f"], mask: Bool[Array, "b n"], *, train: bool
    ) -> Encoding:
        """The encoding of a batch of sets; one without parts is zero before the layer."""
        del train
        local, pooled = parts, pool(parts, mask, self.pooling)
        if self.pooling == "mean_max":
            local = jnp.concatenate([parts, parts], axis=-1)
        if self.dimension is not None:
            project = nn.Dense(
                self.dimension,
                kernel_init=nn.initializers.xavier_uniform(),
                dtype=self.dtype,
                dot_general=rows_product,
                name="project",
            )
            local, pooled = (project(x).astype(jnp.float32) for x in (local, pooled))
        return encoded(local, mask, pooled, self.normalize)


class ResidualHead(nn.Module):
    """A linear layer plus a perceptron of one hidden layer, for vectors that mean much already.

    Attributes:
      dimension: of the common space.
      hidden: units between.
      dropout: of the hidden units in training.
      pooling: as that of `LinearHead`.
      normalize: whether embeddings are scaled to length 1.
      dtype: of the computation.
    """

    dimension: int = 512
    hidden: int = 1024
    dropout: float = 0.1
    pooling: Pooling = "mean"
    normalize: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, parts: Float[Array, "b n f"], mask: Bool[Array, "b n"], *, train: bool
    ) -> Encoding:
        """The encoding of a batch of sets."""
        straight = nn.Dense(self.dimension, dtype=self.dtype, name="straight")
        inner = nn.Dense(self.hidden, dtype=self.dtype, name="inner")
        outer = nn.Dense(self.dimension, dtype=self.dtype, name="outer")
        dropout = Dropout(self.dropout)

        def embedded(x: Float[Array, "*b f"]) -> Float[Array, "*b d"]:
            hidden = dropout(nn.gelu(inner(x)), train=train)
            return (straight(x) + outer(hidden)).astype(jnp.float32)

        local, pooled = parts, pool(parts, mask, self.pooling)
        if self.pooling == "mean_max":
            local = jnp.concatenate([parts, parts], axis=-1)
        return encoded(embedded(local), mask, embedded(pooled), self.normalize)


def pool(
    parts: Float[Array, "b n f"], mask: Bool[Array, "b n"], pooling: Pooling
) -> Float[Array, "b p"]:
    """One vector of each set of parts, zero of an empty one."""
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(mask[..., None], parts, 0.0), axis=1) / count
    if pooling == "mean":
        return mean
    highest = jnp.max(parts, axis=1, where=mask[..., None], initial=-jnp.inf)
    highest = jnp.where(jnp.any(mask, axis=1, keepdims=True), highest, 0.0)
    return highest if pooling == "max" else jnp.concatenate([mean, highest], axis=-1)


def encoded(
    local: Float[Array, "b n d"],
    mask: Bool[Array, "b n"],
    pooled: Float[Array, "b d"],
    normalize: bool,
) -> Encoding:
    """The encoding, masked parts zero."""
    if normalize:
        local, pooled = l2_normalize(local), l2_normalize(pooled)
    return Encoding(local=local * mask[..., None], mask=mask, pooled=pooled)
