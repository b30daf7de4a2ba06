"""Measures a model that tells classes: how well, and where it looks while it tells and writes."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from vse_jax import alignment, caption_evaluation, parallel, train_step
from vse_jax.data.split import Split
from vse_jax.encode import HostBatch
from vse_jax.evaluators import classification, maps
from vse_jax.evaluators.classification import Classified
from vse_jax.experiment import Experiment
from vse_jax.models.cam import Classifier
from vse_jax.train_state import TrainState

log = logging.getLogger(__name__)


class Looks(NamedTuple):
    """Where a model looks in pictures, a value of 0 or more for each cell of its grid.

    Attributes:
      class_maps: of the class of each picture; None where the model has no classifier.
      caption_maps: of the caption of each picture; None where it writes none.
      captioned: whose caption has a content word; None likewise.
    """

    class_maps: Float[np.ndarray, "n c"] | None
    caption_maps: Float[np.ndarray, "n c"] | None
    captioned: Bool[np.ndarray, " n"] | None


class Seen(NamedTuple):
    """A split as a model sees it.

    Attributes:
      metrics: of classes (`classify/...`) and maps (`maps/...`); see `evaluate`.
      classified: the pictures that have a class; None where there are none, or no classifier.
      logits: of every picture; None without a classifier.
      own: where the model looks for the class and the caption that are its own.
      truth: as of `true_boxes`; None too where the classes are a file's, which may be of other
        things than the data's own boxes.
    """

    metrics: dict[str, float]
    classified: Classified | None
    logits: Float[np.ndarray, "n k"] | None
    own: Looks
    truth: list[Float[np.ndarray, "_ 4"]] | None


def logits(
    experiment: Experiment, state: TrainState, pictures: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n k"]:
    """Those of each class, of pictures as `caption_evaluation.pictures_of` gives them."""
    params = train_step.evaluation_params(state)["classifier"]
    classifier = Classifier(len(experiment.dataset.classes))
    return np.asarray(classifier.apply({"params": params}, jnp.asarray(pictures)))


def classified(logits: Float[np.ndarray, "n k"], split: Split) -> Classified | None:
    """How well the classes of a split's pictures are told; None where no picture has one."""
    if split.labels is None or not (known := split.labels >= 0).any():
        return None
    return classification.evaluate(logits[known], split.labels[known])


def looks(
    experiment: Experiment,
    state: TrainState,
    split: str,
    labels: Int[np.ndarray, " n"],
    sentences: Sequence[str],
    pictures: Int[np.ndarray, " m"] | None = None,
) -> Looks:
    """Where a model looks in the pictures of a split.

    Args:
      experiment: of a model of "cam".
      state: of the model, host arrays.
      split: by name.
      labels: the class of each picture of the split whose map is wanted; below 0 the likeliest.
      sentences: the caption of each whose map is wanted.
      pictures: numbers of those wanted; None: all.
    """
    from vse_jax.data import pipeline  # here: it imports TensorFlow

    tokens, mask = experiment.tokenizer.tokenize(sentences)
    # As long as sentences can be, so that all share one compilation.
    behind = ((0, 0), (0, experiment.config.data.max_tokens - tokens.shape[1]))
    tokens, mask = np.pad(tokens, behind), np.pad(mask, behind)
    size = experiment.devices.shared(experiment.config.evaluate.batch_size)
    options = {"batch_size": size, **parallel.process_share()}

    def batches() -> Iterator[HostBatch]:
        for batch in pipeline.image_batches(experiment.examples[split], pictures, **options):
            rows = batch["image_id"]
            yield batch | {
                "label": labels[rows].astype(np.int32),
                "tokens": tokens[rows],
                "token_mask": mask[rows],
            }

    encoder = experiment.encoder
    variables = encoder.variables(train_step.evaluation_params(state), state.batch_stats)
    found = encoder.looks(variables, batches())
    return Looks(*map(found.get, ("class_map", "caption_map", "has_caption_map")))


