"""A small residual network, trained from scratch: the default eyes of the data set `shapes`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vse_jax.models.backbones import blocks
from vse_jax.models.backbones.feature_map import FeatureMap, averaged

Dtype = Any


class SmallResNet(nn.Module):
    """Grid features of small pictures: 96 x 96 pixels become 6 x 6 cells of 512 channels.

    A 6x6 convolution of stride 4 (written as 3x3 of stride 2 over blocks of 2x2 pixels), then
    stages of which each halves the grid. Residual blocks as in He et al., CVPR
    2016, section 3, with the last scale of a block starting at zero (Goyal et al., 2017,
    section 5.1). The plain 3x3 convolution is the fastest form under XLA on a CPU.

    Attributes:
      stem: channels of the first convolution.
      widths: channels of each stage.
      blocks: residual blocks of each stage, at least one.
      head: channels of the grid, by a 1x1 convolution and a rectifier.
      coordinates: give the last stage and the head each cell's place, x and y in [-1, 1], as
        two more channels (Liu et al., CoordConv, NeurIPS 2018), so that an average over the grid
        can still tell left from right.
      momentum: of the running batch statistics.
      dtype: precision of the computation; parameters and statistics stay float32.
      axis_name: mapped axis over which batch statistics are shared, for the statistics
        of the global batch; None for those of this device's share.
      remat: compute each block again in the backward pass instead of keeping what is inside.
    """

    stem: int = 32
    widths: Sequence[int] = (64, 128)
    blocks: Sequence[int] = (1, 2)
    head: int = 512
    coordinates: bool = True
    momentum: float = 0.9
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, image: UInt8[Array, "b h w 3"], *, train: bool) -> FeatureMap:
        """The grid, after the last rectifier, and its mean.

        `train` decides on batch or running statistics.
        """
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.momentum,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        x = (image.astype(self.dtype) - 127.5) / 127.5
        x = _space_to_depth(x, 2)
        x = nn.Conv(self.stem, (3, 3), 2, use_bias=False, dtype=self.dtype, name="conv")(x)
        x = nn.relu(norm(name="norm")(x))
        for stage, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            if self.coordinates and stage == len(self.widths) - 1:
                x = _append_coordinates(x)
            for block in range(count):
                stride = 2 if block == 0 else 1
                name = f"stage{stage}_block{block}"
                make = partial(_Block, width, stride, norm, self.dtype, name=name)
                x = blocks.run(self, make, x, remat=self.remat)
        if self.coordinates:
            x = _append_coordinates(x)
        return averaged(nn.relu(nn.Conv(self.head, (1, 1), dtype=self.dtype, name="head")(x)))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    width: int
    stride: int
    norm: Any
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        strides = (self.stride, self.stride)
        y = conv(self.width, (3, 3), strides, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = conv(self.width, (3, 3), name="conv2")(y)
        y = self.norm(name="norm2", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = conv(self.width, (1, 1), strides, name="shortcut")(x)
            x = self.norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


def _space_to_depth(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 d"]:
    """Each `patch` x `patch` block of pixels as one cell, padded with zeros where it is cut."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % patch), (0, -x.shape[2] % patch), (0, 0)))
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def _append_coordinates(x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    """`x` with two more channels: each cell's place along the width and the height."""
    b, h, w, _ = x.shape
    across = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, w)[None, None, :, None], (b, h, w, 1))
    down = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, h)[None, :, None, None], (b, h, w, 1))
    return jnp.concatenate([x, across.astype(x.dtype), down.astype(x.dtype)], axis=-1)
