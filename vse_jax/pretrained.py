"""CLIP and SigLIP as they are published, in Hugging Face's layout: models without any training."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vse_jax import assembly, parallel, presets
from vse_jax import config as configs
from vse_jax.assembly import Built, Frozen, Words
from vse_jax.data import tokenizer_files
from vse_jax.data.tokenizer import Tokenizer
from vse_jax.models.backbones import weights
from vse_jax.models.backbones.weights import WeightsError

# The `model_type` of those that embed pictures and sentences; presets have the same names.
KINDS = ("clip", "siglip")


class Pretrained(NamedTuple):
    """What makes a model of published weights.

    Attributes:
      config: its preset, in the sizes of these weights.
      words: what it needs to know of the tokenizer.
      tokenizer: that lies beside the weights.
      built: the model and its variables.
    """

    config: ConfigDict
    words: Words
    tokenizer: Tokenizer
    built: Built


def lies_in(folder: Path) -> bool:
    """Whether a folder's `config.json` is of published weights, and of no run of vse_jax."""
    try:
        found = json.loads((folder / weights.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "model_type" in found


def read(folder: Path) -> Pretrained:
    """The model of a folder of weights, both towers as they are.

    Raises:
      WeightsError: they are of another model, are damaged, or one is missing.
      DataError: the tokenizer is missing or damaged.
      ConfigError: the towers have no space in common.
    """
    kind = weights.load_config(folder)["model_type"]
    if kind not in KINDS:
        raise WeightsError(
            f"{folder} has weights of the kind {kind!r}; those that compare pictures and sentences "
            f"are {configs.either(KINDS)}"
        )
    words, pad, most = tokenizer_files.read(folder)
    config = _in_sizes_of(folder, kind, most)
    tokenizer = Tokenizer("pretrained", words, config.data.max_tokens, pad)
    known = Words.of(tokenizer, config, classes=0)
    built = assembly.build_model(config, known, Frozen(image=False, text=False))
    return Pretrained(config, known, tokenizer, built)


def _in_sizes_of(folder: Path, kind: str, most: int | None) -> ConfigDict:
    """The preset of that name with these weights; `most` tokens are read by their tokenizer."""
    config = configs.default_config()
    presets.system(config, kind, kind)
    config.model.image.weights = config.model.text.weights = str(folder.absolute())
    source, dtype = weights.load_config(folder), assembly.compute_dtype(config)
    image, text = assembly.backbone_of(config), assembly.text_backbone_of(config)
    assert text is not None
    seen: Any = image.make(source, dtype, parallel.AXIS)
    longest = text.make(source, dtype).max_position_embeddings
    config.data.image_size = seen.image_size
    config.data.max_tokens = longest if most is None else min(longest, most)
    return assembly.with_width_of_towers(config)