def evaluate(
    experiment: Experiment,
    state: TrainState,
    split: str,
    sentences: Sequence[str] | None,
    pictures: Float[np.ndarray, "n d"] | None = None,
) -> Seen:
    """Everything measured of the classes of a split and of where the model looks.

    Args:
      experiment: of a model of "cam".
      state: of the model, host arrays.
      split: by name.
      sentences: what the model writes of each picture; None where it writes nothing.
      pictures: `caption_evaluation.pictures_of` the split, where they are at hand.

    Returns:
      `classify/...` as of `classification.evaluate`, in percent; `maps/agreement`, the mean cosine
      of the maps of the class told and of the caption written; `maps/agreement_chance`, the same
      with the caption of another picture; `maps/agreement_truth`, of the true class and of people's
      first caption; where things have boxes `maps/class_pointing`, of the map of the true class,
      `maps/caption_pointing`, of that of the caption written, and `maps/chance_pointing`: see
      `maps.pointing`.
    """
    data = experiment.dataset.splits[split]
    count = len(data.images)
    metrics: dict[str, float] = {}
    told, found = None, None
    if experiment.built.model.classifier is not None:
        if pictures is None:
            pictures = caption_evaluation.pictures_of(experiment, state, split)
        told = logits(experiment, state, pictures)
        found = classified(told, data)
    if found is not None:
        metrics |= {f"classify/{name}": value for name, value in found.metrics.items()}
    labels = np.full(count, -1) if data.labels is None else data.labels
    said = [next(iter(data.captions_of(picture)), "") for picture in range(count)]
    written = [""] * count if sentences is None else sentences
    own = looks(experiment, state, split, np.full(count, -1), written)
    if sentences is not None and own.captioned is not None and not own.captioned.all():
        log.info(
            "captions without a content word, so without a map: %d of %d (%r)",
            count - own.captioned.sum(), count, written[int(np.argmin(own.captioned))],
        )  # fmt: skip
    true = looks(experiment, state, split, labels, said)
    metrics |= _agreement("maps/agreement", own, own, np.ones(count, bool))
    # Of the class of each picture with the caption of the one before: what says nothing reaches.
    metrics |= _agreement("maps/agreement_chance", own, _rolled(own), np.ones(count, bool))
    metrics |= _agreement("maps/agreement_truth", true, true, labels >= 0)
    truth = None if experiment.config.data.labels is not None else true_boxes(data)
    if truth is not None:
        metrics |= _pointing(experiment, truth, labels, own, true)
    return Seen(metrics, found, told, own, truth)


def true_boxes(split: Split) -> list[Float[np.ndarray, "_ 4"]] | None:
    """Of each picture the box of the thing that its class names, or none; None where all have none.

    Of a scene of `shapes` that is the largest object's. Of several boxes nobody knows which one the
    class means: such a picture counts as one without.
    """
    if split.scenes is not None:
        return [
            np.asarray([scene["objects"][scene["main"]]["box"]], np.float32)
            for scene in split.scenes
        ]
    if split.boxes is None or not any(len(boxes) == 1 for boxes in split.boxes):
        return None
    return [boxes if len(boxes) == 1 else boxes[:0] for boxes in split.boxes]


def summary(metrics: dict[str, float]) -> str:
    """One line: how many pictures are told right, how well maps agree and point."""
    names = {
        "classify/accuracy": "accuracy {:.1f}%",
        "classify/per_class": "per class {:.1f}%",
        "maps/agreement": "maps agree {:.3f}",
        "maps/class_pointing": "the class's point at it {:.1f}%",
        "maps/caption_pointing": "the caption's {:.1f}%",
    }
    return ", ".join(form.format(metrics[name]) for name, form in names.items() if name in metrics)


def _rolled(found: Looks) -> Looks:
    """Those of the picture before each."""
    return Looks(*(None if rows is None else np.roll(rows, 1, axis=0) for rows in found))


def _agreement(
    name: str, classes: Looks, captions: Looks, where: Bool[np.ndarray, " n"]
) -> dict[str, float]:
    if classes.class_maps is None or captions.caption_maps is None or captions.captioned is None:
        return {}
    both = where & captions.captioned
    if not both.any():
        return {}
    return {name: maps.agreement(classes.class_maps[both], captions.caption_maps[both])}


def _pointing(
    experiment: Experiment,
    truth: Sequence[Float[np.ndarray, "_ 4"]],
    labels: Int[np.ndarray, " n"],
    own: Looks,
    true: Looks,
) -> dict[str, float]:
    """Of the pictures that have a box and whatever maps the model has, the same for both maps.

    Where no caption has a map, of the class's alone.
    """
    where = np.array([len(boxes) > 0 for boxes in truth])
    shown: dict[str, Float[np.ndarray, "n c"]] = {}
    if true.class_maps is not None:
        shown["class"] = true.class_maps
        where &= labels >= 0
    if own.caption_maps is not None and own.captioned is not None and own.captioned.any():
        shown["caption"] = own.caption_maps
        where &= own.captioned
    if not shown or not where.any():
        return {}
    log.info("where the thing is is known of %d of %d pictures", where.sum(), len(where))
    cells = alignment.cell_boxes(experiment.config, experiment.built.model.image.backbone)
    judged = [boxes for boxes, kept in zip(truth, where, strict=True) if kept]
    found: dict[str, float] = {}
    for name, values in shown.items():
        right, chance = maps.pointing(values[where], cells, judged)
        found |= {f"maps/{name}_pointing": right, "maps/chance_pointing": chance}
    return found
