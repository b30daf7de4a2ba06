"""Runs the towers over any number of pictures or sentences, on all devices."""

from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vse_jax import parallel
from vse_jax.models.image import parts_of
from vse_jax.objectives.base import Batch

HostBatch = dict[str, np.ndarray]


class Encoder:
    """Both towers and the backbone alone, compiled once and mapped over the devices."""

    def __init__(self, model: nn.Module, devices: parallel.Devices) -> None:
        """Prepares the mapped functions of `model`; nothing is compiled yet."""
        self._devices = devices

        def image(variables: Any, batch: Batch) -> tuple[Array, Array]:
            encoding: Any = model.apply(variables, batch, train=False, method=model.encode_image)
            return _everywhere(encoding.pooled), parallel.all_gather(batch["weight"])

        def text(variables: Any, batch: Batch) -> tuple[Array, Array]:
            encoding: Any = model.apply(variables, batch, train=False, method=model.encode_text)
            return _everywhere(encoding.pooled), parallel.all_gather(batch["weight"])

        def features(variables: Any, batch: Batch) -> Float[Array, "b n f"]:
            def grid(model: nn.Module) -> Float[Array, "b h w c"]:
                return model.image.backbone(batch["image"], train=False).grid

            return _everywhere(parts_of(nn.apply(grid, model)(variables), model.image.pool))

        self._image, self._text, self._features = (
            devices.map(function, ("replicated", "split"), "replicated")
            for function in (image, text, features)
        )

    def variables(self, params: Any, batch_stats: Any) -> Any:
        """Host variables put on the devices, for the methods below."""
        return self._devices.place({"params": params, "batch_stats": batch_stats})

    def images(self, variables: Any, batches: Iterable[HostBatch]) -> Float[np.ndarray, "n d"]:
        """Embeddings of every picture of the batches that is not padding, in order."""
        return self._collect(self._image, variables, batches)

    def texts(self, variables: Any, batches: Iterable[HostBatch]) -> Float[np.ndarray, "m d"]:
        """Embeddings of every sentence of the batches that is not padding, in order."""
        return self._collect(self._text, variables, batches)

    def features(self, variables: Any, batches: Iterable[HostBatch]) -> Iterator[np.ndarray]:
        """float32 [b, n, f] features of each batch of pixels, padding included."""
        for _, batch in self._devices.prefetch(iter(batches)):
            yield self._devices.fetch(self._features(variables, batch))

    def _collect(
        self, function: Any, variables: Any, batches: Iterable[HostBatch]
    ) -> Float[np.ndarray, "n d"]:
        rows = []
        for _, batch in self._devices.prefetch(iter(batches)):
            embeddings, weight = self._devices.fetch(function(variables, batch))
            rows.append(embeddings[weight > 0])
        return np.concatenate(rows)


def _everywhere(rows: Array) -> Array:
    return parallel.all_gather(rows.astype(jnp.float32))
