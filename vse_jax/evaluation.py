"""Measures checkpoints: how training validates, and how the two reports come about."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vse_jax import assembly, parallel, report, train_step, workdir
from vse_jax.checkpoint import CheckpointError, Checkpoints
from vse_jax.data.split import Dataset, Split
from vse_jax.evaluators import codes, judgement, retrieval
from vse_jax.experiment import Experiment
from vse_jax.models.similarity import Similarity
from vse_jax.train_state import TrainState

log = logging.getLogger(__name__)
# Retrieved items shown for a query in the report.
SHOWN = 5
# Pictures below which a split is too small for its figures to mean much.
FEW = 100
# Pairs drawn to compare distances with true scenes.
JUDGED = 2000
# Of the histograms in the report.
BINS = 50


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Every picture and every caption of a split, float32 [n, d] and [m, d]."""

    images: np.ndarray
    captions: np.ndarray


def encode(experiment: Experiment, state: TrainState, split: str) -> Embeddings:
    """Embeddings of a split under the state's evaluation parameters (host arrays)."""
    from vse_jax.data import pipeline  # here: it imports TensorFlow

    variables = experiment.encoder.variables(train_step.evaluation_params(state), state.batch_stats)
    examples = experiment.examples[split]
    size = experiment.devices.shared(experiment.config.evaluate.batch_size)
    images = pipeline.image_batches(examples, batch_size=size, **parallel.process_share())
    captions = pipeline.caption_batches(
        examples.tokens, examples.token_mask, batch_size=size, **parallel.process_share()
    )
    return Embeddings(
        experiment.encoder.images(variables, images),
        experiment.encoder.texts(variables, captions),
    )


def measure(
    split: Split,
    embeddings: Embeddings,
    similarity: Similarity,
    protocol: str | None = None,
) -> dict[str, float]:
    """Retrieval metrics of a split, under `protocol` or, without one, over the whole split.

    Raises:
      EvaluationError: embeddings that are not finite, or a split of another size.
    """
    return retrieval.evaluate(
        protocol or f"all_{len(split.images)}",
        embeddings.images,
        embeddings.captions,
        split.caption_image,
        score=similarity.matrix,
    )


def oracle(split: Split) -> dict[str, float] | None:
    """Metrics of ranking by the true similarity of scenes and captions, where it is known."""
    if split.scenes is None or split.meanings is None:
        return None
    from vse_jax.data.shapes import similarity

    scores = similarity.oracle_scores(split.scenes, split.meanings)
    return retrieval.evaluate_scores(f"all_{len(split.images)}", scores, split.caption_image)


