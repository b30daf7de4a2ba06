"""What a report says of a state: measures of the test split, scores, what queries retrieve."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vse_jax import (
    alignment,
    alignment_evaluation,
    assembly,
    cam_evaluation,
    caption_evaluation,
    evaluation,
    look,
    parallel,
    training_objective,
    workdir,
)
from vse_jax.codebook import Codebook
from vse_jax.data.split import Split, count_and_name, without_training
from vse_jax.evaluation import Embeddings
from vse_jax.evaluators import codes, retrieval
from vse_jax.experiment import Experiment
from vse_jax.report import page, runs, seen
from vse_jax.train_state import TrainState

log = logging.getLogger(__name__)
# Retrieved items shown for a query.
SHOWN = 5
# Pictures below which a split is too small for its figures to mean much.
FEW = 100
# Of the histograms.
BINS = 50
# Pixels of the longer side of pictures in which boxes are drawn.
ALIGNED_SIZE = 320


class Alignments(NamedTuple):
    """How well words were tied to regions, where that is known, and some captions that show it."""

    metrics: Mapping[str, float] = {}
    shown: Sequence[Mapping[str, Any]] = ()


NO_ALIGNMENTS = Alignments()


def report_state(
    experiment: Experiment,
    state: TrainState,
    warnings: Sequence[str] = (),
    command: str | None = None,
) -> dict[str, float]:
    """Evaluates the reported split under a state; writes the two reports into the workdir.

    Args:
      experiment: the run.
      state: to evaluate, as host arrays.
      warnings: of the training, to be shown.
      command: that trained it, to be shown.

    Returns:
      The metrics.
    """
    facts = {"config": experiment.config.to_dict(), "step": int(state.step), "command": command}
    if not assembly.compares(experiment.config):
        return _report_tasks(experiment, state, facts, warnings)
    name = evaluation.reported_split(experiment.dataset)
    return write_reports(
        experiment.workdir,
        experiment,
        evaluation.encode(experiment, state, name),
        facts,
        warnings,
        training_objective.codebook_of(state.objective_state),
        _alignments(experiment, state, name),
    )


def _report_tasks(
    experiment: Experiment, state: TrainState, facts: Mapping[str, Any], warnings: Sequence[str]
) -> dict[str, float]:
    """Measures a model that writes captions, tells classes, or both; writes the two reports."""
    config, name = experiment.config, evaluation.reported_split(experiment.dataset)
    split = experiment.dataset.splits[name]
    metrics: dict[str, float] = {}
    queries: dict[str, Any] = {}
    written, told = None, None
    if assembly.classifies(config) and (unknown := without_training(experiment.dataset)):
        more = f"no training picture shows these classes: {count_and_name(unknown)}"
        warnings = [*warnings, more]
    pictures = caption_evaluation.pictures_of(experiment, state, name)
    if assembly.writes_captions(config):
        metrics, written = caption_evaluation.evaluate(experiment, state, name, pictures)
        log.info("%s %s %s", experiment.dataset.name, name, caption_evaluation.summary(metrics))
        if not caption_evaluation.can_measure():
            more = "BLEU, ROUGE-L and CIDEr are left out: they need pip install 'vse-jax[caption]'"
            log.warning(more)
            warnings = [*warnings, more]
        queries["captions"] = _captioned(experiment, split, written)
    if look.is_possible(config):
        sentences = None if written is None else written.sentences
        found = cam_evaluation.evaluate(experiment, state, name, sentences, pictures)
        log.info("%s %s %s", experiment.dataset.name, name, cam_evaluation.summary(found.metrics))
        metrics |= found.metrics
        told = seen.of_classes(experiment.dataset.classes, found.classified)
        queries["looks"] = seen.looked(experiment, split, found, sentences)
    measured = {**facts, "metrics": metrics, "classification": told}
    save(experiment.workdir, experiment, measured, warnings, queries)
    return metrics


def _captioned(
    experiment: Experiment, split: Split, written: caption_evaluation.Written
) -> list[dict[str, Any]]:
    """Pictures spread over the split, what was written of them and what people wrote."""
    count, n = experiment.config.evaluate.queries, len(split.images)
    pictures = np.unique(np.linspace(0, n - 1, count).astype(int))
    return [
        {
            **_shown(split, int(picture)),
            "written": written.sentences[picture],
            "log_probability": float(written.captions.log_probabilities[picture, 0]),
            "said": split.captions_of(int(picture)),
        }
        for picture in pictures
    ]


def write_reports(
    folder: Path,
    experiment: Experiment,
    embeddings: Embeddings,
    facts: Mapping[str, Any],
    warnings: Sequence[str] = (),
    codebook: Codebook | None = None,
    alignments: Alignments = NO_ALIGNMENTS,
) -> dict[str, float]:
    """Measures embeddings of the reported split; writes the two reports.

    Args:
      folder: where they go.
      experiment: whose data it is.
      embeddings: of the reported split.
      facts: of where they come from, for the reports; see `page.Run`.
      warnings: to be shown.
      codebook: learned, if any.
      alignments: of words with regions, where the model has such.

    Returns:
      The metrics.
    """
    dataset = experiment.dataset
    name = evaluation.reported_split(dataset)
    split = dataset.splits[name]
    metrics = {**_metrics(experiment, name, embeddings, codebook), **alignments.metrics}
    beside = _beside(experiment, name, embeddings, codebook)
    chance, truth = retrieval.chance(split.caption_image), evaluation.oracle(split)
    shown = evaluation.summary(metrics)
    log.info("%s %s %s (chance %.1f)", dataset.name, name, shown, chance["rsum"])
    for protocol, found in beside.items():
        log.info("%s %s by %s %s", dataset.name, name, protocol, evaluation.summary(found))
    if codebook is not None:
        log.info(
            "from codes of %d bytes: rsum %.1f, of queries quantized too %.1f",
            len(codebook.centroids), metrics["codes/asymmetric/rsum"],
            metrics["codes/symmetric/rsum"],
        )  # fmt: skip
    if truth is not None:
        share = 100 * metrics["rsum"] / truth["rsum"]
        log.info("oracle %s; share of its rsum %.1f%%", evaluation.summary(truth), share)
    queries = _queries(experiment, split, embeddings) if parallel.is_first_process() else {}
    if alignments.shown:
        queries = {**queries, "alignments": alignments.shown}
    save(
        folder,
        experiment,
        {
            **facts,
            "metrics": metrics,
            "protocols": beside or None,
            "chance": chance,
            "scores": score_histograms(split, embeddings),
            "code_usage": _code_usage(embeddings, codebook),
            "oracle": truth,
        },
        warnings,
        queries,
    )
    return metrics


def save(
    folder: Path,
    experiment: Experiment,
    facts: Mapping[str, Any],
    warnings: Sequence[str],
    queries: Mapping[str, Any],
) -> None:
    """Writes `report.json` and `report.html`; the first process does.

    Args:
      folder: where they go.
      experiment: whose data were measured.
      facts: of what was measured, for `report.json`; those that are None are left out.
      warnings: to be shown, with one of a split that is too small.
      queries: what was retrieved or written, see `page.write`.
    """
    if not parallel.is_first_process():
        return
    dataset = experiment.dataset
    name = evaluation.reported_split(dataset)
    pictures = len(dataset.splits[name].images)
    if pictures < FEW:
        few = f"the {name} split has only {pictures} pictures: its figures say little"
        log.warning(few)
        warnings = [*warnings, few]
    content = {
        **facts,
        "dataset": dataset.name,
        "split": name,
        "protocol": evaluation.protocol_of(dataset, name),
        "skipped": {reason: list(names) for reason, names in dataset.skipped.items()},
        "warnings": list(warnings),
    }
    known = {key: value for key, value in content.items() if value is not None}
    workdir.write_text(folder / workdir.REPORT, json.dumps(known, indent=2))
    log.info("report: %s", page.write(folder, queries))


def reported_command(folder: Path) -> str | None:
    """The command that the workdir's last report names, if there is one."""
    try:
        return runs.read(folder).report.get("command")
    except runs.ReportError:
        return None


