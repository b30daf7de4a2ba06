"""Both towers of SigLIP, and of SigLIP 2 at fixed sizes, with the public weights of Hugging Face.

Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023; fields after
`transformers`' SiglipModel, with which the tests compare.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from vse_jax.models.backbones import clip, pixels, transformer, weights
from vse_jax.models.backbones.feature_map import FeatureMap, WordFeatures
from vse_jax.models.backbones.weights import WeightsError

# Once the head's queries, keys and values are apart.
IMAGE_RULES: weights.Rules = [
    *clip.BLOCK_RULES,
    (r"^positions$", "embeddings/position_embedding/weight"),
    (r"^patches/", "embeddings/patch_embedding/"),
    (r"^norm/", "post_layernorm/"),
    (r"^head/attention/out/", "head/attention/out_proj/"),
    (r"^head/norm/", "head/layernorm/"),
]
TEXT_RULES: weights.Rules = [
    *clip.BLOCK_RULES,
    (r"^words$", "embeddings/token_embedding/weight"),
    (r"^positions$", "embeddings/position_embedding/weight"),
    (r"^norm/", "final_layer_norm/"),
]

_FUSED = r"(?<=head\.attention\.)in_proj_(weight|bias)$"
# The size of Gemma's vocabulary, which SigLIP 2 uses; it pads with 0, and its config.json
# does not say so.
_GEMMA = 256_000


class SigLIPImageTower(transformer.ImageTower):
    """A grid of patches and what the head takes of them; defaults are those of base-patch16-224."""

    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @nn.compact
    def __call__(self, image: UInt8[Array, "b h w 3"], *, train: bool) -> FeatureMap:
        """The last block's patches after the final norm; `pooled` is the attention head's output.

        It is the picture's embedding, not scaled to length 1. Dropout needs the rng "dropout".
        """
        x, cells = self.embed(image, class_token=False, bias=True)
        x = self.blocks(x, None, train=train)
        x = self.parts().norm(name="norm")(x)
        pooled = _Head(self.parts(), name="head")(x, train=train)
        return FeatureMap(transformer.lay_out(x, cells), pooled)


class SigLIPTextTower(transformer.TextTower):
    """The words of sentences and each one's embedding; defaults are those of base-patch16-224.

    Attributes:
      pad_token_id: the token that sentences are padded with.
      projection_size: channels of the embedding; 0 means `hidden_size`.
    """

    vocab_size: int = 32000
    max_position_embeddings: int = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    pad_token_id: int = 1
    projection_size: int = 0

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"], *, train: bool
    ) -> WordFeatures:
        """The last block's words after the final norm; `pooled` is the head of the very last.

        SigLIP was trained on sentences padded to one length, and on padding like on words. So
        every sentence is padded here to `max_position_embeddings` tokens, whatever stands where
        `mask` is False, and its words come out the same in a batch of any length. Dropout needs
        the rng "dropout".

        Raises:
          ValueError: the sentences are longer than that.
        """
        length = tokens.shape[1]
        missing = max(self.max_position_embeddings - length, 0)
        padded = jnp.where(mask, tokens, self.pad_token_id)
        padded = jnp.pad(padded, ((0, 0), (0, missing)), constant_values=self.pad_token_id)
        x = self.blocks(self.embed(padded).astype(self.dtype), None, train=train)
        x = self.parts().norm(name="norm")(x)
        width = self.projection_size or self.hidden_size
        return WordFeatures(x[:, :length], nn.Dense(width, dtype=self.dtype, name="head")(x[:, -1]))


def make_image(
    configuration: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32
) -> SigLIPImageTower:
    """The image tower that `config.json` describes, of both towers or of this one alone.

    Pixels are normalized as `preprocessor_config.json` says, or else to -1 to 1.

    Raises:
      WeightsError: it describes something else.
    """
    settings = transformer.half(configuration, "vision")
    mean, std = pixels.of_hugging_face(configuration, pixels.HALF, pixels.HALF)
    if not settings.get("vision_use_head", True):
        raise WeightsError(
            "config.json of the weights: vision_use_head is false, expected true, for it is the "
            "head's output that stands for the whole"
        )
    kinds = ["siglip", "siglip_vision_model"]
    return transformer.make(SigLIPImageTower, settings, kinds, dtype, mean=mean, std=std)


def make_text(
    configuration: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32
) -> SigLIPTextTower:
    """The text tower that `config.json` describes, of both towers or of this one alone.

    Raises:
      WeightsError: it describes something else.
    """
    settings = transformer.half(configuration, "text")
    if settings.get("vocab_size") == _GEMMA:
        settings.setdefault("pad_token_id", 0)
    return transformer.make(SigLIPTextTower, settings, ["siglip", "siglip_text_model"], dtype)


def load_image(source: str | Path, module: SigLIPImageTower) -> dict[str, Any]:
    """The variables of the image tower; the text tower's, if there, are left out.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the module.
    """
    return clip.load_half(source, module, IMAGE_RULES, "vision_model", "text_model", _FUSED)


def load_text(source: str | Path, module: SigLIPTextTower) -> dict[str, Any]:
    """The variables of the text tower; the image tower's, if there, are left out.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the module.
    """
    return clip.load_half(source, module, TEXT_RULES, "text_model", "vision_model")


class _Head(nn.Module):
    """Attention of one learned vector to all others, and a perceptron.

    Source: Lee et al., Set Transformer, ICML 2019, section 3.2, as in Zhai et al., Scaling
    Vision Transformers, CVPR 2022, section 3.2.
    """

    parts: transformer.Parts

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], *, train: bool) -> Float[Array, "b c"]:
        """The whole of each set of vectors."""
        batch, _, channels = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, channels))
        probe = jnp.broadcast_to(probe.astype(x.dtype), (batch, 1, channels))
        whole = self.parts.attention(name="attention")(probe, x, None, train=train)
        whole = whole + self.parts.mlp(name="mlp")(self.parts.norm(name="norm")(whole))
        return whole[:, 0]
