"""Which region of a picture each word of a sentence is about, by a trained DVSA model.

Source: Karpathy & Fei-Fei, Deep Visual-Semantic Alignments for Generating Image Descriptions, CVPR
2015, section 3.1.4.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from vse_jax import assembly, parallel, train_step
from vse_jax.boxes import WHOLE
from vse_jax.data.split import DataError
from vse_jax.data.tokenizer import Tokenizer
from vse_jax.encoding import Encoding
from vse_jax.models import markov
from vse_jax.models.dvsa import products
from vse_jax.models.regions import grid_boxes, pyramid_boxes
from vse_jax.train_state import TrainState

if TYPE_CHECKING:
    from vse_jax.experiment import Experiment

NETWORK = "dvsa"
# Captions aligned at a time: of 30 words and 1,024 channels, an eighth of a gigabyte.
AT_A_TIME = 1024


class AlignmentError(ValueError):
    """A model that aligns nothing, or regions whose boxes nobody knows."""


class AlignedPair(NamedTuple):
    """A sentence and a picture, by numbers.

    Attributes:
      scores: v_i . s_t of each of its l words t with each of the r regions i.
      regions: of each word the region that it is about.
      segments: neighbouring words about one region.
    """

    scores: Float[np.ndarray, "l r"]
    regions: Int[np.ndarray, " l"]
    segments: list[markov.Segment]


class AlignedSegment(NamedTuple):
    """Neighbouring words about one region.

    Attributes:
      text: the words.
      box: of the region, (y0, x0, y1, x1) as shares of the picture's height and width.
      score: the sum of the words' products with the region.
    """

    text: str
    box: Float[np.ndarray, "4"]
    score: float


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Which region of a picture each word of a sentence is about.

    Attributes:
      words: those that the tokenizer keeps, l of them.
      boxes: of the r regions looked at, (y0, x0, y1, x1) as shares of height and width.
      regions: of each word, the number of its box.
      scores: v_i . s_t of each word t with each region i.
      segments: the sentence in runs of words about one region, in order.
      unknown: the sentence's words that the model does not know, where they are told.
    """

    words: list[str]
    boxes: Float[np.ndarray, "r 4"]
    regions: Int[np.ndarray, " l"]
    scores: Float[np.ndarray, "l r"]
    segments: list[AlignedSegment]
    unknown: tuple[str, ...] = ()


def is_possible(config: ConfigDict) -> bool:
    """Whether the model of a config has words and regions to align."""
    return config.model.network == NETWORK


def check(config: ConfigDict) -> None:
    """Raises AlignmentError where the model of a config has no words and regions to align."""
    if not is_possible(config):
        raise AlignmentError(
            f"the model is of the network {config.model.network!r}, which ties no words to "
            f"regions: train with model.network={NETWORK}"
        )


def align_pairs(
    images: Encoding, texts: Encoding, *, beta: float, dtype: DTypeLike = jnp.float32
) -> list[AlignedPair]:
    """The alignment of each sentence with the picture in the same row.

    Args:
      images: of b pictures; `mask` is True for leading regions only.
      texts: of b sentences, words alone; likewise.
      beta: what it is worth that neighbouring words agree, in units of the scores.
      dtype: of the operands of the products.

    Raises:
      ValueError: `beta` is negative or not finite.
    """
    masks = np.asarray(texts.mask), np.asarray(images.mask)
    return assigned(Scored(pair_scores(images, texts, dtype), *masks), beta)


@partial(jax.jit, static_argnames="dtype")
def pair_scores(
    images: Encoding, texts: Encoding, dtype: DTypeLike = jnp.float32
) -> Float[Array, "b l r"]:
    """v_i . s_t of each word with each region of the picture in the same row; -inf of none.

    For arguments see `align_pairs`.
    """

    def of_one(image: Encoding, text: Encoding) -> Float[Array, "l r"]:
        image, text = jax.tree.map(lambda rows: rows[None], (image, text))
        return products(image, text, dtype)[0, 0].T

    with parallel.exact_products():
        return jax.vmap(of_one)(images, texts)