def score_histograms(split: Split, embeddings: Embeddings) -> dict[str, Any] | None:
    """How right pairs score, and as many wrong ones drawn at random; None for one picture.

    Returns:
      `measure`, "distance" or "similarity", `edges` of BINS equal bins, and `right` and `wrong`:
      the percentage of the pairs in each.
    """
    right, n = split.caption_image, len(split.images)
    if n < 2:
        return None
    wrong = (right + np.random.default_rng(0).integers(1, n, len(right))) % n
    captions = np.arange(len(right))
    distance = embeddings.similarity.is_distance
    scores = {
        kind: (-1.0 if distance else 1.0) * embeddings.pairs(rows, captions)
        for kind, rows in (("right", right), ("wrong", wrong))
    }
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), BINS)
    shares = {
        kind: (100 * np.histogram(values, edges)[0] / len(values)).tolist()
        for kind, values in scores.items()
    }
    measure = "distance" if distance else "similarity"
    return {"measure": measure, "edges": edges.tolist()} | shares


def _metrics(
    experiment: Experiment, name: str, embeddings: Embeddings, codebook: Codebook | None
) -> dict[str, float]:
    """Everything measured of a split: retrieval, from codes too, and how distance is judged."""
    split = experiment.dataset.splits[name]
    protocol = evaluation.protocol_of(experiment.dataset, name)
    metrics = _retrieval(protocol, split, embeddings, codebook)
    return metrics | evaluation.judged(experiment.config.evaluate, split, embeddings)


