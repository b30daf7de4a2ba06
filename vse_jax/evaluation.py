"""Measures the splits of a data set under a state: how training validates, what is reported."""

import dataclasses
import logging
import time
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from vse_jax import assembly, parallel, train_step
from vse_jax.checkpoint import CheckpointError, Checkpoints
from vse_jax.data.split import Dataset, Split
from vse_jax.evaluators import judgement, retrieval
from vse_jax.experiment import Experiment
from vse_jax.similarity import Similarity, look_up
from vse_jax.train_state import TrainState

log = logging.getLogger(__name__)
# Pairs drawn to compare distances with true scenes.
JUDGED = 2000
# Pairs compared at a time: of each, scores with all captions may be at hand.
PAIRS = 1024
# Protocols on the test split of another one, reported beside it.
BESIDE: Mapping[str, tuple[str, ...]] = {"coco_5k": ("coco_1k_5fold",)}


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Every picture and every caption of a split, and how they are compared.

    Attributes:
      images: float32 [n, d]; of a model that compares in pairs, scores [n, m] with all captions.
      captions: float32 [m, d]; of such a model their numbers, int [m].
      similarity: of rows of the two.
    """

    images: np.ndarray
    captions: np.ndarray
    similarity: Similarity

    @classmethod
    def of_scores(cls, scores: Float[np.ndarray, "n m"]) -> "Embeddings":
        """Those whose similarities are these."""
        return cls(scores, np.arange(scores.shape[1]), look_up)

    def pairs(
        self, images: Int[np.ndarray, " k"], captions: Int[np.ndarray, " k"]
    ) -> Float[np.ndarray, " k"]:
        """The similarity of each of these pictures with the caption of the same place."""
        found = [
            self.similarity.rows(
                jnp.asarray(self.images[images[start : start + PAIRS]]),
                jnp.asarray(self.captions[captions[start : start + PAIRS]]),
            )
            for start in range(0, len(images), PAIRS)
        ]
        return np.concatenate([*found, np.zeros(0, np.float32)])

    def scores(self) -> Float[np.ndarray, "n m"]:
        """The similarity of every picture with every caption."""
        images, captions = jnp.asarray(self.images), jnp.asarray(self.captions)
        return np.asarray(self.similarity.matrix(images, captions))


def encode(
    experiment: Experiment,
    state: TrainState,
    split: str,
    pictures: Int[np.ndarray, " n"] | None = None,
    captions: Int[np.ndarray, " m"] | None = None,
) -> Embeddings:
    """Embeddings of a split under the state's evaluation parameters (host arrays).

    Args:
      experiment: of the run.
      state: of the model, host arrays.
      split: by name.
      pictures: numbers of those to encode; None: all.
      captions: likewise.
    """
    from vse_jax.data import pipeline  # here: it imports TensorFlow

    encoder = experiment.encoder
    variables = encoder.variables(train_step.evaluation_params(state), state.batch_stats)
    examples = experiment.examples[split]
    size = experiment.devices.shared(experiment.config.evaluate.batch_size)
    share = parallel.process_share()
    images = encoder.images(
        variables, pipeline.image_batches(examples, pictures, batch_size=size, **share)
    )
    texts = encoder.texts(
        variables, pipeline.caption_batches(examples, captions, batch_size=size, **share)
    )
    if not assembly.is_pairwise(experiment.config):
        return Embeddings(images, texts, assembly.similarity_of(experiment.config))
    begun = time.perf_counter()
    scores = encoder.scores(variables, images, texts)
    log.info("%d x %d pairs scored in %.0f s", *scores.shape, time.perf_counter() - begun)
    return Embeddings.of_scores(scores)


def encode_pairs(experiment: Experiment, state: TrainState, most: int) -> Embeddings:
    """Both embeddings [n, d] of each of `most` training pairs drawn by the seed, or of all.

    A picture is in as many of all pairs as it has captions.
    """
    pairing = experiment.dataset.splits["train"].caption_image
    drawn = np.random.default_rng(experiment.config.seed).permutation(len(pairing))[:most]
    captions = np.sort(drawn)
    pictures, rows = np.unique(pairing[captions], return_inverse=True)
    found = encode(experiment, state, "train", pictures, captions)
    return dataclasses.replace(found, images=found.images[rows])


def measure(split: Split, embeddings: Embeddings, protocol: str | None = None) -> dict[str, float]:
    """Retrieval metrics of a split, under `protocol` or, without one, over the whole split.

    Raises:
      EvaluationError: embeddings that are not finite, or a split of another size.
    """
    return retrieval.evaluate(
        protocol or f"all_{len(split.images)}",
        embeddings.images,
        embeddings.captions,
        split.caption_image,
        score=embeddings.similarity.matrix,
    )


def oracle(split: Split) -> dict[str, float] | None:
    """Metrics of ranking by the true similarity of scenes and captions, where it is known."""
    if split.scenes is None or split.meanings is None:
        return None
    from vse_jax.data.shapes import similarity

    scores = similarity.oracle_scores(split.scenes, split.meanings)
    return retrieval.evaluate_scores(f"all_{len(split.images)}", scores, split.caption_image)


def judged(config: ConfigDict, split: Split, embeddings: Embeddings) -> dict[str, float]:
    """How distance goes with what people judged, and with the true scenes where these are known.

    `expert/...` and `crowdflower/...` are over the pairs of their files (`evaluate.expert`,
    `evaluate.crowdflower`) that are in the split, `scenes/...` over pairs drawn at random; see
    `judgement.agreement`. What has no correlation is left out with a warning.

    Raises:
      EvaluationError: a file that is none.
    """
    found: dict[str, float] = {}
    rows = {name: row for row, name in enumerate(split.images)}
    first = np.searchsorted(split.caption_image, np.arange(len(split.images)))
    numbers = np.arange(len(split.captions)) - first[split.caption_image]
    names = [split.images[row] for row in split.caption_image]
    captions = {
        f"{name}#{k}": row for row, (name, k) in enumerate(zip(names, numbers, strict=True))
    }

    def correlated(name: str, pairs: np.ndarray, relevance: np.ndarray) -> None:
        closeness = embeddings.pairs(pairs[:, 0], pairs[:, 1])
        try:
            values = judgement.agreement(-closeness, relevance)
        except judgement.NoCorrelationError as error:
            log.warning("%s: %s; it is left out", name, error)
            return
        log.info(
            "%s: Spearman %.3f [%.3f, %.3f], Kendall %.3f, %d pairs", name, values["spearman"],
            values["spearman_low"], values["spearman_high"], values["kendall"], len(pairs),
        )  # fmt: skip
        found.update({f"{name}/{key}": value for key, value in values.items()})

    for name, read in judgement.READERS.items():
        if config[name] is None:
            continue
        everything = read(config[name])
        known = [j for j in everything if j.image in rows and j.caption in captions]
        log.info("%s: %d of %d judged pairs are in the split", name, len(known), len(everything))
        pairs = np.array([(rows[j.image], captions[j.caption]) for j in known], int).reshape(-1, 2)
        correlated(name, pairs, np.array([j.relevance for j in known]))
    if split.scenes is not None and split.meanings is not None:
        from vse_jax.data.shapes.similarity import scene_similarity

        rng = np.random.default_rng(0)
        pairs = rng.integers(0, (len(split.images), len(split.captions)), (JUDGED, 2))
        truth = [scene_similarity(split.meanings[c], split.scenes[i]) for i, c in pairs]
        correlated("scenes", pairs, np.array(truth))
    return found


def reported_split(dataset: Dataset) -> str:
    """The split that is reported: the test, or validation where there is none."""
    return "test" if "test" in dataset.splits else "validation"


def protocol_of(dataset: Dataset, name: str) -> str:
    """The protocol by which a split is reported: the data set's for the test, else all of it."""
    return dataset.protocol if name == "test" else f"all_{len(dataset.splits[name].images)}"


