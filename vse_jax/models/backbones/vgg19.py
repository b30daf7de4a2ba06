"""VGG-19, plain or with batch norm, with the public weights of `timm` or torchvision.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
Recognition, ICLR 2015, table 1, column E.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vse_jax.models.backbones import blocks, pixels, timm_config, weights
from vse_jax.models.backbones.feature_map import FeatureMap
from vse_jax.models.dropout import Dropout

Dtype = Any

# By the name that timm gives the network, whether it has batch norm.
ARCHITECTURES = {"vgg19": False, "vgg19_bn": True}

_DEPTHS = (2, 2, 4, 4, 4)
_SIDE = 7  # Cells along either side of the map that fc6 reads.
_LEAST = 2 ** len(_DEPTHS)
_HEADS = [r"^head\.fc\.", r"^classifier\.6\."]
_INIT = nn.initializers.he_normal()


class VGG19(nn.Module):
    """Features of pictures: 7 x 7 cells of 512 channels of 224 x 224 pixels; 4,096 of the whole.

    The grid is the last block's map behind its max pooling: what fc6 reads, what both public
    classes give as their features, and as many cells as the other networks here have. The whole
    is fc7 behind its rectifier, the 4,096 CNN features of Karpathy and Fei-Fei, CVPR 2015. Of
    another size than 224 the map is averaged to 7 x 7 cells for fc6, as torchvision does.

    Attributes:
      widths: channels of the five blocks.
      hidden: channels of fc6 and fc7.
      batch_norm: normalise behind each convolution.
      dropout: share of fc6's channels dropped in training.
      mean: of each channel, pixels in [0, 1].
      std: deviation of each channel.
      momentum: of the running batch statistics.
      dtype: precision of the computation; parameters and statistics stay float32.
      axis_name: mapped axis over which batch statistics are shared, for the statistics
        of the global batch; None for those of this device's share.
      remat: compute each block again in the backward pass instead of keeping what is inside.
    """

    widths: Sequence[int] = (64, 128, 256, 512, 512)
    hidden: tuple[int, int] = (4096, 4096)
    batch_norm: bool = False
    dropout: float = 0.5
    mean: pixels.Channels = pixels.IMAGENET_MEAN
    std: pixels.Channels = pixels.IMAGENET_STD
    momentum: float = 0.9
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, image: UInt8[Array, "b h w 3"], *, train: bool) -> FeatureMap:
        """Grid and fc7; `train` decides on dropout, and on batch or running statistics.

        Raises:
          ValueError: a side has less than 32 pixels, so that no cell is left.
        """
        if min(image.shape[1:3]) < _LEAST:
            size = "{} x {}".format(*image.shape[1:3])
            raise ValueError(f"VGG-19 met pictures of {size} pixels, expected at least {_LEAST}")
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        conv = partial(nn.Conv, padding=1, dtype=self.dtype, kernel_init=_INIT)
        x = pixels.normalize(image, self.mean, self.std, self.dtype)

        def stage(block: int, width: int, depth: int) -> Callable[[Array], Array]:
            def apply(x: Array) -> Array:
                for i in range(1, depth + 1):
                    x = conv(width, (3, 3), name=f"conv{block}_{i}")(x)
                    x = nn.relu(norm(name=f"bn{block}_{i}")(x) if self.batch_norm else x)
                return nn.max_pool(x, (2, 2), (2, 2))

            return apply

        for block, (width, depth) in enumerate(zip(self.widths, _DEPTHS, strict=True), 1):
            x = blocks.run(self, partial(stage, block, width, depth), x, remat=self.remat)
        return FeatureMap(x, self._whole(x, train))

    def _whole(self, grid: Float[Array, "b h w c"], train: bool) -> Float[Array, "b p"]:
        """fc6 and fc7, each behind its rectifier."""
        six, seven = self.hidden
        dense = partial(nn.DenseGeneral, dtype=self.dtype, kernel_init=_INIT)
        y = adaptive_average(grid, _SIDE)
        y = nn.relu(dense(six, axis=(-3, -2, -1), name="fc6")(y))
        y = Dropout(self.dropout)(y, train=train)
        return nn.relu(dense(seven, name="fc7")(y)).astype(jnp.float32)


def make(
    config: Mapping[str, Any], *, dtype: Dtype = jnp.float32, axis_name: str | None = None
) -> VGG19:
    """The module that the weights' `config.json` describes; an empty one means plain VGG-19.

    It is `timm`'s; beside torchvision's weights, `{"architecture": "vgg19"}` is enough.

    Raises:
      WeightsError: it describes something else.
    """
    batch_norm = False
    if config:
        batch_norm = ARCHITECTURES[timm_config.architecture(config, ARCHITECTURES)]
    mean, std = timm_config.statistics(config)
    return VGG19(batch_norm=batch_norm, mean=mean, std=std, dtype=dtype, axis_name=axis_name)


def load(source: str | Path, module: VGG19) -> dict[str, Any]:
    """The variables of `module` in the weights of `source`, in whichever of the two namings.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the module.
    """
    folder = weights.locate(source)
    tensors = weights.load_safetensors(folder)
    timm = any(name.startswith("pre_logits.") for name in tensors)
    picture = jax.ShapeDtypeStruct((1, _LEAST, _LEAST, 3), jnp.uint8)
    template = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), picture)
    return weights.convert(
        {name: _as_here(name, tensor) for name, tensor in tensors.items()},
        template,
        timm_rules(module.batch_norm) if timm else torchvision_rules(module.batch_norm),
        ignore=_HEADS,
        source=folder,
    )


def timm_rules(batch_norm: bool) -> weights.Rules:
    """From our names to those of `timm`'s VGG."""
    return [*_feature_rules(batch_norm), ("^fc6/", "pre_logits/fc1/"), ("^fc7/", "pre_logits/fc2/")]