def judged(
    config: ConfigDict, split: Split, embeddings: Embeddings, similarity: Similarity
) -> dict[str, float]:
    """How distance goes with what people judged, and with the true scenes where these are known.

    `expert/...` and `crowdflower/...` are over the pairs of their files (`evaluate.expert`,
    `evaluate.crowdflower`) that are in the split, `scenes/...` over pairs drawn at random; see
    `judgement.agreement`.

    Raises:
      EvaluationError: a file that is none, or of which no pair is in the split.
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
        closeness = similarity.rows(
            jnp.asarray(embeddings.images[pairs[:, 0]]),
            jnp.asarray(embeddings.captions[pairs[:, 1]]),
        )
        values = judgement.agreement(-np.asarray(closeness), relevance)
        log.info(
            "%s: Spearman %.3f [%.3f, %.3f], Kendall %.3f, %d pairs", name, values["spearman"],
            values["spearman_low"], values["spearman_high"], values["kendall"], len(pairs),
        )  # fmt: skip
        found.update({f"{name}/{key}": value for key, value in values.items()})

    for name, read in (
        ("expert", judgement.read_expert),
        ("crowdflower", judgement.read_crowdflower),
    ):
        if config[name] is None:
            continue
        everything = read(config[name])
        known = [j for j in everything if j.image in rows and j.caption in captions]
        log.info("%s: %d of %d judged pairs are in the split", name, len(known), len(everything))
        pairs = np.array([(rows[j.image], captions[j.caption]) for j in known]).reshape(-1, 2)
        correlated(name, pairs, np.array([j.relevance for j in known]))
    if split.scenes is not None and split.meanings is not None:
        from vse_jax.data.shapes.similarity import scene_similarity

        rng = np.random.default_rng(0)
        pairs = rng.integers(0, (len(split.images), len(split.captions)), (JUDGED, 2))
        truth = [scene_similarity(split.meanings[c], split.scenes[i]) for i, c in pairs]
        correlated("scenes", pairs, np.array(truth))
    return found


def score_histograms(
    split: Split, embeddings: Embeddings, similarity: Similarity, sign: float = 1.0
) -> dict[str, list[float]] | None:
    """How right pairs score, and as many wrong ones drawn at random; None for one picture.

    Args:
      split: whose pairs.
      embeddings: of the split.
      similarity: of a picture and a caption.
      sign: -1 turns scores into distances.

    Returns:
      `edges` of BINS equal bins, `right` and `wrong`: the percentage of the pairs in each.
    """
    right, n = split.caption_image, len(split.images)
    if n < 2:
        return None
    wrong = (right + np.random.default_rng(0).integers(1, n, len(right))) % n
    captions = jnp.asarray(embeddings.captions)
    scores = {
        kind: sign * np.asarray(similarity.rows(jnp.asarray(embeddings.images[rows]), captions))
        for kind, rows in (("right", right), ("wrong", wrong))
    }
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), BINS)
    shares = {
        kind: (100 * np.histogram(values, edges)[0] / len(values)).tolist()
        for kind, values in scores.items()
    }
    return {"edges": edges.tolist()} | shares


def protocol_of(dataset: Dataset, name: str) -> str:
    """The protocol by which a split is reported: the data set's for the test, else all of it."""
    return dataset.protocol if name == "test" else f"all_{len(dataset.splits[name].images)}"


def best_state(experiment: Experiment, template: TrainState) -> TrainState:
    """The best checkpoint of a workdir, as host arrays.

    Raises:
      CheckpointError: there is none.
    """
    checkpoints = Checkpoints(experiment.workdir / "checkpoints" / "best", keep=2)
    state = checkpoints.restore(template)
    checkpoints.close()
    if state is None:
        raise CheckpointError(f"{experiment.workdir} has no checkpoint yet: train it first")
    return state


def write_report(
    experiment: Experiment,
    state: TrainState,
    warnings: Sequence[str] = (),
    command: str | None = None,
) -> dict[str, float]:
    """Evaluates the test split (validation where there is none); writes the two reports.

    Args:
      experiment: the run.
      state: to evaluate, as host arrays.
      warnings: of the training, to be shown.
      command: that trained it, to be shown.

    Returns:
      The metrics.
    """
    dataset = experiment.dataset
    name = "test" if "test" in dataset.splits else "validation"
    split = dataset.splits[name]
    protocol = protocol_of(dataset, name)
    embeddings = encode(experiment, state, name)
    similarity = assembly.similarity_of(experiment.config)
    metrics = measure(split, embeddings, similarity, protocol)
    truth = oracle(split)
    codebook = assembly.codebook_of(state.objective_state)
    if codebook is not None:
        metrics |= codes.evaluate(
            protocol, embeddings.images, embeddings.captions, split.caption_image, codebook
        )
    metrics |= judged(experiment.config.evaluate, split, embeddings, similarity)
    chance = retrieval.chance(split.caption_image)
    log.info("%s %s %s (chance %.1f)", dataset.name, name, summary(metrics), chance["rsum"])
    if len(split.images) < FEW:
        few = f"the {name} split has only {len(split.images)} pictures: its figures say little"
        log.warning(few)
        warnings = [*warnings, few]
    if truth is not None:
        log.info(
            "oracle %s; share of its rsum %.1f%%",
            summary(truth),
            100 * metrics["rsum"] / truth["rsum"],
        )
    if parallel.is_first_process():
        content: dict[str, Any] = {
            "config": experiment.config.to_dict(),
            "dataset": dataset.name,
            "split": name,
            "protocol": protocol,
            "step": int(state.step),
            "metrics": metrics,
            "chance": chance,
            "skipped": {reason: list(names) for reason, names in dataset.skipped.items()},
            "warnings": list(warnings),
        }
        distance = experiment.config.model.similarity == "negative_euclidean"
        sign, measured = (-1.0, "distance") if distance else (1.0, "similarity")
        if (scores := score_histograms(split, embeddings, similarity, sign)) is not None:
            content["scores"] = scores | {"measure": measured}
        if codebook is not None:
            content["code_usage"] = codes.usage(
                np.concatenate([embeddings.images, embeddings.captions]), codebook
            ).tolist()
        if truth is not None:
            content["oracle"] = truth
        if command is not None:
            content["command"] = command
        workdir.write_text(experiment.workdir / workdir.REPORT, json.dumps(content, indent=2))
        page = report.write(experiment.workdir, _queries(experiment, split, embeddings))
        log.info("report: %s", page)
    return metrics


