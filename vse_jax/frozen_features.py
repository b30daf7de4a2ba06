"""Features of frozen backbones and readers: computed once, then read from beside the data."""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from vse_jax import assembly, parallel
from vse_jax.data import features
from vse_jax.data.regions import Regions
from vse_jax.data.split import DataError, Split
from vse_jax.encode import Encoder
from vse_jax.pace import Pace

if TYPE_CHECKING:
    from vse_jax.data import pipeline

log = logging.getLogger(__name__)
# Counts changes of decoding, resizing and backbones that change their features.
VERSION = 1
# Captions that are sorted by length before they are read, which bounds the memory.
SORTED = 4096
# Lengths that they are cut to are multiples of it: each is compiled once.
TRIM = 8


@dataclasses.dataclass(frozen=True)
class FrozenFeatures:
    """Features of frozen backbones, computed on first use.

    Attributes:
      config: of the run.
      devices: over which they are computed.
      built: the model.
      encoder: of it.
      examples: by split.
    """

    config: ConfigDict
    devices: parallel.Devices
    built: assembly.Built
    encoder: Encoder
    examples: "dict[str, pipeline.Examples]"

    def of(
        self, sides: assembly.Frozen, data: str, weights: Mapping[str, str | None]
    ) -> "dict[str, pipeline.Examples]":
        """The examples with the features of these sides.

        Args:
          sides: whose features are cached.
          data: fingerprint of the data set.
          weights: side -> digest of its pretrained weights.
        """
        found = self
        if sides.image:
            found = dataclasses.replace(self, examples=self.of_images(data, weights["image"]))
        return found.of_texts(weights["text"]) if sides.text else found.examples

    def of_images(self, data: str, weights: str | None) -> "dict[str, pipeline.Examples]":
        """The examples with the features of their pictures."""
        from vse_jax.data import pipeline

        def batches(name: str, first: int) -> Iterator[np.ndarray]:
            examples = self.examples[name]
            rest = np.arange(first, len(examples.split.images))
            pixels = pipeline.image_batches(examples, rest, **self._share())
            return self.encoder.image_features(self._variables(), pixels)

        found = self._cached(
            key_of_images(self.config, data, weights),
            "pictures",
            {name: len(e.split.images) for name, e in self.examples.items()},
            batches,
            self._share()["batch_size"],
            lambda name, row: f"{self.examples[name].split.images[row]} (picture {row} of {name})",
        )
        boxes = self.config.model.image.features == "boxes"
        return {
            name: dataclasses.replace(
                e, features=_of_boxes(found[name], e.split) if boxes else found[name]
            )
            for name, e in self.examples.items()
        }

    def of_texts(self, weights: str | None) -> "dict[str, pipeline.Examples]":
        """The examples with the features of their captions."""
        from vse_jax.data import pipeline

        def batches(name: str, first: int) -> Iterator[np.ndarray]:
            examples, variables = self.examples[name], self._variables()
            lengths = examples.token_mask.sum(axis=1)
            # Captions of like length together: of Flickr8k's, half would be padding.
            for start in range(first, len(lengths), SORTED):
                rows = np.arange(start, min(start + SORTED, len(lengths)))
                order = np.argsort(lengths[rows], kind="stable")
                tokens = pipeline.caption_batches(examples, rows[order], trim=TRIM, **self._share())
                found = [f for f, _ in self.encoder.text_features(variables, tokens)]
                width = max(f.shape[1] for f in found)
                if width > 1:
                    width = examples.tokens.shape[1]
                whole = [np.pad(f, ((0, 0), (0, width - f.shape[1]), (0, 0))) for f in found]
                yield np.concatenate(whole)[: len(rows)][np.argsort(order)]

        key = features.key(
            version=VERSION,
            tokens={name: _digest(e.tokens, e.token_mask) for name, e in self.examples.items()},
            backbone=self.config.model.text.backbone,
            weights=weights,
            features=self.config.model.text.features,
            precision=self.config.precision,
        )
        counts = {name: len(e.tokens) for name, e in self.examples.items()}
        found = self._cached(
            key, "captions", counts, batches, SORTED, lambda name, row: f"caption {row} of {name}"
        )
        return {
            name: dataclasses.replace(e, text_features=_of_words(found[name], e.token_mask))
            for name, e in self.examples.items()
        }

    def _share(self) -> dict[str, int]:
        size = self.devices.shared(self.config.evaluate.batch_size)
        return {"batch_size": size, **parallel.process_share()}

    def _variables(self) -> Any:
        start = self.built.variables
        return self.encoder.variables(start["params"], start["batch_stats"])

    def _cached(
        self,
        key: str,
        what: str,
        counts: Mapping[str, int],
        batches: Callable[[str, int], Iterator[np.ndarray]],
        together: int,
        named: Callable[[str, int], str],
    ) -> dict[str, np.ndarray]:
        """The features of each split under this key, float32 [n, r, f], memory-mapped."""
        data_dir = self.config.data.data_dir
        folder = features.find(data_dir, key)
        # Every process must take the same way, or the collectives below would wait for ever.
        if not parallel.all_agree(folder is not None):
            total = sum(counts.values())
            log.info("computing the features of %d %s, once", total, what)
            begun, pace = time.perf_counter(), Pace(log, total, what)

            def told(name: str, first: int) -> Iterator[np.ndarray]:
                pace.skip(first)
                for rows in batches(name, first):
                    yield rows
                    pace.advance(len(rows))

            features.write(
                data_dir,
                key,
                {
                    name: features.Rows(count, partial(told, name), together)
                    for name, count in counts.items()
                },
                named,
                store=parallel.is_first_process(),
                agreed=parallel.as_the_first,
            )
            parallel.barrier(f"features of {what}")
            seconds = time.perf_counter() - begun
            log.info("features of %d %s in %.0f s", total, what, seconds)
            folder = features.find(data_dir, key)
        if folder is None:
            raise DataError(f"features {key} are gone from {data_dir}; start again")
        log.info("features of %s in %s", what, folder)
        return {name: features.load(folder, name, count) for name, count in counts.items()}


def key_of_images(conf: ConfigDict, data: str, weights: str | None) -> str:
    """The name of the features of these data: another whenever they would be others."""
    kind = conf.model.image.features
    return features.key(
        version=VERSION,
        data=data,
        backbone=conf.model.image.backbone,
        weights=weights,
        image_size=conf.data.image_size,
        features=[kind, conf.model.image.cells] if kind == "pyramid" else kind,
        precision=conf.precision,
    )


def _digest(*arrays: np.ndarray) -> str:
    """SHA-256 (hex) of the shapes and bytes of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(str(array.shape).encode() + array.tobytes())
    return total.hexdigest()


def _of_boxes(rows: np.ndarray, split: Split) -> Regions:
    """Features [n, r, f] of pictures as those of their boxes, behind which rows are padding."""
    assert split.boxes is not None
    boxes = np.zeros((*rows.shape[:2], 4), np.float32)
    for row, own in zip(boxes, split.boxes, strict=True):
        row[: len(own)] = own
    count = np.array([len(own) for own in split.boxes], np.int64)
    return dataclasses.replace(Regions.of(rows, boxes), count=count)


def _of_words(rows: np.ndarray, mask: np.ndarray) -> Regions:
    """Features [m, l, f] of captions as those of their words; [m, 1, f] of each as a whole."""
    found = Regions.of(rows)
    if rows.shape[1] == 1 and mask.shape[1] != 1:
        return found
    return dataclasses.replace(found, count=mask.sum(axis=1).astype(np.int64))
