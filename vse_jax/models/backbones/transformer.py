"""What all towers of transformer blocks share: blocks, embeddings, settings and loading.

A tower's settings are named after those of `config.json`, with the defaults of `transformers`.
Parameters are float32, and so are layer norms and softmax, whatever the precision.
Sources: Vaswani et al., Attention Is All You Need, NeurIPS 2017; Dosovitskiy et al., An Image
is Worth 16x16 Words, ICLR 2021.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from vse_jax.models.backbones import blocks, weights
from vse_jax.models.backbones.weights import WeightsError
from vse_jax.models.dropout import Dropout
from vse_jax.models.rows_product import rows_product

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
}
_INIT = nn.initializers.normal(0.02)
# PyTorch's bicubic kernel without antialiasing; with it, as in Pillow and JAX, it is -0.5.
_CUBIC = -0.75

AnyTower = TypeVar("AnyTower", bound="Tower")


def _product(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    return rows_product(x, kernel).astype(x.dtype)


_dense = partial(nn.Dense, kernel_init=_INIT, dot_general=_product)


class LayerNorm(nn.Module):
    """Each vector less its mean, over its deviation; in float32, then rounded to `dtype`."""

    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """The same vectors, normalized, scaled and shifted channel by channel."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * scale[None, None] + bias[None, None]).astype(self.dtype)


class Attention(nn.Module):
    """softmax(q k / sqrt d) v in several heads; section 3.2 of Vaswani et al.

    Attributes:
      heads: number of heads, which share the channels equally.
      bias: whether queries, keys and values have one.
      dropout: rate on the attention's weights while training.
      dtype: of the operands of matrix products.
    """

    heads: int
    bias: bool = True
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b q c"],
        seen: Float[Array, "b k c"],
        mask: Bool[Array, "#b 1 #q k"] | None,
        *,
        train: bool,
    ) -> Float[Array, "b q c"]:
        """What each of `x` takes from those of `seen` that `mask` lets it see.

        One that may see nothing takes the mean of all, which is finite.
        """
        channels = x.shape[-1]

        def project(name: str, of: Array) -> Array:
            dense = _dense(channels, use_bias=self.bias, dtype=self.dtype, name=name)
            return dense(of).reshape(*of.shape[:2], self.heads, channels // self.heads)

        query, key, value = project("query", x), project("key", seen), project("value", seen)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = scores * (channels // self.heads) ** -0.5
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        shares = nn.softmax(scores).astype(self.dtype)
        shares = Dropout(self.dropout)(shares, train=train)
        taken = jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(x.shape)
        return _dense(channels, dtype=self.dtype, name="out")(taken)


class Perceptron(nn.Module):
    """Two layers with an activation between them, as wide at the end as at the start."""

    hidden: int
    activation: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """Each vector by itself."""
        dense = partial(_dense, dtype=self.dtype)
        inside = ACTIVATIONS[self.activation](dense(self.hidden, name="fc1")(x))
        return dense(x.shape[-1], name="fc2")(inside)


class Parts(NamedTuple):
    """What makes the parts of a block, given a name."""

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]


class Block(nn.Module):
    """Attention, then a perceptron, each with its residual and its layer norm.

    Attributes:
      parts: what they are made by.
      pre_norm: whether the norms come before the parts (Dosovitskiy et al., eq. 2 and 3) or after
        the sums (Vaswani et al., section 3.1).
      dropout: rate on what each part adds, while training.
    """

    parts: Parts
    pre_norm: bool
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l c"], mask: Bool[Array, "#b 1 #l l"] | None, *, train: bool
    ) -> Float[Array, "b l c"]:
        """The vectors after the block; `mask` says which may see which."""
        drop = partial(Dropout(self.dropout), train=train)
        attention, mlp = self.parts.attention(name="attention"), self.parts.mlp(name="mlp")
        norm1, norm2 = self.parts.norm(name="norm1"), self.parts.norm(name="norm2")
        if self.pre_norm:
            y = norm1(x)
            x = x + drop(attention(y, y, mask, train=train))
            return x + drop(mlp(norm2(x)))
        x = norm1(x + drop(attention(x, x, mask, train=train)))
        return norm2(x + drop(mlp(x)))