def summary(metrics: Mapping[str, float]) -> str:
    """One line: recalls each way, medians and rsum."""
    ways = (
        f"{way} R@1/5/10 "
        + "/".join(f"{metrics[f'{way}/R@{k}']:.1f}" for k in (1, 5, 10))
        + f" MedR {metrics[f'{way}/MedR']:.0f}"
        for way in ("i2t", "t2i")
    )
    return f"{', '.join(ways)}, rsum {metrics['rsum']:.1f}"


def _queries(experiment: Experiment, split: Split, embeddings: Embeddings) -> dict[str, Any]:
    """Queries spread over the split, and what they retrieve, for the report."""
    count = experiment.config.evaluate.queries
    if count == 0:
        return {"i2t": [], "t2i": []}
    score = assembly.similarity_of(experiment.config).matrix
    ranks = retrieval.ranks(
        embeddings.images,
        embeddings.captions,
        np.arange(len(split.images)),
        split.caption_image,
        score=score,
    )
    pictures = np.unique(np.linspace(0, len(split.images) - 1, count).astype(int))
    captions = np.unique(np.linspace(0, len(split.captions) - 1, count).astype(int))
    shown = min(SHOWN, len(split.captions))
    found, scores = retrieval.top_k(
        embeddings.images[pictures], embeddings.captions, shown, score=score
    )
    i2t = [
        {
            "image": _thumbnail(split, int(picture)),
            "name": split.images[picture],
            "rank": int(ranks.i2t[picture]),
            "captions": [
                {
                    "text": split.captions[caption],
                    "score": float(score),
                    "right": bool(split.caption_image[caption] == picture),
                }
                for caption, score in zip(row, row_scores, strict=True)
            ],
        }
        for picture, row, row_scores in zip(pictures, found, scores, strict=True)
    ]
    shown = min(SHOWN, len(split.images))
    found, scores = retrieval.top_k(
        embeddings.captions[captions], embeddings.images, shown, score=score
    )
    t2i = [
        {
            "text": split.captions[caption],
            "name": split.images[split.caption_image[caption]],
            "rank": int(ranks.t2i[caption]),
            "images": [
                {
                    "image": _thumbnail(split, int(picture)),
                    "name": split.images[picture],
                    "score": float(score),
                    "right": bool(split.caption_image[caption] == picture),
                }
                for picture, score in zip(row, row_scores, strict=True)
            ],
        }
        for caption, row, row_scores in zip(captions, found, scores, strict=True)
    ]
    return {"i2t": i2t, "t2i": t2i}


def _thumbnail(split: Split, picture: int) -> str:
    return report.thumbnail(split.read([picture])[0])


def reported_command(folder: Path) -> str | None:
    """The command that the workdir's last report names, if there is one."""
    try:
        return report.read(folder).report.get("command")
    except report.ReportError:
        return None
