"""The networks a config can name: what they put on top of the features of either side."""

from typing import Literal, NamedTuple

import flax.linen as nn
from jax.typing import DTypeLike

from vse_jax.models.cam import Classifier, JointHead
from vse_jax.models.dvsa import FragmentScore, RectifiedHead
from vse_jax.models.heads import LinearHead, Pooling, ResidualHead
from vse_jax.models.multimodal_rnn import MultimodalRNN
from vse_jax.models.pairwise import Tile
from vse_jax.models.sgraf import SAF, SGR, SGRAFHead
from vse_jax.models.vse_infinity import VSEInfinityImage, VSEInfinityText
from vse_jax.models.vsrn import CaptionGenerator, VSRNImage

__all__ = [
    "cam",
    "dvsa",
    "multimodal_rnn",
    "none",
    "residual",
    "saf",
    "sgr",
    "vse_infinity",
    "vsepp",
    "vsrn",
]


class Options(NamedTuple):
    """What a config says of a network.

    Attributes:
      dimension: of the common space.
      normalize: whether embeddings are scaled to length 1.
      image_pooling: how parts of a picture become one vector, where that is not the network's own.
      text_pooling: likewise of a sentence.
      project_text: whether words are not of the space's width yet.
      scaled_over: what VSRN scales to length 1, see `VSRNImage.over`.
      drop_parts: share of a picture's parts dropped in training, where sets vary.
      hidden: units between, of perceptrons.
      tile: pairs that a pairwise network looks at at a time.
      vocabulary: number of token ids.
      words: width of the vectors of words that a captioner reads.
      cell: of a captioner, "rnn" or "lstm".
      drop_words: rate of a captioner's dropout.
      classes: that a picture may be of.
      dtype: of the computation.
      axis_name: mapped axis over which batch statistics are shared.
    """

    dimension: int
    normalize: bool
    image_pooling: Pooling
    text_pooling: Pooling
    project_text: bool
    scaled_over: Literal["regions", "channels"]
    drop_parts: float
    hidden: int
    tile: Tile
    vocabulary: int
    words: int
    cell: Literal["rnn", "lstm"]
    drop_words: float
    classes: int
    dtype: DTypeLike
    axis_name: str


class Network(NamedTuple):
    """A network's own modules; see `VisualSemanticModel`.

    Attributes:
      image: the head of pictures.
      text: the head of sentences; None where captions are only written.
      pairwise: what compares them, if not a product of embeddings.
      generator: of captions, for a loss of training.
      captioner: writes captions.
      classifier: says what a picture is.
      words_only: whether the tokens that open and close a sentence are no parts of it.
    """

    image: nn.Module
    text: nn.Module | None = None
    pairwise: nn.Module | None = None
    generator: nn.Module | None = None
    captioner: nn.Module | None = None
    classifier: nn.Module | None = None
    words_only: bool = False


def none(options: Options) -> Network:
    """Features as embeddings: both sides have one space already, such as CLIP's."""
    return Network(
        LinearHead(None, options.image_pooling, options.normalize),
        LinearHead(None, options.text_pooling, options.normalize),
    )


def vsepp(options: Options) -> Network:
    """A linear layer of the mean; sentences as their GRU leaves them. See `LinearHead`."""
    o = options
    return Network(
        LinearHead(o.dimension, o.image_pooling, o.normalize, o.dtype),
        LinearHead(o.dimension if o.project_text else None, o.text_pooling, o.normalize, o.dtype),
    )


def residual(options: Options) -> Network:
    """A small residual perceptron on either side, for good features. See `ResidualHead`."""
    o = options

    def head(pooling: Pooling) -> nn.Module:
        return ResidualHead(
            o.dimension, o.hidden, pooling=pooling, normalize=o.normalize, dtype=o.dtype
        )

    return Network(head(o.image_pooling), head(o.text_pooling))


def vsrn(options: Options) -> Network:
    """Reasoning over regions by graph and GRU; captions are told from them in training."""
    o = options
    return Network(
        VSRNImage(
            o.dimension,
            over=o.scaled_over,
            normalize=o.normalize,
            dtype=o.dtype,
            axis_name=o.axis_name,
        ),
        vsepp(o).text,
        generator=CaptionGenerator(o.vocabulary, dtype=o.dtype),
    )


def dvsa(options: Options) -> Network:
    """Words that each find their region, products summed; of any length unless told otherwise."""
    o = options
    return Network(
        LinearHead(o.dimension, "mean", o.normalize, o.dtype),
        RectifiedHead(o.dimension, o.dtype),
        FragmentScore(o.tile, o.dtype),
        words_only=True,
    )


def multimodal_rnn(options: Options) -> Network:
    """DVSA's generator: a recurrent network that is shown a picture's features and writes."""
    o = options
    return Network(
        LinearHead(None, o.image_pooling, o.normalize),
        captioner=MultimodalRNN(
            o.vocabulary, o.hidden, o.words, o.cell, o.drop_words, dtype=o.dtype
        ),
    )


def cam(options: Options) -> Network:
    """Classes and captions of one embedding, with maps of where each looks. See `models/cam.py`."""
    o = options
    captioner = MultimodalRNN(
        o.vocabulary, o.hidden, o.words, o.cell, o.drop_words, squash=True, dtype=o.dtype
    )
    return Network(
        JointHead(o.dimension, o.dtype),
        LinearHead(o.dimension, o.text_pooling, normalize=False, dtype=o.dtype),
        captioner=captioner,
        classifier=Classifier(o.classes),
    )


def vse_infinity(options: Options) -> Network:
    """A perceptron for each region, generalized pooling on both sides."""
    o = options
    return Network(
        VSEInfinityImage(
            o.dimension, o.drop_parts, o.normalize, dtype=o.dtype, axis_name=o.axis_name
        ),
        VSEInfinityText(o.dimension, o.project_text, o.normalize, o.dtype),
    )


def saf(options: Options) -> Network:
    """SGRAF's similarity attention filtration."""
    return _sgraf(options, SAF(tile=options.tile, dtype=options.dtype))


def sgr(options: Options) -> Network:
    """SGRAF's similarity graph reasoning."""
    return _sgraf(options, SGR(tile=options.tile, dtype=options.dtype))


def _sgraf(options: Options, pairwise: nn.Module) -> Network:
    o = options
    return Network(
        SGRAFHead(o.dimension, dtype=o.dtype, axis_name=o.axis_name),
        SGRAFHead(o.dimension if o.project_text else None, batch_norm=False, dtype=o.dtype),
        pairwise,
    )
