"""The assembled model: encoders and, of some networks, what compares their results or writes."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax.encoding import Encoding
from vse_jax.models import cam
from vse_jax.models.scale import Scale

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
      classifier: a `cam.Classifier` of whole pictures, which are those of a `cam.JointHead`
        then; None without one.
      maps: whether training looks at where classifier and captioner look: not at all (None), with
        the words' gradients by z, which weigh the caption's map, taken for constants ("constant"),
        or as what they are, functions of the parameters ("whole").
      function_words: token numbers that no map is made of.
      scales: of the losses that learn how scores are scaled, by name; None where none does.
    """

    image: nn.Module
    text: nn.Module | None = None
    pairwise: nn.Module | None = None
    generator: nn.Module | None = None
    captioner: nn.Module | None = None
    classifier: nn.Module | None = None
    maps: Literal["constant", "whole"] | None = None
    function_words: tuple[int, ...] = ()
    scales: Mapping[str, Scale] | None = None

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
          caption, where it has a generator or a captioner; `logits` [b, classes] where it has a
          classifier; where it looks at them, the rectified maps `class_map` of the `label` and
          `caption_map`, both [b, n], and `has_caption_map` [b]; the `scales` of losses, by name.
        """
        return self.relate(self.encode(batch, train=train), train=train, gather=gather)

    def encode(self, batch: Mapping[str, Array], *, train: bool) -> dict[str, Any]:
        """What of `__call__` is of each row by itself, but for batch statistics."""
        image = self.encode_image(batch, train=train)
        outputs: dict[str, Any] = {"image": image}
        said = batch["tokens"], batch["token_mask"]
        if self.text is not None:
            outputs["text"] = self.encode_text(batch, train=train)
        if self.generator is not None:
            outputs["generation"] = self.generator(image.local, image.mask, *said, train=train)
        if self.captioner is not None:
            outputs["generation"] = self.captioner(image.pooled, *said, train=train)
        if self.classifier is not None:
            outputs["logits"] = self.classifier(image.pooled)
        if self.maps is not None:
            outputs["class_map"] = self._class_map(image, batch["label"])
            outputs["caption_map"], outputs["has_caption_map"] = self._caption_map(image, *said)
        return outputs

    def relate(
        self, outputs: Mapping[str, Any], *, train: bool, gather: Gather = lambda tree: tree
    ) -> dict[str, Any]:
        """What `__call__` returns, of what `encode` does of all rows."""
        found = dict(outputs)
        if self.pairwise is not None:
            images, texts = gather(outputs["image"]), outputs["text"]
            found["scores"] = self.pairwise(images, texts, train=train)
        if self.scales:
            found["scales"] = {name: scale() for name, scale in self.scales.items()}
        return found

    def looks(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Of pictures, as far as the model has what it takes: classes, and where it looks.

        Args:
          batch: of this device, as of training; `label` is the class whose map is wanted, below 0
            that of the likeliest, and the tokens are those of the caption whose map is wanted.

        Returns:
          `logits` and `class_map`; `caption_map` and `has_caption_map`.
        """
        image, found = self.encode_image(batch, train=False), {}
        if self.classifier is not None:
            found["logits"] = logits = self.classifier(image.pooled)
            label = batch["label"]
            found["class_map"] = self._class_map(
                image, jnp.where(label < 0, jnp.argmax(logits, axis=1), label)
            )
        if self.captioner is not None:
            found["caption_map"], found["has_caption_map"] = self._caption_map(
                image, batch["tokens"], batch["token_mask"]
            )
        return found

    def _class_map(self, image: Encoding, label: Int[Array, " b"]) -> Float[Array, "b n"]:
        assert self.classifier is not None
        weights = self.classifier.variables["params"]["weights"]
        return nn.relu(cam.class_map(cast(Any, image.local), weights, jnp.maximum(label, 0)))

    def _caption_map(
        self, image: Encoding, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> tuple[Float[Array, "b n"], Bool[Array, " b"]]:
        """The map, and whether the caption has a content word to make one of."""
        assert self.captioner is not None
        captioner, variables = self.captioner.unbind()
        pooled = cast(Any, image.pooled)
        local, cells = cast(Any, image.local), cast(Any, image.mask)
        whole = self.maps == "whole"
        if not whole:
            # Of constants, so that nothing is kept for a second derivative.
            variables, pooled = jax.lax.stop_gradient((variables, pooled))
        content = cam.content_words(tokens, mask, self.function_words)
        gradients = cam.word_gradients(
            captioner, variables, pooled, tokens, mask, content, differentiable=whole
        )
        return cam.caption_map(local, cells, gradients, content), jnp.any(content, axis=1)

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
