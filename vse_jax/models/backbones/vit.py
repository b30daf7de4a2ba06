"""ViT, with the public weights of Hugging Face and of timm.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; fields after
`transformers`' ViTModel, with which, and with timm's VisionTransformer, the tests compare.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, UInt8

from vse_jax.models.backbones import pixels, transformer, weights
from vse_jax.models.backbones.feature_map import FeatureMap
from vse_jax.models.backbones.weights import WeightsError

RULES: weights.Rules = [
    (r"^class_token$", "embeddings/cls_token"),
    (r"^positions$", "embeddings/position_embeddings"),
    (r"^patches/", "embeddings/patch_embeddings/projection/"),
    (r"^norm/", "layernorm/"),
    (r"^layer_(\d+)/", r"encoder/layer/\1/"),
    (r"/attention/(query|key|value)/", r"/attention/attention/\1/"),
    (r"/attention/out/", "/attention/output/dense/"),
    (r"/norm1/", "/layernorm_before/"),
    (r"/norm2/", "/layernorm_after/"),
    (r"/mlp/fc1/", "/intermediate/dense/"),
    (r"/mlp/fc2/", "/output/dense/"),
]
# Once queries, keys and values are apart.
TIMM_RULES: weights.Rules = [
    (r"^class_token$", "cls_token"),
    (r"^positions$", "pos_embed"),
    (r"^patches/", "patch_embed/proj/"),
    (r"^layer_(\d+)/", r"blocks/\1/"),
    (r"/attention/out/", "/attn/proj/"),
    (r"/attention/", "/attn/"),
]

_PREFIX = "vit."
_TIMM = "patch_embed.proj.weight"
# Width, blocks and heads of timm's plain ViTs.
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
_TIMM_FIELDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "qkv_bias": "qkv_bias",
}
# They say nothing of the tower, or say it again.
_TIMM_IGNORED = {"num_classes", "global_pool", "in_chans", "mlp_ratio"}


class ViT(transformer.ImageTower):
    """A grid of patches and the class token, both after the final norm; defaults are ViT-B/16's."""

    @nn.compact
    def __call__(self, image: UInt8[Array, "b h w 3"], *, train: bool) -> FeatureMap:
        """The last block's patches and class token; dropout needs the rng "dropout"."""
        x, cells = self.embed(image, class_token=True, bias=True)
        x = self.blocks(x, None, train=train)
        x = self.parts().norm(name="norm")(x)
        return FeatureMap(transformer.lay_out(x[:, 1:], cells), x[:, 0])


def make(configuration: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32) -> ViT:
    """The module that the weights' `config.json`, of either library, describes.

    Pixels are normalized as it says, Hugging Face's `preprocessor_config.json` too; to -1 to 1
    where nothing does. An empty configuration means ViT-B/16 at 224 pixels.

    Raises:
      WeightsError: it describes something else.
    """
    ours: dict[str, Any] = {}
    if "architecture" in configuration:
        configuration, ours = _from_timm(configuration)
    else:
        mean, std = pixels.of_hugging_face(configuration, pixels.HALF, pixels.HALF)
        ours = {"mean": mean, "std": std}
    return transformer.make(ViT, configuration, ["vit"], dtype, **ours)


def load(source: str | Path, module: ViT) -> dict[str, Any]:
    """The variables of `module` in the weights of `source`, with names of either library.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the module.
    """
    folder = weights.locate(source)
    tensors = weights.load_safetensors(folder)
    rules, ignore = RULES, [r"^pooler\.", r"embeddings\.mask_token$"]
    if _TIMM in tensors:
        tensors = transformer.unfuse(tensors, r"(?<=\.attn\.)qkv\.(weight|bias)$")
        rules, ignore = TIMM_RULES, [r"^head\."]
    elif any(name.startswith(_PREFIX) for name in tensors):
        rules, ignore = [*RULES, (r"^", _PREFIX)], [r"^(?!vit\.)", *ignore]
    for name, first in (("class_token", (0, 0)), ("positions", (0,))):
        known = weights.torch_name(("params", name), rules)
        if known in tensors and tensors[known].ndim == 3:
            tensors[known] = tensors[known][first]
    return transformer.load(tensors, module, rules, ignore=ignore, source=folder)


def _from_timm(configuration: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings by their names in `transformers`, those that have none) of timm's `config.json`."""
    name, given = configuration["architecture"], configuration.get("model_args") or {}
    plain = re.fullmatch(rf"vit_({'|'.join(_SIZES)})_patch(\d+)_(\d+)", str(name))
    if plain is None:
        raise WeightsError(
            f"config.json of the weights: architecture is {name!r}, expected a plain ViT such as "
            "'vit_base_patch16_224'"
        )
    pool = configuration.get("global_pool", given.get("global_pool", "token"))
    if pool != "token":
        raise WeightsError(
            f"config.json of the weights: global_pool is {pool!r}, expected 'token', for it is the "
            "class token that stands for the whole"
        )
    unknown = sorted(given.keys() - _TIMM_FIELDS.keys() - _TIMM_IGNORED)
    if unknown:
        raise WeightsError(
            f"config.json of the weights: model_args has {unknown}, expected none but "
            f"{sorted(_TIMM_FIELDS.keys() | _TIMM_IGNORED)}"
        )
    trained = configuration.get("pretrained_cfg") or {}
    width, depth, heads = _SIZES[plain[1]]
    args = {
        "img_size": trained.get("input_size", [3, int(plain[3])])[1],
        "patch_size": int(plain[2]),
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        **given,
    }
    if isinstance(args["img_size"], list) and len(set(args["img_size"])) == 1:
        args["img_size"] = args["img_size"][0]
    settings = {ours: args[theirs] for theirs, ours in _TIMM_FIELDS.items() if theirs in args}
    settings["intermediate_size"] = int(args["embed_dim"] * args.get("mlp_ratio", 4))
    settings["num_channels"] = args.get("in_chans", 3)
    settings["layer_norm_eps"] = 1e-6
    colours = {key: tuple(trained[key]) for key in ("mean", "std") if key in trained}
    return settings, {"antialias": True, **colours}