class Scored(NamedTuple):
    """Sentences, each with its picture: the scores, which words and which regions there are."""

    scores: Float[Array, "b l r"]
    words: Bool[np.ndarray, "b l"]
    regions: Bool[np.ndarray, "b r"]


def assigned(scored: Scored, beta: float) -> list[AlignedPair]:
    """The best alignment by scores; see `align_pairs`."""
    scores, words, regions = scored
    lengths, counts = words.sum(axis=1), regions.sum(axis=1)
    if not words.shape[1]:
        # No sentence has words.
        none = np.zeros(0, np.int32)
        return [AlignedPair(np.zeros((0, count), np.float32), none, []) for count in counts]
    found = np.asarray(markov.assign(scores, words, regions, beta=beta).regions)
    return [
        AlignedPair(own[:length, :count], chosen[:length], markov.segments(chosen[:length]))
        for own, chosen, length, count in zip(
            np.asarray(scores), found, lengths, counts, strict=True
        )
    ]


def known_words(tokenizer: Tokenizer, sentence: str) -> Int[np.ndarray, " l"]:
    """The token numbers of a sentence's words; raises DataError where the model knows none."""
    tokens, mask = tokenizer.tokenize([sentence])
    found = inside(tokens[0], mask[0])
    if np.isin(found, tokenizer.special).all():
        raise DataError(f"the sentence {sentence!r} has no word that the model knows")
    return found


def unknown_words(tokenizer: Tokenizer, sentence: str) -> tuple[str, ...]:
    """The words of a sentence that the model does not know; a pretrained one spells them out."""
    if tokenizer.preset == "pretrained":
        return ()
    words = tokenizer.words.normalizer.normalize_str(sentence).split()
    return tuple(word for word in words if tokenizer.words.token_to_id(word) is None)


def named(
    pair: AlignedPair, tokens: Int[np.ndarray, " l"], boxes: np.ndarray, tokenizer: Tokenizer
) -> Alignment:
    """An alignment in words and boxes.

    Args:
      pair: by numbers.
      tokens: numbers of the words.
      boxes: float32 [r, 4] of the picture's regions.
      tokenizer: of the words.

    Raises:
      DataError: there are not as many boxes as regions.
    """
    if len(boxes) != pair.scores.shape[1]:
        raise DataError(
            f"{len(boxes)} boxes of a picture that has {pair.scores.shape[1]} regions; there must "
            "be as many"
        )
    own = pair.scores[np.arange(len(tokens)), pair.regions]
    segments = [
        AlignedSegment(
            tokenizer.words.decode(tokens[start:end].tolist(), skip_special_tokens=False),
            boxes[region],
            float(own[start:end].sum()),
        )
        for start, end, region in pair.segments
    ]
    return Alignment(words_of(tokenizer, tokens), boxes, pair.regions, pair.scores, segments)


def cell_boxes(config: ConfigDict, backbone: nn.Module) -> Float[np.ndarray, "r 4"]:
    """The boxes of the regions that all pictures have, of a model that is given none.

    Args:
      config: its `model.image.features` is "pooled", "grid" or "pyramid".
      backbone: of pictures, by whose grid the boxes go.
    """
    kind, side = config.model.image.features, config.data.image_size
    if kind == "pooled":
        return WHOLE
    picture = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    seen, _ = jax.eval_shape(
        lambda key, image: backbone.init_with_output(key, image, train=False),
        jax.random.key(0),
        picture,
    )
    _, height, width, _ = seen.grid.shape
    if kind == "pyramid":
        return pyramid_boxes(height, width, config.model.image.cells)
    return grid_boxes(height, width)