class Tower(nn.Module):
    """The settings of a stack of blocks.

    Attributes:
      hidden_size: channels of each vector.
      num_hidden_layers: blocks.
      num_attention_heads: heads in each.
      intermediate_size: channels inside each perceptron.
      hidden_act: the activation's name, one of ACTIVATIONS.
      layer_norm_eps: epsilon of the layer norms.
      hidden_dropout_prob: dropout's rate on embeddings and on what the parts of a block add.
      attention_probs_dropout_prob: dropout's rate on the attention's weights.
      qkv_bias: whether queries, keys and values have a bias.
      dtype: of the operands of matrix products.
      remat: compute each block again in the backward pass instead of keeping what is inside.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    qkv_bias: bool = True
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.nowrap
    def parts(self) -> Parts:
        """What makes the parts of a block, given a name."""
        return Parts(
            attention=partial(
                Attention,
                heads=self.num_attention_heads,
                bias=self.qkv_bias,
                dropout=self.attention_probs_dropout_prob,
                dtype=self.dtype,
            ),
            mlp=partial(
                Perceptron,
                hidden=self.intermediate_size,
                activation=self.hidden_act,
                dtype=self.dtype,
            ),
            norm=partial(LayerNorm, epsilon=self.layer_norm_eps, dtype=self.dtype),
        )

    def blocks(
        self,
        x: Float[Array, "b l c"],
        mask: Bool[Array, "#b 1 #l l"] | None,
        *,
        train: bool,
        pre_norm: bool = True,
    ) -> Float[Array, "b l c"]:
        """What `layer_0`, `layer_1`, ... make of the embeddings, one after the other."""
        x = Dropout(self.hidden_dropout_prob)(x, train=train)
        for number in range(self.num_hidden_layers):
            made = partial(
                Block,
                self.parts(),
                pre_norm=pre_norm,
                dropout=self.hidden_dropout_prob,
                name=f"layer_{number}",
            )

            def make(made: Callable[[], Block] = made) -> Callable[[Array], Array]:
                return partial(made(), mask=mask, train=train)

            x = blocks.run(self, make, x, remat=self.remat)
        return x


class ImageTower(Tower):
    """The settings of a tower that reads pictures, patch by patch.

    Attributes:
      image_size: pixels a side of the pictures it was trained on.
      patch_size: pixels a side of a patch.
      mean, std: of each colour, from 0 to 1, by which pixels are normalized.
      antialias: whether the positions are smoothed before they are drawn closer, as in timm.
    """

    image_size: int = 224
    patch_size: int = 16
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    antialias: bool = False

    def embed(
        self, image: UInt8[Array, "b h w 3"], *, class_token: bool, bias: bool
    ) -> tuple[Float[Array, "b l c"], tuple[int, int]]:
        """(embeddings of the class token, if any, and of the patches; rows and columns of these).

        A picture of another size than trained on gets positions interpolated between the trained
        ones; pixels below and right of the last whole patch are left out. Parameters: `patches`,
        `positions` and, with a class token, `class_token`.
        """
        mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (self.mean, self.std))
        x = (image.astype(jnp.float32) / 255.0 - mean) / std
        side = (self.patch_size, self.patch_size)
        x = nn.Conv(
            self.hidden_size,
            side,
            side,
            "VALID",
            use_bias=bias,
            kernel_init=_INIT,
            dtype=self.dtype,
            name="patches",
        )(x)
        cells = (x.shape[1], x.shape[2])
        trained = self.image_size // self.patch_size
        first = int(class_token)
        shape = (first + trained**2, self.hidden_size)
        positions = self.param("positions", _INIT, shape)
        placed = resize(positions[first:].reshape(trained, trained, -1), cells, self.antialias)
        x = (x + placed[None].astype(x.dtype)).reshape(x.shape[0], -1, self.hidden_size)
        if class_token:
            token = self.param("class_token", _INIT, (self.hidden_size,)) + positions[0]
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.hidden_size))
            x = jnp.concatenate([token, x], axis=1)
        return x, cells


class TextTower(Tower):
    """The settings of a tower that reads sentences.

    Attributes:
      vocab_size: number of token numbers.
      max_position_embeddings: tokens of the longest sentence that it can read.
    """

    vocab_size: int = 30522
    max_position_embeddings: int = 512

    def embed(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l c"]:
        """The sum of `words` and `positions`, float32.

        A token number that is not in the vocabulary becomes NaN.

        Raises:
          ValueError: the sentences are longer than the tower can read.
        """
        length, most = tokens.shape[1], self.max_position_embeddings
        if length > most:
            raise ValueError(f"sentences of {length} tokens; the text tower reads at most {most}")
        words = self.param("words", _INIT, (self.vocab_size, self.hidden_size))
        positions = self.param("positions", _INIT, (most, self.hidden_size))
        return jnp.take(words, tokens, axis=0, mode="fill") + positions[None, :length]


def resize(
    grid: Float[Array, "h w c"], size: tuple[int, int], antialias: bool
) -> Float[Array, "h2 w2 c"]:
    """A grid of vectors interpolated bicubically to another size, itself where it has that size.

    As PyTorch's `interpolate(mode="bicubic", align_corners=False, antialias=antialias)`.
    """
    if grid.shape[:2] == size:
        return grid
    if antialias:
        return jax.image.resize(grid, (*size, grid.shape[2]), "cubic")
    down, across = (
        jnp.asarray(_bicubic(old, new)) for old, new in zip(grid.shape[:2], size, strict=True)
    )
    return jnp.einsum("ij,kl,jlc->ikc", down, across, grid)


def _bicubic(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: what each of `new` cells takes from the `old` ones around its centre.

    Beyond the ends stand repetitions of the last cells. Source: Keys, Cubic convolution
    interpolation, IEEE Transactions on Acoustics, Speech, and Signal Processing, 1981, eq. 4.
    """
    shares = np.zeros((new, old))
    for cell in range(new):
        centre = (cell + 0.5) * old / new - 0.5
        for source in range(math.floor(centre) - 1, math.floor(centre) + 3):
            shares[cell, min(max(source, 0), old - 1)] += _kernel(abs(centre - source))
    return shares.astype(np.float32)


