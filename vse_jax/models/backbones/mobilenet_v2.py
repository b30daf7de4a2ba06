"""MobileNetV2 and its ImageNet classifier, with the public Hugging Face weights.

Source: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018;
fields and names after `transformers`' MobileNetV2ForImageClassification, whose logits the
tests compare with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, fields
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vse_jax.models.backbones import blocks, classifier, weights
from vse_jax.models.backbones.feature_map import FeatureMap, averaged
from vse_jax.models.backbones.weights import WeightsError

Dtype = Any

IMAGE_SIZE = 224
MEAN = 127.5
STD = 127.5

RULES: weights.Rules = [(r"^layer_(\d+)/", r"layer/\1/")]

_PREFIX = "mobilenet_v2."
_HEAD = r"^classifier\."
_BACKGROUND = "background"  # What the public weights call their class 0 of 1,001.
# Table 2 of the paper: channels after the stem and after each block, and each block's stride.
_CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
_STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
_DEPTHWISE_INIT = nn.initializers.variance_scaling(
    2.0, "fan_in", "truncated_normal", in_axis=(), out_axis=-1
)
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu6": nn.relu6,
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "hard_swish": nn.hard_swish,
    "hardswish": nn.hard_swish,
}


class MobileNetV2(nn.Module):
    """Grid features of pictures: 224 x 224 pixels become 7 x 7 cells of 1,280 channels.

    Attributes:
      depth_multiplier: factor on every layer's channels: 0.35, 0.5, 0.75, 1.0 or 1.4.
      depth_divisible_by: channels are rounded to a multiple of it.
      min_depth: the least channels of a layer.
      expand_ratio: channels inside a block over those before it.
      output_stride: pixels a cell along either side: 8, 16 (dilated blocks) or 32.
      first_layer_is_expansion: the first convolution is the first block's expansion.
      finegrained_output: keep 1,280 channels at the end when `depth_multiplier` is below 1.
      tf_padding: pad as TensorFlow does, more below and right where a stride halves the map.
      hidden_act: the activation's name.
      layer_norm_eps: epsilon of batch norm.
      momentum: of the running batch statistics.
      dtype: precision of the computation; parameters and statistics stay float32.
      axis_name: mapped axis over which batch statistics are shared, for the statistics
        of the global batch; None for those of this device's share.
      remat: compute each block again in the backward pass instead of keeping what is inside.
      grouped: leave the convolutions of each channel by itself to the compiler, for those that are
        better at it than XLA.
    """

    depth_multiplier: float = 1.0
    depth_divisible_by: int = 8
    min_depth: int = 8
    expand_ratio: float = 6.0
    output_stride: int = 32
    first_layer_is_expansion: bool = True
    finegrained_output: bool = True
    tf_padding: bool = True
    hidden_act: str = "relu6"
    layer_norm_eps: float = 0.001
    momentum: float = 0.99
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False
    grouped: bool = False

    @nn.compact
    def __call__(self, image: UInt8[Array, "b h w 3"], *, train: bool) -> FeatureMap:
        """The last feature map and its mean; `train` decides on batch or running statistics."""
        layer = partial(
            _ConvLayer,
            activation=_ACTIVATIONS[self.hidden_act],
            norm=partial(
                nn.BatchNorm,
                use_running_average=not train,
                momentum=self.momentum,
                epsilon=self.layer_norm_eps,
                dtype=self.dtype,
                axis_name=self.axis_name,
            ),
            tf_padding=self.tf_padding,
            dtype=self.dtype,
            grouped=self.grouped,
        )
        x = (image.astype(self.dtype) - MEAN) / STD
        widths = [self._depth(channels) for channels in _CHANNELS]
        stem = partial(_Stem, self._depth(32), widths[0], self.first_layer_is_expansion, layer)
        x = stem(name="conv_stem")(x)
        reached, dilation = 2, 1
        for i, (width, stride) in enumerate(zip(widths[1:], _STRIDES, strict=True)):
            inside = self._rounded(x.shape[-1] * self.expand_ratio)
            block = partial(_Block, inside, width, layer=layer, name=f"layer_{i}")
            if reached == self.output_stride:
                make = partial(block, stride=1, dilation=dilation)
                dilation *= stride  # A stride not taken dilates the blocks after this one.
            else:
                make = partial(block, stride=stride, dilation=1)
                reached *= stride
            x = blocks.run(self, make, x, remat=self.remat)
        return averaged(layer(self.channels, 1, name="conv_1x1")(x))

    @property
    def channels(self) -> int:
        """Channels of the last feature map."""
        keep = self.finegrained_output and self.depth_multiplier < 1.0
        return 1280 if keep else self._depth(1280)

    def _depth(self, channels: int) -> int:
        return self._rounded(channels * self.depth_multiplier)

    def _rounded(self, channels: float) -> int:
        return make_divisible(round(channels), self.depth_divisible_by, self.min_depth)


def make(
    config: Mapping[str, Any], *, dtype: Dtype = jnp.float32, axis_name: str | None = None
) -> MobileNetV2:
    """The module that the weights' `config.json` describes; an empty one means width 1.0.

    Raises:
      WeightsError: it describes something else.
    """
    for key, right in (("model_type", "mobilenet_v2"), ("num_channels", 3)):
        if config.get(key, right) != right:
            raise WeightsError(
                f"config.json of the weights: {key} is {config[key]!r}, expected {right!r}"
            )
    if config.get("hidden_act", "relu6") not in _ACTIVATIONS:
        raise WeightsError(
            f"config.json of the weights: hidden_act is {config['hidden_act']!r}, expected one of "
            f"{sorted(_ACTIVATIONS)}"
        )
    ours = {"momentum", "dtype", "axis_name", "grouped", "name"}
    known = {field.name for field in fields(MobileNetV2)} - ours
    kept: Mapping[str, Any] = {key: config[key] for key in known & config.keys()}
    return MobileNetV2(**kept, dtype=dtype, axis_name=axis_name)


def from_pretrained(
    source: str | Path, *, dtype: Dtype = jnp.float32, axis_name: str | None = None
) -> tuple[MobileNetV2, dict[str, Any]]:
    """The module that `config.json` describes and its variables, `params` and `batch_stats`.

    Args:
      source: a local folder or a name on the Hugging Face hub, see `weights.locate`.
      dtype: precision of the computation.
      axis_name: see `MobileNetV2`.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the configuration.
    """
    module = make(weights.load_config(source), dtype=dtype, axis_name=axis_name)
    return module, load(source, module)


def load(source: str | Path, module: MobileNetV2) -> dict[str, Any]:
    """The variables of `module` in the weights of `source`.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the module.
    """
    folder = weights.locate(source)
    tensors = weights.load_safetensors(folder)
    # The headless class saves the same tensors without the prefix.
    prefixed = any(name.startswith(_PREFIX) for name in tensors)
    rules = [*RULES, (r"^", _PREFIX)] if prefixed else RULES
    picture = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    template = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), picture)
    return weights.convert(tensors, template, rules, ignore=[_HEAD], source=folder)


def load_classifier(source: str | Path) -> classifier.Classifier | None:
    """The classifier in the weights of `source`, None where they carry none.

    Raises:
      WeightsError: weights are missing, damaged or do not fit their configuration.
    """
    config = weights.load_config(source)
    background = config.get("id2label", {}).get("0") == _BACKGROUND
    return classifier.load(source, ["classifier"], make(config).channels, background)


def make_divisible(channels: int, divisor: int = 8, least: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, no more than a tenth below it."""
    rounded = max(least, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class _Stem(nn.Module):
    """The first convolution, which halves the picture, and a block whose expansion it may be."""

    inside: int
    width: int
    first_layer_is_expansion: bool
    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        x = self.layer(self.inside, 3, 2, name="first_conv")(x)
        if not self.first_layer_is_expansion:
            x = self.layer(self.inside, 1, name="expand_1x1")(x)
        x = self.layer(self.inside, 3, depthwise=True, name="conv_3x3")(x)
        return self.layer(self.width, 1, activation=None, name="reduce_1x1")(x)


class _Block(nn.Module):
    """The inverted residual with a linear bottleneck; section 3.3 of the paper."""

    inside: int
    width: int
    stride: int
    dilation: int
    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        y = self.layer(self.inside, 1, name="expand_1x1")(x)
        depthwise = partial(self.layer, depthwise=True, name="conv_3x3")
        y = depthwise(self.inside, 3, self.stride, self.dilation)(y)
        y = self.layer(self.width, 1, activation=None, name="reduce_1x1")(y)
        return x + y if self.stride == 1 and x.shape == y.shape else y


class _ConvLayer(nn.Module):
    """Convolution without bias, batch norm, activation."""

    width: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    _: KW_ONLY
    activation: Callable[[Array], Array] | None
    norm: Callable[..., nn.Module]
    tf_padding: bool
    dtype: Dtype
    grouped: bool
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        pads = [_padding(self, size) for size in x.shape[1:3]]
        if self.depthwise:
            convolution: nn.Module = _Depthwise(
                self.kernel, self.stride, self.dilation, pads, self.dtype, self.grouped,
                name="convolution",
            )  # fmt: skip
        else:
            convolution = nn.Conv(
                self.width,
                (self.kernel, self.kernel),
                self.stride,
                pads,
                use_bias=False,
                dtype=self.dtype,
                name="convolution",
            )
        x = self.norm(name="normalization")(convolution(x))
        return x if self.activation is None else self.activation(x)


class _Depthwise(nn.Module):
    """Convolution of each channel by itself, as a sum over the kernel's shifted products.

    XLA fuses the sum into one loop; on a CPU its own grouped convolution took over 20 times
    as long forward and 3 to 30 times with the gradient.
    """

    kernel_size: int
    stride: int
    dilation: int
    padding: Sequence[tuple[int, int]]
    dtype: Dtype
    grouped: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        size = self.kernel_size
        kernel = self.param("kernel", _DEPTHWISE_INIT, (size, size, 1, x.shape[-1]))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if self.grouped:
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                self.padding,
                rhs_dilation=(self.dilation, self.dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=x.shape[-1],
            )
        x = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        reach = self.dilation * (size - 1)
        down, across = (
            [slice(d, length - reach + d, self.stride) for d in range(0, reach + 1, self.dilation)]
            for length in x.shape[1:3]
        )
        return sum(
            _cut(_cut(x, down[i], 1), across[j], 2) * kernel[None, None, i, j]
            for i in range(size)
            for j in range(size)
        )


def _cut(x: Float[Array, "b h w c"], cells: slice, axis: int) -> Float[Array, "b h2 w2 c"]:
    """`x[cells]` along an axis; of a batch of any size, too, where JAX makes a gather of that."""
    return jax.lax.slice_in_dim(x, cells.start, cells.stop, cells.step, axis)


def _padding(layer: _ConvLayer, size: int) -> tuple[int, int]:
    """Zeros before and after a side of `size` cells.

    TensorFlow's SAME puts the odd one after; PyTorch's padding is the same on both sides.
    """
    if not layer.tf_padding:
        return (layer.kernel // 2 * layer.dilation,) * 2
    total = max(layer.kernel - (size % layer.stride or layer.stride), 0)
    return total // 2 * layer.dilation, (total - total // 2) * layer.dilation
