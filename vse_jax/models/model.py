"""The assembled model: encoders and, of some networks, what compares their results or writes."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from vse_jax.encoding import Encoding

# Encodings of this device's items -> of every device's.
Gather = Callable[[Any], Any]


class VisualSemanticModel(nn.Module):
    """Two encoders into one space, with linear + GRU VSE++; or one and what writes captions.

    Attributes:
      image: called with (image, features, mask, boxes, train=).
      text: called with (tokens, mask, features, feature mask, train=); None where captions are only
        written.
      pairwise: called with (images, texts, train=) for the scores of all pairs; None where
        similarity is a product of two embeddings.
      generator: called with (regions, their mask, tokens, their mask, train=) for minus the log
        likelihood of each caption given its picture, a loss of training; None without one.
      captioner: writes captions, a `MultimodalRNN`: called with (whole pictures, tokens, mask,
        train=) for the same; None without one.
    """

    image: nn.Module
    text: nn.Module | None = None
    pairwise: nn.Module | None = None
    generator: nn.Module | None = None
    captioner: nn.Module | None = None

    def __call__(
        self, batch: Mapping[str, Array], *, train: bool, gather: Gather = lambda tree: tree
    ) -> dict[str, Any]:
        """What objectives look at.

        Args:
          batch: of this device.
          train: whether for training.
          gather: to every device's pictures.

        Returns:
          `image` and `text`, the encodings; `scores` [pictures of every device, captions of this
          one] where the model is pairwise; `generation` [b], minus the log likelihood of each
          caption, where it has a generator or a captioner.
        """
        image = self.encode_image(batch, train=train)
        outputs: dict[str, Any] = {"image": image}
        said = batch["tokens"], batch["token_mask"]
        if self.text is not None:
            outputs["text"] = self.encode_text(batch, train=train)
        if self.pairwise is not None:
            outputs["scores"] = self.pairwise(gather(image), outputs["text"], train=train)
        if self.generator is not None:
            outputs["generation"] = self.generator(image.local, image.mask, *said, train=train)
        if self.captioner is not None:
            outputs["generation"] = self.captioner(image.pooled, *said, train=train)
        return outputs

    def encode_image(self, batch: Mapping[str, Array], *, train: bool) -> Encoding:
        """The pictures of a batch: its `image` and their `boxes`, or else its `features`."""
        return self.image(
            batch.get("image"),
            batch.get("features"),
            batch.get("feature_mask"),
            batch.get("boxes"),
            train=train,
        )

    def encode_text(self, batch: Mapping[str, Array], *, train: bool) -> Encoding:
        """The sentences of a batch: its `text_features`, or else its `tokens`."""
        assert self.text is not None
        return self.text(
            batch.get("tokens"),
            batch.get("token_mask"),
            batch.get("text_features"),
            batch.get("text_feature_mask"),
            train=train,
        )

    def compare(self, images: Encoding, texts: Encoding) -> Float[Array, "a c"]:
        """Scores of every picture with every caption, of a pairwise model."""
        assert self.pairwise is not None
        return self.pairwise(images, texts, train=False)

    def caption_costs(
        self, pooled: Float[Array, "b d"], tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, " b"]:
        """Minus the log likelihood of each caption given its whole picture."""
        assert self.captioner is not None
        return self.captioner(pooled, tokens, mask, train=False)

    def begin_captions(self, pooled: Float[Array, "b d"]) -> Any:
        """The captioner's state before the first word."""
        assert self.captioner is not None
        return self.captioner.start(pooled)

    def next_word(self, state: Any, tokens: Int[Array, " b"]) -> tuple[Any, Float[Array, "b v"]]:
        """The captioner's state after these words, and the logits of those that follow."""
        assert self.captioner is not None
        return self.captioner.step(state, tokens)
