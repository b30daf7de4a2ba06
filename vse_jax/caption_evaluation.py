"""Measures a model that writes captions: how likely it finds people's, how good its own are."""

import importlib.util
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vse_jax import parallel, train_step
from vse_jax.caption_writer import special_tokens
from vse_jax.captioning.captions import Captions
from vse_jax.data.split import Split, count_and_name
from vse_jax.evaluators import captioning
from vse_jax.evaluators.blocks import EvaluationError
from vse_jax.experiment import Experiment
from vse_jax.train_state import TrainState

log = logging.getLogger(__name__)
# Nats a word beyond which a perplexity would be no number to TensorBoard, which keeps float32.
MOST = 80.0


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


def perplexity(
    experiment: Experiment,
    state: TrainState,
    split: str,
    pictures: Float[np.ndarray, "n d"] | None = None,
) -> float:
    """exp of the mean of -log p over every word of people's captions, and their ends.

    Args:
      experiment: of a captioner.
      state: of the model, host arrays.
      split: by name.
      pictures: `pictures_of` the split, where they are at hand.

    Raises:
      EvaluationError: it is beyond all numbers, as the training has diverged.
    """
    examples = experiment.examples[split]
    pictures = pictures_of(experiment, state, split) if pictures is None else pictures
    assert experiment.writer is not None
    costs = experiment.writer.costs(
        _variables(experiment, state),
        pictures[examples.split.caption_image],
        examples.tokens,
        examples.token_mask,
    )
    words = np.maximum(examples.token_mask.sum(axis=1) - 1, 0)
    mean = float(costs.astype(np.float64).sum() / max(int(words.sum()), 1))
    if not mean < MOST:
        raise EvaluationError(
            f"a word of the {split} captions costs {mean:.4g} nats: the training has diverged; "
            "lower train.learning_rate"
        )
    return float(np.exp(mean))


def write(
    experiment: Experiment,
    state: TrainState,
    split: str,
    beams: int,
    pictures: Float[np.ndarray, "n d"] | None = None,
) -> Written:
    """The best captions of every picture of a split, of `beams` kept in the search.

    Other arguments as of `perplexity`.
    """
    config, words = experiment.config, experiment.tokenizer
    pictures = pictures_of(experiment, state, split) if pictures is None else pictures
    assert experiment.writer is not None
    begun = time.perf_counter()
    found = experiment.writer.best(
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


def evaluate(
    experiment: Experiment,
    state: TrainState,
    split: str,
    pictures: Float[np.ndarray, "n d"] | None = None,
) -> tuple[dict[str, float], Written]:
    """Everything measured of a split, and its captions by `evaluate.beams`.

    Arguments as of `perplexity`.

    Returns:
      `caption/perplexity`, `caption/vocabulary` (words that can be written), `caption/distinct`
      (percent of the captions that are different ones) and the figures of `captioning.evaluate`, as
      far as `can_measure`: `caption/...` of the captions of all beams, `caption/greedy/...` of one,
      `caption/nearest/...` of the baseline `captioning.nearest_captions`.
    """
    said, training = (experiment.dataset.splits[name] for name in (split, "train"))
    beams = experiment.config.evaluate.beams
    pictures = pictures_of(experiment, state, split) if pictures is None else pictures
    written = write(experiment, state, split, beams, pictures)
    special = len(experiment.tokenizer.special)
    metrics: dict[str, float] = {
        "caption/perplexity": perplexity(experiment, state, split, pictures),
        "caption/vocabulary": experiment.tokenizer.vocabulary - special,
        "caption/distinct": 100 * len(set(written.sentences)) / len(written.sentences),
    }
    log.info("%d captions by %d beams in %.1f s", len(said.images), beams, written.seconds)
    if empty := sum(not sentence for sentence in written.sentences):
        log.warning(
            "%d of %d captions have no word: to end at once is likelier than any caption; train "
            "longer, or set evaluate.length_power above 0",
            empty, len(written.sentences),
        )  # fmt: skip
    if not can_measure():
        return metrics, written
    judged = _judged(said)
    if not judged:
        return metrics, written
    references = [said.captions_of(picture) for picture in judged]

    def of_judged(sentences: Sequence[str]) -> list[str]:
        return [sentences[picture] for picture in judged]

    metrics |= captioning.evaluate(of_judged(written.sentences), references)
    # Some may be there for their class alone.
    told, caption_image = np.unique(training.caption_image, return_inverse=True)
    others = {
        "greedy": write(experiment, state, split, 1, pictures).sentences,
        "nearest": captioning.nearest_captions(
            pictures,
            pictures_of(experiment, state, "train")[told],
            training.captions,
            caption_image,
        ),
    }
    for name, sentences in others.items():
        found = captioning.evaluate(of_judged(sentences), references, java=False)
        metrics |= {f"caption/{name}/{key.split('/')[1]}": v for key, v in found.items()}
    return metrics, written


def _judged(said: Split) -> list[int]:
    """Numbers of the pictures that have a caption with a word in it; the log tells of others.

    Those that have no caption at all have been told of.
    """
    numbers = np.unique(said.caption_image).tolist()
    judged = [number for number in numbers if any(map(captioning.words, said.captions_of(number)))]
    if without := sorted(set(numbers).difference(judged)):
        log.warning(
            "no caption has a word of letters a to z or digits, so that what is written of them is "
            "not measured: %s",
            count_and_name([said.images[number] for number in without]),
        )
    return judged


def can_measure() -> bool:
    """Whether the package that measures captions, the extra [caption], is there."""
    return importlib.util.find_spec("pycocoevalcap") is not None


def summary(metrics: dict[str, float]) -> str:
    """One line: perplexity, BLEU and CIDEr, as far as they are known."""
    names = ("perplexity", *(f"BLEU-{n}" for n in range(1, 5)), "ROUGE-L", "CIDEr")
    return ", ".join(
        f"{name} {metrics[f'caption/{name}']:.1f}" for name in names if f"caption/{name}" in metrics
    )


def _variables(experiment: Experiment, state: TrainState) -> object:
    return experiment.encoder.variables(train_step.evaluation_params(state), state.batch_stats)
