"""What a training is told of itself: measures of the validation split, one of which decides."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vse_jax import assembly, caption_evaluation, evaluation
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

    Of a model that writes captions that is their perplexity, of others retrieval, by rsum.
    """
    if assembly.writes_captions(experiment.config):
        found = {"caption/perplexity": caption_evaluation.perplexity(experiment, state, SPLIT)}
        return Validation(found, "caption/perplexity", False, caption_evaluation.summary(found))
    embeddings = evaluation.encode(experiment, state, SPLIT)
    retrieved = evaluation.measure(experiment.dataset.splits[SPLIT], embeddings)
    return Validation(retrieved, "rsum", True, evaluation.summary(retrieved))
