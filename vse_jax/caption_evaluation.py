"""Measures a model that writes captions: how likely it finds people's, how good its own are."""

import importlib.util
import itertools
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vse_jax import parallel, train_step
from vse_jax.caption_writer import CaptionWriter
from vse_jax.captioning.decoding import Captions, SpecialTokens
from vse_jax.data.split import Split
from vse_jax.data.tokenizer import Tokenizer
from vse_jax.evaluators import captioning
from vse_jax.evaluators.blocks import EvaluationError
from vse_jax.experiment import Experiment
from vse_jax.train_state import TrainState

log = logging.getLogger(__name__)


class Written(NamedTuple):
    """Captions of the pictures of a split.

    Attributes:
      sentences: the best of each picture.
      captions: of the search.
      seconds: that the search took, encoding apart.
    """

    sentences: list[str]
    captions: Captions
    seconds: float


def pictures_of(experiment: Experiment, state: TrainState, split: str) -> Float[np.ndarray, "n d"]:
    """What the captioner is shown of every picture of a split."""
    from vse_jax.data import pipeline  # here: it imports TensorFlow

    size = experiment.devices.shared(experiment.config.evaluate.batch_size)
    batches = pipeline.image_batches(
        experiment.examples[split], batch_size=size, **parallel.process_share()
    )
    return experiment.encoder.images(_variables(experiment, state), batches)


def perplexity(experiment: Experiment, state: TrainState, split: str) -> float:
    """exp of the mean of -log p over every word of people's captions, and their ends.

    Raises EvaluationError where it is no number.
    """
    examples = experiment.examples[split]
    pictures = pictures_of(experiment, state, split)
    costs = CaptionWriter(experiment.built.model, experiment.devices).costs(
        _variables(experiment, state),
        pictures[examples.split.caption_image],
        examples.tokens,
        examples.token_mask,
    )
    words = np.maximum(examples.token_mask.sum(axis=1) - 1, 0)
    found = float(np.exp(costs.astype(np.float64).sum() / max(int(words.sum()), 1)))
    if not np.isfinite(found):
        raise EvaluationError(f"the perplexity of the {split} captions is {found}")
    return found


def write(experiment: Experiment, state: TrainState, split: str, beams: int) -> Written:
    """The best captions of every picture of a split, of `beams` kept in the search."""
    config, words = experiment.config, experiment.tokenizer
    pictures = pictures_of(experiment, state, split)
    begun = time.perf_counter()
    found = CaptionWriter(experiment.built.model, experiment.devices).best(
        _variables(experiment, state),
        pictures,
        special_tokens(words),
        config.data.max_tokens - 1,
        beams=beams,
        length_power=config.evaluate.length_power if beams > 1 else 0.0,
    )
    return Written(
        words.sentences(np.asarray(found.tokens)[:, 0]), found, time.perf_counter() - begun
    )


def measure(split: Split, sentences: Sequence[str]) -> dict[str, float]:
    """`captioning.evaluate` of one sentence a picture against people's; {} without its package."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return {}
    first = np.searchsorted(split.caption_image, np.arange(len(split.images) + 1))
    references = [split.captions[a:b] for a, b in itertools.pairwise(first)]
    return captioning.evaluate(sentences, references)


def special_tokens(words: Tokenizer) -> SpecialTokens:
    """What a search must know of a tokenizer; only words are written."""
    start, end, unknown = words.opening, words.closing, words.unknown
    return SpecialTokens(start, end, words.pad, (words.pad, start, unknown))


def summary(metrics: dict[str, float]) -> str:
    """One line: perplexity, BLEU and CIDEr, as far as they are known."""
    names = ("perplexity", *(f"BLEU-{n}" for n in range(1, 5)), "ROUGE-L", "CIDEr")
    return ", ".join(
        f"{name} {metrics[f'caption/{name}']:.1f}" for name in names if f"caption/{name}" in metrics
    )


def _variables(experiment: Experiment, state: TrainState) -> object:
    return experiment.encoder.variables(train_step.evaluation_params(state), state.batch_stats)