def protocols_beside(dataset: Dataset, name: str) -> tuple[str, ...]:
    """Further protocols by which a split is reported, such as COCO's five folds."""
    return BESIDE.get(protocol_of(dataset, name), ())


def best_state(experiment: Experiment, template: TrainState) -> TrainState:
    """The best checkpoint of a workdir, as host arrays.

    Raises:
      CheckpointError: there is none.
    """
    checkpoints = Checkpoints(experiment.workdir / "checkpoints" / "best", keep=2)
    try:
        return restored(checkpoints, template)
    finally:
        checkpoints.close()


def restored(checkpoints: Checkpoints, template: TrainState) -> TrainState:
    """The newest of these checkpoints, as host arrays; raises CheckpointError without any."""
    state = checkpoints.restore(template)
    if state is None:
        raise CheckpointError(f"{checkpoints.folder} has no checkpoint yet: train it first")
    return state


def summary(metrics: Mapping[str, float]) -> str:
    """One line: recalls each way, medians and rsum."""
    ways = (
        f"{way} R@1/5/10 "
        + "/".join(f"{metrics[f'{way}/R@{k}']:.1f}" for k in (1, 5, 10))
        + f" MedR {metrics[f'{way}/MedR']:.0f}"
        for way in ("i2t", "t2i")
    )
    return f"{', '.join(ways)}, rsum {metrics['rsum']:.1f}"
