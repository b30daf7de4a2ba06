"""Runs the towers over any number of pictures or sentences, on all devices."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vse_jax import parallel
from vse_jax.encoding import Encoding
from vse_jax.models.model import VisualSemanticModel
from vse_jax.objectives.base import Batch

HostBatch = dict[str, np.ndarray]
# float32 [n, d]; of a model that compares pictures and sentences in pairs, an `Encoding` of arrays.
Encoded: TypeAlias = Any


# Of the two towers.
Side = Literal["images", "texts"]


class Encoder:
    """Both towers and the backbones alone, compiled once and mapped over the devices."""

    def __init__(self, model: VisualSemanticModel, devices: parallel.Devices) -> None:
        """Prepares the mapped functions of `model`; nothing is compiled yet."""
        self._devices = devices
        pairwise = model.pairwise is not None

        def of(method: Any) -> Any:
            def function(variables: Any, batch: Batch) -> tuple[Any, Array]:
                encoding: Any = model.apply(variables, batch, train=False, method=method)
                found = encoding if pairwise else encoding.pooled
                return _everywhere(found), parallel.all_gather(batch["weight"])

            return devices.map(function, ("replicated", "split"), "replicated")

        def image_features(variables: Any, batch: Batch) -> Float[Array, "b n f"]:
            def seen(model: VisualSemanticModel) -> Float[Array, "b n f"]:
                return model.image.features(batch["image"], batch.get("boxes"))

            return _everywhere(nn.apply(seen, model)(variables))

        def text_features(variables: Any, batch: Batch) -> Any:
            def read(model: VisualSemanticModel) -> Any:
                assert model.text is not None
                return model.text.features(batch["tokens"], batch["token_mask"])

            return _everywhere(nn.apply(read, model)(variables))

        def scores(variables: Any, images: Encoding, texts: Encoding) -> Float[Array, "n m"]:
            found = model.apply(variables, images, texts, method=model.compare)
            return parallel.all_gather(found)

        def looks(variables: Any, batch: Batch) -> tuple[Any, Array]:
            found = model.apply(variables, batch, method=model.looks)
            return _everywhere(found), parallel.all_gather(batch["weight"])

        self._looks = devices.map(looks, ("replicated", "split"), "replicated")
        self._image, self._text = of(model.encode_image), of(model.encode_text)
        self._image_features, self._text_features = (
            devices.map(function, ("replicated", "split"), "replicated")
            for function in (image_features, text_features)
        )
        self._scores = devices.map(scores, ("replicated", "split", "replicated"), "replicated")

    def variables(self, params: Any, batch_stats: Any) -> Any:
        """Host variables put on the devices, for the methods below."""
        return self._devices.place({"params": params, "batch_stats": batch_stats})

    def in_turn(
        self, side: Side, variables: Any, batches: Iterable[HostBatch]
    ) -> Iterator[tuple[Encoded, Bool[np.ndarray, " b"]]]:
        """(embeddings, False of padding) of each batch, of the rows of all processes."""
        return self._in_turn(self._image if side == "images" else self._text, variables, batches)

    def images(self, variables: Any, batches: Iterable[HostBatch]) -> Encoded:
        """Embeddings of every picture of the batches that is not padding, in order."""
        return self._collect(self._image, variables, batches)

    def texts(self, variables: Any, batches: Iterable[HostBatch]) -> Encoded:
        """Embeddings of every sentence of the batches that is not padding, in order."""
        return self._collect(self._text, variables, batches)

    def looks(self, variables: Any, batches: Iterable[HostBatch]) -> dict[str, np.ndarray]:
        """What `VisualSemanticModel.looks` tells of every picture that is not padding, in order."""
        return self._collect(self._looks, variables, batches)

    def image_features(self, variables: Any, batches: Iterable[HostBatch]) -> Iterator[np.ndarray]:
        """float32 [b, n, f] features of each batch of pixels, padding included."""
        for _, batch in self._devices.prefetch(iter(batches)):
            yield self._devices.fetch(self._image_features(variables, batch))

    def text_features(
        self, variables: Any, batches: Iterable[HostBatch]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(float32 [b, n, f], bool [b, n]) of each batch of tokens, padding included."""
        for _, batch in self._devices.prefetch(iter(batches)):
            yield self._devices.fetch(self._text_features(variables, batch))

    def scores(
        self,
        variables: Any,
        images: Encoding,
        texts: Encoding,
        pictures: int = 256,
        sentences: int = 1024,
    ) -> Float[np.ndarray, "n m"]:
        """Scores of every picture with every sentence, by a model that compares them in pairs.

        Args:
          variables: of the model.
          images: of n pictures, host arrays.
          texts: of m sentences, host arrays.
          pictures: at most so many are on the devices at a time, of all of them together.
          sentences: likewise.
        """
        n, m = len(images.mask), len(texts.mask)
        found = np.empty((n, m), np.float32)
        size = self._devices.shared(min(pictures, n))
        width = min(sentences, m)
        share = size // parallel.process_share()["processes"]
        own = parallel.process_share()["process"] * share
        for column in range(0, m, width):
            some = self._devices.place(_padded(texts, column, width))
            for row in range(0, n, size):
                mine = jax.tree.map(lambda x: x[own : own + share], _padded(images, row, size))
                block = self._scores(variables, self._devices.split(mine), some)
                here = found[row : row + size, column : column + width]
                here[:] = self._devices.fetch(block)[: len(here), : here.shape[1]]
        return found

    def _collect(self, function: Any, variables: Any, batches: Iterable[HostBatch]) -> Encoded:
        parts = [
            jax.tree.map(lambda x, kept=is_real: x[kept], found)
            for found, is_real in self._in_turn(function, variables, batches)
        ]
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    def _in_turn(
        self, function: Any, variables: Any, batches: Iterable[HostBatch]
    ) -> Iterator[tuple[Any, Bool[np.ndarray, " b"]]]:
        for _, batch in self._devices.prefetch(iter(batches)):
            found, weight = self._devices.fetch(function(variables, batch))
            yield found, weight > 0


def _everywhere(tree: Any) -> Any:
    """Every device's rows, floats as float32."""
    floats = jax.tree.map(
        lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
    return parallel.all_gather(floats)


def _padded(encoding: Encoding, start: int, count: int) -> Encoding:
    """Rows `start` to `start + count`, with empty ones behind the last."""

    def cut(rows: np.ndarray) -> np.ndarray:
        some = rows[start : start + count]
        return np.pad(some, ((0, count - len(some)), *((0, 0) for _ in rows.shape[1:])))

    return jax.tree.map(cut, encoding)
