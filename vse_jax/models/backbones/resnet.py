"""ResNet-50, -101 and -152, with the public weights of `timm`, torchvision or Hugging Face.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1; the stride
of a block is on its 3x3 convolution (Goyal et al., 2017, section 5.1), as in the public weights.
Modules are named after `timm`'s ResNet, fields after `transformers`' ResNetConfig; the tests
compare with both.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vse_jax.models.backbones import blocks, classifier, pixels, timm_config, weights
from vse_jax.models.backbones.feature_map import FeatureMap, averaged
from vse_jax.models.backbones.weights import WeightsError

Dtype = Any

# Blocks of each stage, by the name that timm gives the network.
DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}

TIMM_RULES: weights.Rules = [
    (r"^layer(\d+)_(\d+)/", r"layer\1/\2/"),
    ("/downsample_conv/", "/downsample/0/"),
    ("/downsample_bn/", "/downsample/1/"),
]

_PREFIX = "resnet."
_HEADS = [r"^fc\.", r"^classifier\."]
_REDUCTION = 4  # Channels of a block over those inside it.
_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """Grid features of pictures: 224 x 224 pixels become 7 x 7 cells of 2,048 channels.

    Attributes:
      embedding_size: channels of the first convolution.
      hidden_sizes: channels of each stage.
      depths: blocks of each stage, at least one.
      downsample_in_first_stage: halve the map in the first stage as in the others.
      downsample_in_bottleneck: halve it in a block's first convolution, not in its second.
      mean: of each channel, pixels in [0, 1].
      std: deviation of each channel.
      momentum: of the running batch statistics.
      dtype: precision of the computation; parameters and statistics stay float32.
      axis_name: mapped axis over which batch statistics are shared, for the statistics
        of the global batch; None for those of this device's share.
      remat: compute each block again in the backward pass instead of keeping what is inside.
    """

    embedding_size: int = 64
    hidden_sizes: Sequence[int] = (256, 512, 1024, 2048)
    depths: Sequence[int] = DEPTHS["resnet50"]
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    mean: pixels.Channels = pixels.IMAGENET_MEAN
    std: pixels.Channels = pixels.IMAGENET_STD
    momentum: float = 0.9
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, image: UInt8[Array, "b h w 3"], *, train: bool) -> FeatureMap:
        """The last stage's map and its mean; `train` decides on batch or running statistics."""
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        conv = partial(_conv, dtype=self.dtype)
        x = pixels.normalize(image, self.mean, self.std, self.dtype)
        x = nn.relu(norm(name="bn1")(conv(self.embedding_size, 7, 2, name="conv1")(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        for stage, (width, depth) in enumerate(zip(self.hidden_sizes, self.depths, strict=True)):
            halve = stage > 0 or self.downsample_in_first_stage
            for i in range(depth):
                stride = 2 if halve and i == 0 else 1
                strides = (stride, 1) if self.downsample_in_bottleneck else (1, stride)
                make = partial(_Block, width, strides, conv, norm, name=f"layer{stage + 1}_{i}")
                x = blocks.run(self, make, x, remat=self.remat)
        return averaged(x)


def make(
    config: Mapping[str, Any], *, dtype: Dtype = jnp.float32, axis_name: str | None = None
) -> ResNet:
    """The module that the weights' `config.json` describes; an empty one means ResNet-50.

    `timm`'s names the network in `architecture`; it goes for torchvision's weights too. That of
    `transformers` gives `depths` and the other fields of `ResNet`; the pictures' mean and
    deviation stand in `preprocessor_config.json`, and are ImageNet's without.

    Raises:
      WeightsError: it describes something else.
    """
    if not config:
        given: dict[str, Any] = {}
    elif "architecture" in config:
        depths = DEPTHS[timm_config.architecture(config, DEPTHS)]
        mean, std = timm_config.statistics(config)
        given = {"depths": depths, "mean": mean, "std": std}
    else:
        given = _from_hugging_face(config)
        usual = pixels.IMAGENET_MEAN, pixels.IMAGENET_STD
        given["mean"], given["std"] = pixels.of_hugging_face(config, *usual)
    return ResNet(**given, dtype=dtype, axis_name=axis_name)


def load(source: str | Path, module: ResNet) -> dict[str, Any]:
    """The variables of `module` in the weights of `source`, in whichever of the two namings.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the module.
    """
    folder = weights.locate(source)
    tensors = weights.load_safetensors(folder)
    rules = TIMM_RULES
    if any("embedder.embedder." in name for name in tensors):
        rules = hugging_face_rules(len(module.depths))
        # The headless class saves the same tensors without the prefix.
        if any(name.startswith(_PREFIX) for name in tensors):
            rules = [*rules, (r"^", _PREFIX)]
    picture = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    template = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), picture)
    return weights.convert(tensors, template, rules, ignore=_HEADS, source=folder)


def load_classifier(source: str | Path) -> classifier.Classifier | None:
    """The classifier in the weights of `source`, in whichever of the two namings; None without one.

    Raises:
      WeightsError: weights are missing, damaged or do not fit their configuration.
    """
    channels = make(weights.load_config(source)).hidden_sizes[-1]
    return classifier.load(source, ["fc", "classifier.1"], channels, background=False)


def hugging_face_rules(stages: int) -> weights.Rules:
    """From our names to those of `transformers`' ResNetModel, which count from 0."""
    parts = (("conv", "convolution"), ("bn", "normalization"))
    return [
        *((rf"^layer{i + 1}_(\d+)/", rf"encoder/stages/{i}/layers/\1/") for i in range(stages)),
        *((f"^{ours}1/", f"embedder/embedder/{theirs}/") for ours, theirs in parts),
        *((f"/downsample_{ours}/", f"/shortcut/{theirs}/") for ours, theirs in parts),
        *(
            (f"/{ours}{i + 1}/", f"/layer/{i}/{theirs}/")
            for ours, theirs in parts
            for i in range(3)
        ),
    ]


def _from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("model_type") != "resnet":
        raise WeightsError(
            f"config.json of the weights: model_type is {config.get('model_type')!r}, expected "
            f"'resnet', or an architecture of {sorted(DEPTHS)}"
        )
    for key, right in (("layer_type", "bottleneck"), ("hidden_act", "relu"), ("num_channels", 3)):
        if config.get(key, right) != right:
            raise WeightsError(
                f"config.json of the weights: {key} is {config[key]!r}, expected {right!r}"
            )
    widths, depths = (tuple(config.get(k, getattr(ResNet, k))) for k in ("hidden_sizes", "depths"))
    if len(widths) != len(depths):
        raise WeightsError(
            f"config.json of the weights: hidden_sizes has {len(widths)} stages, depths has "
            f"{len(depths)}"
        )
    others = ("embedding_size", "downsample_in_first_stage", "downsample_in_bottleneck")
    given = {key: config[key] for key in others if key in config}
    return {"hidden_sizes": widths, "depths": depths} | given


def _conv(width: int, kernel: int, stride: int = 1, *, dtype: Dtype, name: str) -> nn.Conv:
    """Without bias, padded by the same on both sides: Flax's SAME pads a stride unevenly."""
    return nn.Conv(
        width,
        (kernel, kernel),
        stride,
        kernel // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=_INIT,
        name=name,
    )


class _Block(nn.Module):
    """The bottleneck: figure 5, right, of the paper."""

    width: int
    strides: tuple[int, int]
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        inside, (first, second) = self.width // _REDUCTION, self.strides
        y = nn.relu(self.norm(name="bn1")(self.conv(inside, 1, first, name="conv1")(x)))
        y = nn.relu(self.norm(name="bn2")(self.conv(inside, 3, second, name="conv2")(y)))
        y = self.conv(self.width, 1, name="conv3")(y)
        # From scratch, a block begins as its shortcut (Goyal et al., 2017, section 5.1).
        y = self.norm(name="bn3", scale_init=nn.initializers.zeros)(y)
        if first * second > 1 or x.shape[-1] != self.width:
            x = self.conv(self.width, 1, first * second, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(x + y)
