"""Both towers of CLIP, with the public weights of Hugging Face.

Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
ICML 2021; fields after `transformers`' CLIPModel, with which the tests compare.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int, UInt8

from vse_jax.models.backbones import pixels, transformer, weights
from vse_jax.models.backbones.feature_map import FeatureMap, WordFeatures

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# Of the blocks, for both towers; SigLIP's are called the same.
BLOCK_RULES: weights.Rules = [
    (r"^layer_(\d+)/", r"encoder/layers/\1/"),
    (r"^(encoder/.*)/attention/([qkv])\w+/", r"\1/self_attn/\2_proj/"),
    (r"^(encoder/.*)/attention/out/", r"\1/self_attn/out_proj/"),
    (r"/norm([12])/", r"/layer_norm\1/"),
]
IMAGE_RULES: weights.Rules = [
    *BLOCK_RULES,
    (r"^class_token$", "embeddings/class_embedding"),
    (r"^positions$", "embeddings/position_embedding/weight"),
    (r"^patches/", "embeddings/patch_embedding/"),
    (r"^first_norm/", "pre_layrnorm/"),  # So it is spelt.
    (r"^norm/", "post_layernorm/"),
    (r"^projection/", "visual_projection/"),
]
TEXT_RULES: weights.Rules = [
    *BLOCK_RULES,
    (r"^words$", "embeddings/token_embedding/weight"),
    (r"^positions$", "embeddings/position_embedding/weight"),
    (r"^norm/", "final_layer_norm/"),
    (r"^projection/", "text_projection/"),
]


class CLIPImageTower(transformer.ImageTower):
    """A grid of patches and the picture's embedding; defaults are clip-vit-base-patch32's.

    Attributes:
      projection_dim: of the space that both towers share.
    """

    patch_size: int = 32
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512

    @nn.compact
    def __call__(self, image: UInt8[Array, "b h w 3"], *, train: bool) -> FeatureMap:
        """The last block's patches after the final norm; `pooled` is the projected class token.

        It is not scaled to length 1. Dropout needs the rng "dropout".
        """
        norm = self.parts().norm
        x, cells = self.embed(image, class_token=True, bias=False)
        x = self.blocks(norm(name="first_norm")(x), None, train=train)
        x = norm(name="norm")(x)
        project = nn.Dense(self.projection_dim, False, self.dtype, name="projection")
        return FeatureMap(transformer.lay_out(x[:, 1:], cells), project(x[:, 0]))


class CLIPTextTower(transformer.TextTower):
    """The words of sentences and each one's embedding; defaults are clip-vit-base-patch32's.

    Attributes:
      projection_dim: of the space that both towers share.
    """

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"], *, train: bool
    ) -> WordFeatures:
        """The last block's words after the final norm; `pooled` is the projected last of them.

        `mask` is True for leading tokens only, the last of which closes the sentence. A token
        sees those before it, so that padding behind a sentence does not reach it. Dropout needs
        the rng "dropout".
        """
        length = tokens.shape[1]
        before = jnp.tril(jnp.ones((1, 1, length, length), bool))
        x = self.blocks(self.embed(tokens).astype(self.dtype), before, train=train)
        x = self.parts().norm(name="norm")(x)
        last = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        closing = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        project = nn.Dense(self.projection_dim, False, self.dtype, name="projection")
        return WordFeatures(x, project(closing))


def make_image(
    configuration: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32
) -> CLIPImageTower:
    """The image tower that `config.json` describes, of both towers or of this one alone.

    Pixels are normalized as `preprocessor_config.json` says, or else as OpenAI's weights take them.

    Raises:
      WeightsError: it describes something else.
    """
    settings = _settings(configuration, "vision")
    mean, std = pixels.of_hugging_face(configuration, MEAN, STD)
    kinds = ["clip", "clip_vision_model"]
    return transformer.make(CLIPImageTower, settings, kinds, dtype, mean=mean, std=std)


def make_text(configuration: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32) -> CLIPTextTower:
    """The text tower that `config.json` describes, of both towers or of this one alone.

    Raises:
      WeightsError: it describes something else.
    """
    settings = _settings(configuration, "text")
    return transformer.make(CLIPTextTower, settings, ["clip", "clip_text_model"], dtype)


def load_image(source: str | Path, module: CLIPImageTower) -> dict[str, Any]:
    """The variables of the image tower; the text tower's, if there, are left out.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the module.
    """
    return load_half(source, module, IMAGE_RULES, "vision_model", "text_model")


def load_text(source: str | Path, module: CLIPTextTower) -> dict[str, Any]:
    """The variables of the text tower; the image tower's, if there, are left out.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the module.
    """
    return load_half(source, module, TEXT_RULES, "text_model", "vision_model")


def load_half(
    source: str | Path,
    module: transformer.Tower,
    rules: weights.Rules,
    own: str,
    other: str,
    fused: str | None = None,
) -> dict[str, Any]:
    """The variables of one tower of two, CLIP's or SigLIP's.

    Args:
      source: see `weights.locate`.
      module: the tower.
      rules: from its paths to names without `own`.
      own, other: what the names of its tensors begin with, and those of the other tower's.
      fused: see `transformer.unfuse`.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the module.
    """
    folder = weights.locate(source)
    tensors = weights.load_safetensors(folder)
    if fused is not None:
        tensors = transformer.unfuse(tensors, fused)
    # A tower saved by itself may have no prefix; projections never have one.
    if any(name.startswith(f"{own}.") for name in tensors):
        rules = [*rules, (r"^(?!(text|visual)_projection/)", f"{own}/")]
    projection = "text_projection" if own == "vision_model" else "visual_projection"
    ignore = [rf"^{other}\.", rf"^{projection}\.", r"^logit_(scale|bias)$"]
    return transformer.load(tensors, module, rules, ignore=ignore, source=folder)


def _settings(configuration: Mapping[str, Any], name: str) -> dict[str, Any]:
    settings = transformer.half(configuration, name)
    if f"{name}_config" in configuration:
        # Each half has a projection's width too, which does not count.
        settings["projection_dim"] = configuration.get("projection_dim", 512)
    return settings
