"""The linear classifier that public weights carry beside their backbone."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vse_jax.models.backbones import weights


class Classifier(NamedTuple):
    """Logits of a mean over cells are `mean @ kernel + bias`.

    Attributes:
      kernel: a column for each class.
      bias: of each class.
      background: whether class 0 is what is none of the others.
    """

    kernel: Float[Array, "c k"]
    bias: Float[Array, " k"]
    background: bool

    def confidence(self, logits: Float[Array, "*b k"]) -> Float[Array, "*b"]:
        """The largest probability of a class other than the background, of the softmax over all."""
        probabilities = jax.nn.softmax(logits, axis=-1)
        return jnp.max(probabilities[..., int(self.background) :], axis=-1)


def load(
    source: str | Path, names: Sequence[str], channels: int, background: bool
) -> Classifier | None:
    """The classifier in the weights of `source`; None where they carry none.

    Args:
      source: see `weights.locate`.
      names: what the layer may be called in the file.
      channels: of the backbone's map.
      background: see `Classifier`.

    Raises:
      WeightsError: weights are missing or damaged, or of another width than the backbone.
    """
    folder = weights.locate(source)
    tensors = weights.load_safetensors(folder)
    for name in names:
        if f"{name}.weight" in tensors:
            break
    else:
        return None
    classes = len(tensors[f"{name}.weight"])
    layer = {
        "kernel": jax.ShapeDtypeStruct((channels, classes), jnp.float32),
        "bias": jax.ShapeDtypeStruct((classes,), jnp.float32),
    }
    rules, others = [("^", f"{name}/")], rf"^(?!{re.escape(name)}\.)"
    found = weights.convert(tensors, {"params": layer}, rules, ignore=[others], source=folder)
    kernel, bias = (jnp.asarray(found["params"][part]) for part in ("kernel", "bias"))
    return Classifier(kernel, bias, background)