def torchvision_rules(batch_norm: bool) -> weights.Rules:
    """From our names to those of torchvision's VGG."""
    return [*_feature_rules(batch_norm), ("^fc6/", "classifier/0/"), ("^fc7/", "classifier/3/")]


def adaptive_average(grid: Float[Array, "b h w c"], side: int) -> Float[Array, "b s s c"]:
    """Means of `side` x `side` boxes, as PyTorch's adaptive average pooling takes them.

    Box i of n cells is those from floor(i n / side) to before ceil((i + 1) n / side): boxes
    overlap where `side` does not divide n, and repeat cells where n is smaller.
    """
    if grid.shape[1:3] == (side, side):
        return grid
    down, across = (_boxes(cells, side) for cells in grid.shape[1:3])
    mean = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return mean("ih,bhwc,jw->bijc", down, grid.astype(jnp.float32), across).astype(grid.dtype)


def _boxes(cells: int, side: int) -> Float[np.ndarray, "s n"]:
    """Each box's weights on the cells."""
    box, cell = np.arange(side)[:, None], np.arange(cells)[None]
    inside = (cell >= box * cells // side) & (cell < -(-(box + 1) * cells // side))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def _feature_rules(batch_norm: bool) -> weights.Rules:
    """PyTorch counts every layer: convolutions, batch norms, rectifiers and poolings."""
    rules, position = [], 0
    for block, depth in enumerate(_DEPTHS, 1):
        for i in range(1, depth + 1):
            rules.append((f"^conv{block}_{i}/", f"features/{position}/"))
            rules.append((f"^bn{block}_{i}/", f"features/{position + 1}/"))
            position += 3 if batch_norm else 2
        position += 1
    return rules


def _as_here(name: str, tensor: np.ndarray) -> np.ndarray:
    """The two fully connected layers as our shapes have them: fc6 over a map, fc7 plain.

    torchvision flattens fc6's map, channels first; `timm` makes a convolution of either.
    """
    if name == "classifier.0.weight" and tensor.ndim == 2 and tensor.shape[1] % _SIDE**2 == 0:
        return tensor.reshape(len(tensor), -1, _SIDE, _SIDE)
    if name == "pre_logits.fc2.weight" and math.prod(tensor.shape[2:]) == 1:
        return tensor.reshape(tensor.shape[:2])
    return tensor