def boxes_of_split(
    experiment: "Experiment", split: str
) -> Callable[[int], Float[np.ndarray, "r 4"]] | None:
    """Number of a picture of a split -> the boxes of its regions; None where they are not known."""
    known = experiment.dataset.splits[split]
    if (given := known.features) is not None:
        if (rows := given.boxes) is None:
            return None
        return lambda number: rows[given.start[number] :][: given.count[number]]
    if experiment.config.model.image.features == "boxes":
        assert known.boxes is not None
        return known.boxes.__getitem__
    backbone = experiment.built.model.image.backbone
    cells = cell_boxes(experiment.config, backbone)
    return lambda _: cells


def align_split(
    experiment: "Experiment",
    state: TrainState,
    split: str,
    beta: float | None = None,
    captions: Int[np.ndarray, " m"] | None = None,
    at_a_time: int = AT_A_TIME,
) -> Iterator[Alignment]:
    """The alignment of each caption of a split with its own picture, in order.

    A caption without known words has no segments.

    Args:
      experiment: of the run.
      state: of the model, host arrays.
      split: by name.
      beta: as of `align_pairs`; None: `evaluate.beta`.
      captions: numbers of those wanted; None: all.
      at_a_time: captions whose encodings are in memory together.

    Raises:
      AlignmentError: the model aligns nothing, or nobody knows the boxes of its regions.
    """
    check(experiment.config)
    boxes = boxes_of_split(experiment, split)
    if boxes is None:
        raise AlignmentError(
            f"the features of the pictures have no boxes: put {split}_boxes.npy beside them, as "
            "scripts/extract_features.py writes it"
        )
    beta = experiment.config.evaluate.beta if beta is None else beta
    examples = experiment.examples[split]
    for some, scored in scored_split(experiment, state, split, captions, at_a_time):
        for caption, pair in zip(some, assigned(scored, beta), strict=True):
            tokens = inside(examples.tokens[caption], examples.token_mask[caption])
            picture = int(examples.split.caption_image[caption])
            yield named(pair, tokens, boxes(picture), experiment.tokenizer)


def scored_split(
    experiment: "Experiment",
    state: TrainState,
    split: str,
    captions: Int[np.ndarray, " m"] | None = None,
    at_a_time: int = AT_A_TIME,
) -> Iterator[tuple[Int[np.ndarray, " b"], Scored]]:
    """The numbers of some captions and their scores, till all, or those wanted, are through.

    For arguments see `align_split`.
    """
    from vse_jax.data import pipeline  # here: it imports TensorFlow

    encoder, examples = experiment.encoder, experiment.examples[split]
    variables = encoder.variables(train_step.evaluation_params(state), state.batch_stats)
    dtype = assembly.compute_dtype(experiment.config)
    size = experiment.devices.shared(experiment.config.evaluate.batch_size)
    options = {"batch_size": size, **parallel.process_share()}
    wanted = np.arange(len(examples.tokens)) if captions is None else captions
    for start in range(0, len(wanted), at_a_time):
        some = wanted[start : start + at_a_time]
        pictures, rows = np.unique(examples.split.caption_image[some], return_inverse=True)
        images = encoder.images(variables, pipeline.image_batches(examples, pictures, **options))
        texts = encoder.texts(variables, pipeline.caption_batches(examples, some, **options))
        images = jax.tree.map(lambda values, rows=rows: values[rows], images)
        yield some, Scored(pair_scores(images, texts, dtype), texts.mask, images.mask)


def inside(tokens: Int[np.ndarray, " n"], mask: Bool[np.ndarray, " n"]) -> np.ndarray:
    """The tokens between the one that opens a sentence and the one that closes it."""
    return tokens[1 : max(int(mask.sum()) - 1, 1)]


def words_of(tokenizer: Tokenizer, tokens: Int[np.ndarray, " l"]) -> list[str]:
    """The words of these numbers."""
    return [str(tokenizer.words.id_to_token(int(token))) for token in tokens]
