"""What another program must know of a model: how inputs are made, and what results mean."""

from importlib import metadata
from typing import Any

import flax.linen as nn

from vse_jax import assembly, caption_writer
from vse_jax.data.tokenizer import UNKNOWN
from vse_jax.exporting.functions import Function, Input
from vse_jax.trained import Trained

# What backbones without a mean and deviation of their own take: pixels from -1 to 1.
_HALF = (0.5, 0.5, 0.5)


def about(trained: Trained, format_: str) -> dict[str, Any]:
    """What is told of a model in any format."""
    section = trained.config.model
    return {
        "made_by": f"vse_jax {metadata.version('vse-jax')}",
        "format": format_,
        "network": section.network,
        "step": trained.step,
        "dimension": section.dimension,
        "precision": trained.config.precision,
        "similarity": _similarity(trained),
        "image": _image(trained),
        "text": _text(trained),
        "captions": _captions(trained),
        "classes": trained.classes,
    }


def of_functions(found: list[Function], suffix: str) -> dict[str, Any]:
    """Each function with its file, what it takes in order, and what it gives in order."""
    return {
        function.name: {
            "file": f"{function.name}{suffix}",
            "inputs": _named(function.inputs),
            "outputs": _named(function.results()),
        }
        for function in found
    }


def _named(arrays: dict[str, Input]) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": given.kind, "shape": list(given.shape)}
        for name, given in arrays.items()
    ]


def _similarity(trained: Trained) -> str | None:
    """ "dot", "negative_euclidean" or "compare"; None of a model that compares nothing."""
    if not assembly.compares(trained.config):
        return None
    return "compare" if trained.model.pairwise is not None else trained.config.model.similarity


def _image(trained: Trained) -> dict[str, Any]:
    if trained.features is not None:
        return {"kind": "features", "width": trained.features}
    mean, std = _statistics(trained.model.image.backbone)
    return {
        "kind": "pixels",
        "size": trained.config.data.image_size,
        "color": "RGB, uint8, height x width x channel",
        "orientation": "upright, as EXIF says",
        "resize": "the whole picture to size x size, bilinear, antialiased: Pillow's BILINEAR",
        "boxes": trained.looks_at_boxes,
        "inside": "(pixel / 255 - mean) / std is computed by the function itself",
        "mean": mean,
        "std": std,
    }


def _statistics(backbone: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and deviation of the pixels, in [0, 1], by which a backbone scales them itself."""
    own = getattr(backbone, "mean", _HALF), getattr(backbone, "std", _HALF)
    return list(map(float, own[0])), list(map(float, own[1]))


def _text(trained: Trained) -> dict[str, Any]:
    words = trained.tokenizer
    return {
        "tokenizer": "tokenizer.json",
        "library": "tokenizers, with encode_special_tokens",
        "max_tokens": trained.config.data.max_tokens,
        "longer": "its first max_tokens - 1 tokens and the last one",
        "padding": words.pad,
        "dropped": words.words.token_to_id(UNKNOWN) if words.preset == "dvsa" else None,
    }


def _captions(trained: Trained) -> dict[str, Any] | None:
    """How words are written one after the other; None of a model that writes none."""
    if trained.model.captioner is None:
        return None
    special = caption_writer.special_tokens(trained.tokenizer)
    return {
        "start": special.start,
        "end": special.end,
        "never_written": list(special.banned),
        "max_tokens": trained.config.data.max_tokens - 1,
        "how": "caption_start of the embeddings, then caption_step of the state and `start`, then "
        "of the state and the word chosen, until `end`",
    }
