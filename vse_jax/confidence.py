"""How sure a backbone's own classifier is of regions: which proposals are looked at."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vse_jax import assembly, parallel
from vse_jax.data import proposals
from vse_jax.models.backbones.classifier import Classifier
from vse_jax.models.backbones.weights import load_config
from vse_jax.models.regions import box_features

log = logging.getLogger(__name__)


class Confidence:
    """How sure a pretrained classifier is of what regions show, mapped over the devices."""

    def __init__(self, config: ConfigDict, classifier: Classifier) -> None:
        """Loads the backbone; raises WeightsError where the weights do not fit it."""
        backbone, source = assembly.backbone_of(config), config.model.image.weights
        dtype = assembly.compute_dtype(config)
        module: Any = backbone.make(load_config(source), dtype, parallel.AXIS)
        assert backbone.load is not None  # as a classifier comes with weights
        weights = backbone.load(source, module), (classifier.kernel, classifier.bias)

        def confidence(weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            variables, (kernel, bias) = weights
            grid = module.apply(variables, batch["image"], train=False).grid
            # Logits are linear in the features: the mean of the cells' is that of the box.
            logits = grid.astype(jnp.float32) @ kernel + bias[None, None, None]
            logits = box_features(logits, batch["boxes"], batch["mask"])
            return parallel.all_gather(classifier.confidence(logits))

        self.devices = parallel.Devices.all(config.parallel)
        self._weights = self.devices.place(weights)
        self._confidence = self.devices.map(confidence, ("replicated", "split"), "replicated")

    @classmethod
    def of(cls, config: ConfigDict) -> "Confidence | None":
        """That of a config's backbone; None, and the log says so, where it has no classifier.

        Raises:
          WeightsError: weights are missing, damaged or do not fit the backbone.
        """
        backbone, source = assembly.backbone_of(config), config.model.image.weights
        load = backbone.classifier
        classifier = None if load is None or source is None else load(source)
        if classifier is None:
            log.warning(
                "'model.image.backbone' %r has no classifier in 'model.image.weights' %r: "
                "candidates are ranked as selective search has them, the largest first",
                config.model.image.backbone, source,
            )  # fmt: skip
            return None
        return cls(config, classifier)

    def scores(self, image: np.ndarray, boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [n] of the boxes [n, 4] of each picture.

        Args:
          image: uint8 [b, h, w, 3], as many as the devices can share equally.
          boxes: of the first pictures of these, at most `proposals.MOST` each.
        """
        corners = np.zeros((len(image), proposals.MOST, 4), np.float32)
        for row, own in zip(corners, boxes, strict=False):
            row[: len(own)] = own
        counts = np.zeros(len(image), int)
        counts[: len(boxes)] = [len(own) for own in boxes]
        mask = np.arange(proposals.MOST) < counts[:, None]
        batch = self.devices.split({"image": image, "boxes": corners, "mask": mask})
        found = self.devices.fetch(self._confidence(self._weights, batch))
        return [row[:count] for row, count in zip(found[: len(boxes)], counts, strict=False)]


def in_order(boxes: np.ndarray) -> np.ndarray:
    """float32 [n], scores by which candidates stay in the order that the search has them in."""
    return -np.arange(len(boxes), dtype=np.float32)


def proposed(
    confidence: Confidence | None, pictures: Sequence[np.ndarray], pixels: np.ndarray, regions: int
) -> list[np.ndarray]:
    """float32 [r, 4] of each picture: the best proposals and, the last, the whole.

    Args:
      confidence: what ranks them; None: the search's own order.
      pictures: uint8 [h, w, 3] of any sizes, for the search.
      pixels: uint8 [b, s, s, 3], the same as the backbone sees them, as many as the devices can
        share equally, the first of them real.
      regions: boxes a picture at most.

    Raises:
      DataError: OpenCV, the extra [regions], is not there.
    """
    candidates = [proposals.selective_search(picture) for picture in pictures]
    scores = [in_order(boxes) for boxes in candidates]
    if confidence is not None:
        scores = confidence.scores(pixels, candidates)
    return [
        proposals.top_boxes(boxes, own, regions - 1)
        for boxes, own in zip(candidates, scores, strict=True)
    ]
