"""The assembled model: an image encoder and a text encoder."""

from collections.abc import Mapping

import flax.linen as nn
from jaxtyping import Array

from vse_jax.encoding import Encoding


class VisualSemanticModel(nn.Module):
    """Two encoders into one space; with linear + GRU it is VSE++.

    Attributes:
      image: called with (image, features, mask, train=).
      text: called with (tokens, mask, train=).
    """

    image: nn.Module
    text: nn.Module

    def __call__(self, batch: Mapping[str, Array], *, train: bool) -> dict[str, Encoding]:
        """Both sides of a batch: {"image": ..., "text": ...}."""
        return {
            "image": self.encode_image(batch, train=train),
            "text": self.encode_text(batch, train=train),
        }

    def encode_image(self, batch: Mapping[str, Array], *, train: bool) -> Encoding:
        """The pictures of a batch: its `image`, or else its `features`."""
        return self.image(
            batch.get("image"), batch.get("features"), batch.get("feature_mask"), train=train
        )

    def encode_text(self, batch: Mapping[str, Array], *, train: bool) -> Encoding:
        """The sentences of a batch."""
        return self.text(batch["tokens"], batch["token_mask"], train=train)