def _kernel(distance: float) -> float:
    a = _CUBIC
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    if distance < 2:
        return a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return 0.0


def make(
    tower: type[AnyTower],
    configuration: Mapping[str, Any],
    kinds: Sequence[str],
    dtype: DTypeLike,
    **ours: Any,
) -> AnyTower:
    """The module that a configuration describes; what it does not say has the default.

    Args:
      tower: the module's class.
      configuration: `config.json` of pretrained weights, or the half of it about this tower.
      kinds: the values of its `model_type` that describe such a tower.
      dtype: of the operands of matrix products.
      **ours: further settings.

    Raises:
      WeightsError: it describes something else.
    """
    kind = configuration.get("model_type", kinds[0])
    if kind not in kinds:
        _refuse("model_type", kind, " or ".join(map(repr, kinds)))
    if configuration.get("num_channels", 3) != 3:
        _refuse("num_channels", configuration["num_channels"], "3")
    met: dict[str, Any] = {}
    for field in dataclasses.fields(tower):
        if field.name in configuration and field.name not in ("dtype", "name", "parent"):
            met[field.name] = value = configuration[field.name]
            kind = type(field.default)
            if not isinstance(value, (int, float) if kind is float else kind):
                _refuse(field.name, value, f"a value such as {field.default!r}")
    module = tower(**(met | ours), dtype=dtype)
    if module.hidden_act not in ACTIVATIONS:
        _refuse("hidden_act", module.hidden_act, f"one of {sorted(ACTIVATIONS)}")
    if module.hidden_size % module.num_attention_heads:
        _refuse(
            "hidden_size",
            module.hidden_size,
            f"a multiple of num_attention_heads, {module.num_attention_heads}",
        )
    return module


def half(configuration: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the configuration of two towers, CLIP's or SigLIP's, says of one, "text" or "vision".

    It may be a configuration of that tower alone. Dropout gets the name that it has elsewhere.

    Raises:
      WeightsError: the half is no JSON object.
    """
    key = f"{name}_config"
    # CLIP's early files repeat in a second object what differs from the defaults.
    parts = [configuration.get(k) or {} for k in (key, f"{key}_dict")]
    if key not in configuration:
        parts = [configuration]
    if not all(isinstance(part, Mapping) for part in parts):
        _refuse(key, configuration[key], "a JSON object")
    found = {field: value for part in parts for field, value in part.items()}
    found["attention_probs_dropout_prob"] = found.pop("attention_dropout", 0.0)
    return found


def _refuse(field: str, met: Any, expected: str) -> None:
    raise WeightsError(f"config.json of the weights: {field} is {met!r}, expected {expected}")


def load(
    tensors: Mapping[str, np.ndarray],
    module: Tower,
    rules: weights.Rules,
    *,
    ignore: Sequence[str],
    source: str | Path,
) -> dict[str, Any]:
    """The variables of `module`; arguments and errors as in `weights.convert`.

    Buffers of position numbers may be left over.
    """
    if isinstance(module, ImageTower):
        side = module.patch_size
        example: tuple[Any, ...] = (jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8),)
    else:
        example = tuple(jax.ShapeDtypeStruct((1, 1), kind) for kind in (jnp.int32, jnp.bool_))
    template = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), *example)
    ignore = [r"position_ids$", *ignore]
    return weights.convert(tensors, template, rules, ignore=ignore, source=source)


def unfuse(tensors: Mapping[str, np.ndarray], fused: str) -> dict[str, np.ndarray]:
    """The same tensors, with projections to queries, keys and values at once split in three.

    Args:
      tensors: by name.
      fused: a regular expression of the end of their names, whose only group is "weight" or
        "bias"; in its place the parts have `query.`, `key.` or `value.` and that group.
    """
    parts: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        match = re.search(fused, name)
        if match is None:
            parts[name] = tensor
            continue
        thirds = np.array_split(tensor, 3)
        for part, third in zip(("query", "key", "value"), thirds, strict=True):
            parts[f"{name[: match.start()]}{part}.{match[1]}"] = third
    return parts


def lay_out(x: Float[Array, "b l c"], cells: tuple[int, int]) -> Float[Array, "b h w c"]:
    """Patches, row by row, as the grid that they were cut from."""
    return x.reshape(x.shape[0], *cells, x.shape[-1])
