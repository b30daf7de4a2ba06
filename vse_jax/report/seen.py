"""What a report says of a model of "cam": how it tells classes, and pictures of where it looks."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from vse_jax import alignment, look, look_picture
from vse_jax.cam_evaluation import Seen
from vse_jax.data.rgb import in_rgb
from vse_jax.data.split import Split
from vse_jax.evaluators.classification import Classified
from vse_jax.experiment import Experiment
from vse_jax.report import page

# Pixels of the longer side of the pictures that maps are laid over.
SIZE = 256


def of_classes(names: Sequence[str], found: Classified | None) -> dict[str, Any] | None:
    """How the pictures of each class were told, for `report.json`; None where none were.

    Args:
      names: of the classes, by number.
      found: as `cam_evaluation.classified` gives it.

    Returns:
      `names`; of each class how many `pictures` it has and how many of them were told `right`; and
      `confused`, [true class, class told, pictures] by number where these differ, the most frequent
      first.
    """
    if found is None:
        return None
    counts = found.confusion
    wrong = counts - np.diag(counts.diagonal())
    true, told = wrong.nonzero()
    triples = [[int(i), int(j), int(wrong[i, j])] for i, j in zip(true, told, strict=True)]
    return {
        "names": list(names),
        "pictures": counts.sum(axis=1).tolist(),
        "right": counts.diagonal().tolist(),
        "confused": sorted(triples, key=lambda triple: -triple[2]),
    }


def looked(
    experiment: Experiment, split: Split, seen: Seen, sentences: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Pictures spread over a split, what a model tells of them and where it looks, for the page.

    Args:
      experiment: of the run.
      split: that was measured.
      seen: as `cam_evaluation.evaluate` gives it.
      sentences: what was written of each picture; None where nothing was.

    Returns:
      What `page.write` takes as "looks".
    """
    if split.read is None:
        return []
    count, n = experiment.config.evaluate.queries, len(split.images)
    cells = alignment.cell_boxes(experiment.config, experiment.built.model.image.backbone)
    names, own, shown = experiment.dataset.classes, seen.own, []
    for picture in np.unique(np.linspace(0, n - 1, count).astype(int)).tolist():
        photo = _small(split.read([picture])[0])
        boxes = () if seen.truth is None else seen.truth[picture]
        item: dict[str, Any] = {"name": split.images[picture]}
        class_map, caption_map = None, None
        if seen.logits is not None and own.class_maps is not None:
            class_map = look.on_grid(own.class_maps[picture], cells)
            item["class"] = _told(names, seen.logits[picture], _label(split, picture))
            item["class_image"] = _drawn(photo, class_map, boxes)
        if sentences is not None and own.caption_maps is not None and own.captioned is not None:
            item["written"] = sentences[picture]
            if own.captioned[picture]:
                caption_map = look.on_grid(own.caption_maps[picture], cells)
                item["caption_image"] = _drawn(photo, caption_map, boxes)
        item["agreement"] = look.agreement(class_map, caption_map)
        shown.append(item)
    return shown


def _told(
    names: Sequence[str], logits: Float[np.ndarray, " k"], label: int
) -> dict[str, str | float]:
    """The class told, its probability, and the true one where it is known."""
    best = look.classes(logits[None], names)[0][0]
    return {
        "name": best.name,
        "probability": best.probability,
        **({} if label < 0 else {"true": names[label]}),
    }


def _label(split: Split, picture: int) -> int:
    return -1 if split.labels is None else int(split.labels[picture])


def _small(data: bytes) -> Image.Image:
    """A picture as the model sees it, its longer side SIZE pixels."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = in_rgb(opened)
    scale = SIZE / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _drawn(
    photo: Image.Image,
    heat: Float[np.ndarray, "h w"],
    boxes: Sequence[Sequence[float]] | np.ndarray,
) -> str:
    shown = look_picture.overlay(photo, heat, boxes)
    return page.as_uri(shown)