def _beside(
    experiment: Experiment, name: str, embeddings: Embeddings, codebook: Codebook | None
) -> dict[str, dict[str, float]]:
    """Retrieval of a split by each of the protocols that are reported beside its first."""
    split = experiment.dataset.splits[name]
    return {
        protocol: _retrieval(protocol, split, embeddings, codebook)
        for protocol in evaluation.protocols_beside(experiment.dataset, name)
    }


def _retrieval(
    protocol: str, split: Split, embeddings: Embeddings, codebook: Codebook | None
) -> dict[str, float]:
    """Retrieval by a protocol, from codes too where there are any."""
    metrics = evaluation.measure(split, embeddings, protocol)
    if codebook is None:
        return metrics
    images, captions = embeddings.images, embeddings.captions
    return metrics | codes.evaluate(protocol, images, captions, split.caption_image, codebook)


def _code_usage(embeddings: Embeddings, codebook: Codebook | None) -> list[float] | None:
    """Of each rank how often its codes are chosen, 1 is even; None without a codebook."""
    if codebook is None:
        return None
    both = np.concatenate([embeddings.images, embeddings.captions])
    return codes.usage(both, codebook).tolist()


def _queries(experiment: Experiment, split: Split, embeddings: Embeddings) -> dict[str, Any]:
    """Queries spread over the split, and what they retrieve, for the report."""
    count = experiment.config.evaluate.queries
    if count == 0:
        return {"i2t": [], "t2i": []}
    similarity = embeddings.similarity
    sign = -1.0 if similarity.is_distance else 1.0
    ranks = retrieval.ranks(
        embeddings.images,
        embeddings.captions,
        np.arange(len(split.images)),
        split.caption_image,
        score=similarity.matrix,
    )
    pictures = np.unique(np.linspace(0, len(split.images) - 1, count).astype(int))
    captions = np.unique(np.linspace(0, len(split.captions) - 1, count).astype(int))
    shown = min(SHOWN, len(split.captions))
    found, scores = retrieval.top_k(
        embeddings.images[pictures], embeddings.captions, shown, score=similarity.matrix
    )
    i2t = [
        {
            **_shown(split, int(picture)),
            "rank": int(ranks.i2t[picture]),
            "captions": [
                {
                    "text": split.captions[caption],
                    "score": sign * float(score),
                    "right": bool(split.caption_image[caption] == picture),
                }
                for caption, score in zip(row, row_scores, strict=True)
            ],
        }
        for picture, row, row_scores in zip(pictures, found, scores, strict=True)
    ]
    shown = min(SHOWN, len(split.images))
    found, scores = retrieval.top_k(
        embeddings.captions[captions],
        embeddings.images,
        shown,
        score=similarity.turned.matrix,
    )
    t2i = [
        {
            "text": split.captions[caption],
            "name": split.images[split.caption_image[caption]],
            "rank": int(ranks.t2i[caption]),
            "images": [
                {
                    **_shown(split, int(picture)),
                    "score": sign * float(score),
                    "right": bool(split.caption_image[caption] == picture),
                }
                for picture, score in zip(row, row_scores, strict=True)
            ],
        }
        for caption, row, row_scores in zip(captions, found, scores, strict=True)
    ]
    return {"i2t": i2t, "t2i": t2i}


def _alignments(experiment: Experiment, state: TrainState, name: str) -> Alignments:
    """Of a split; none of a model without words and regions, or where nobody knows the boxes."""
    split = experiment.dataset.splits[name]
    possible = alignment.is_possible(experiment.config)
    if not possible or alignment.boxes_of_split(experiment, name) is None:
        return NO_ALIGNMENTS
    metrics = alignment_evaluation.measured(experiment, state, name)
    count = experiment.config.evaluate.queries
    if split.read is None or not count:
        return Alignments(metrics)
    captions = np.unique(np.linspace(0, len(split.captions) - 1, count).astype(int))
    found = alignment.align_split(experiment, state, name, captions=captions)
    shown = [
        {
            **_shown(split, int(split.caption_image[caption]), ALIGNED_SIZE),
            "segments": [
                {"text": text, "box": box.tolist(), "score": score}
                for text, box, score in aligned.segments
            ],
        }
        for caption, aligned in zip(captions, found, strict=True)
    ]
    return Alignments(metrics, [item for item in shown if item["segments"]])


def _shown(split: Split, picture: int, size: int = 128) -> dict[str, str]:
    """A picture's thumbnail and name; where there are only features, its name and a caption."""
    name = split.images[picture]
    if split.read is not None:
        return {"image": page.thumbnail(split.read([picture])[0], size), "name": name}
    own = int(np.searchsorted(split.caption_image, picture))
    return {"image": "", "name": f"{name}: {split.captions[own]}"}
