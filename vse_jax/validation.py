"""What a training is told of itself: measures of the validation split, one of which decides."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from vse_jax import assembly, cam_evaluation, caption_evaluation, evaluation
from vse_jax.experiment import Experiment
from vse_jax.train_state import TrainState

SPLIT = "validation"


class Validation(NamedTuple):
    """The validation split under a state.

    Attributes:
      metrics: all that was measured.
      measure: name of the one by which the best checkpoint is chosen.
      larger: whether the larger is the better.
      summary: one line for people.
    """

    metrics: Mapping[str, float]
    measure: str
    larger: bool
    summary: str

    def is_better_than(self, others: Iterable[float]) -> bool:
        """Whether the state is better than those of which this was measured before."""
        own = self.metrics[self.measure]
        return all(own > other if self.larger else own < other for other in others)


def validate(experiment: Experiment, state: TrainState) -> Validation:
    """Measures the validation split under a state (host arrays).

    Of a model that compares that is retrieval, by rsum; of one that writes captions their
    perplexity; of one that tells classes, too or alone, `cost`: the share of wrong classes, plus
    log perplexity, so that a hundredth of either counts the same.
    """
    if not assembly.compares(experiment.config):
        return _tasks(experiment, state)
    embeddings = evaluation.encode(experiment, state, SPLIT)
    retrieved = evaluation.measure(experiment.dataset.splits[SPLIT], embeddings)
    return Validation(retrieved, "rsum", True, evaluation.summary(retrieved))


def _tasks(experiment: Experiment, state: TrainState) -> Validation:
    """Of a model that writes captions, tells classes, or both."""
    config, pictures = experiment.config, caption_evaluation.pictures_of(experiment, state, SPLIT)
    metrics: dict[str, float] = {}
    said: list[str] = []
    cost = 0.0
    if assembly.classifies(config):
        logits = cam_evaluation.logits(experiment, state, pictures)
        found = cam_evaluation.classified(logits, experiment.dataset.splits[SPLIT])
        told = {} if found is None else found.metrics
        metrics |= {f"classify/{name}": value for name, value in told.items()}
        cost += 1.0 - metrics.get("classify/accuracy", 0.0) / 100
        said.append(cam_evaluation.summary(metrics))
    if assembly.writes_captions(config):
        perplexity = caption_evaluation.perplexity(experiment, state, SPLIT, pictures)
        metrics["caption/perplexity"] = perplexity
        cost += float(np.log(perplexity))
        said.append(caption_evaluation.summary(metrics))
    summary = ", ".join(filter(None, said))
    if not assembly.classifies(config):
        return Validation(metrics, "caption/perplexity", False, summary)
    return Validation({**metrics, "cost": cost}, "cost", False, summary)
