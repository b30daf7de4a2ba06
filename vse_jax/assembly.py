"""From a config to its model: backbones, encoders, network, and the variables to start with."""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from ml_collections import ConfigDict

from vse_jax import config as configs
from vse_jax import network_checks, parallel
from vse_jax.data.content_words import function_words
from vse_jax.data.tokenizer import SPECIAL, Tokenizer
from vse_jax.models import networks
from vse_jax.models.backbones import catalogue, text_catalogue
from vse_jax.models.backbones.weights import WeightsError, load_config
from vse_jax.models.dvsa import BRNNReader
from vse_jax.models.image import ImageEncoder
from vse_jax.models.model import VisualSemanticModel
from vse_jax.models.multimodal_rnn import with_word_frequencies as with_frequencies
from vse_jax.models.pairwise import Tile
from vse_jax.models.scale import Scale
from vse_jax.models.text import GRUReader, TextEncoder
from vse_jax.models.vse_infinity import altered_tokens
from vse_jax.optimizer import Leaf, flatten, partition, unflatten
from vse_jax.similarity import Similarity, dot, negative_euclidean

# Where the variables of what may be pretrained are.
BACKBONES: Mapping[str, str] = {"image": "backbone", "text": "reader"}
# Weights may have rows for fewer than so many tokens more than the tokenizer: some round them up.
SPARE = 128


class Frozen(NamedTuple):
    """Whose backbones training leaves as they are."""

    image: bool
    text: bool


class Sources(NamedTuple):
    """The `config.json` of pretrained weights; None of a side that has none."""

    image: dict[str, Any] | None
    text: dict[str, Any] | None


class Words(NamedTuple):
    """What a model needs to know of token numbers and of class names.

    Attributes:
      vocabulary: how many token numbers there are.
      mask: stands for a masked word.
      special: are never altered.
      function_words: are about nothing in a picture.
      classes: how many a picture may be of.
    """

    vocabulary: int
    mask: int
    special: tuple[int, ...]
    function_words: tuple[int, ...] = ()
    classes: int = 1

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: ConfigDict, classes: int) -> "Words":
        """Those of a tokenizer and so many classes, as far as the config's model needs them.

        Raises:
          DataError: tokens are altered, and the tokenizer has none that stands for a masked one.
        """
        altered = config.model.text.alter > 0
        return cls(
            tokenizer.vocabulary,
            tokenizer.mask_token if altered else 0,
            tokenizer.special if altered else (),
            function_words(tokenizer) if config.model.network == "cam" else (),
            classes if classifies(config) else 1,
        )

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Words":
        """Those that `_asdict` made JSON of."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in found.items()
        }
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Built:
    """A model and the variables it starts from.

    Attributes:
      model: of pictures and sentences.
      variables: `params` and `batch_stats`, host arrays.
      sources: of its pretrained weights.
      drawn: names of the parameters that start at random, for no weights have them.
    """

    model: VisualSemanticModel
    variables: dict[str, Any]
    sources: Sources
    drawn: tuple[str, ...]


def compute_dtype(config: ConfigDict) -> jnp.dtype:
    """The type that layers compute in."""
    return jnp.dtype(config.precision)


def sources_of(config: ConfigDict) -> Sources:
    """What lies beside the weights that the config names; raises WeightsError."""
    return Sources(
        *(
            None if config.model[side].weights is None else load_config(config.model[side].weights)
            for side in BACKBONES
        )
    )


def frozen_backbones(config: ConfigDict) -> Frozen:
    """Which backbones `train.freeze` leaves whole as they are; traces the model, no more.

    A GRU that is frozen as it starts is not pretrained, so it counts as none.

    Raises:
      ConfigError: a pattern matches no parameter; or as `backbone_of`; or the backbone of pictures
        is frozen without pretrained weights and without a trained model to start from.
      WeightsError: the weights are missing.
    """
    if not config.train.freeze:
        return Frozen(image=False, text=False)
    trainable, frozen = partition(_shapes(config)["params"], config.train.freeze)

    def is_frozen(side: str) -> bool:
        inside = f"{side}/{BACKBONES[side]}/"
        own = [name for name in frozen if name.startswith(inside)]
        if any(name.startswith(inside) for name in trainable) or not own:
            return False
        pretrained = config.model[side].weights is not None
        if side == "image" and config.train.start_from is not None:
            pretrained |= all(re.fullmatch(config.train.start_parts, name) for name in own)
        if side == "image" and not pretrained:
            raise configs.ConfigError(
                "'train.freeze' freezes the backbone, which has no pretrained weights: "
                "set 'model.image.weights', or 'train.start_from'"
            )
        return pretrained

    return Frozen(*map(is_frozen, BACKBONES))


def with_width_of_towers(config: ConfigDict, features: int | None = None) -> ConfigDict:
    """The config, its `model.dimension` that of the towers where the network adds no layer.

    Args:
      config: of the run.
      features: width of the pictures' features where the data are such; None for pixels, or as
        long as nothing is loaded, when it is taken to be that of sentences.

    Raises:
      ConfigError: the towers have spaces of different widths; or as `backbone_of`.
      WeightsError: the weights are missing.
    """
    if config.model.network != "none":
        return config
    given = config.model.image.backbone == "none"
    shapes = _shapes(config, features)
    widths = {side: shapes[side].shape[-1] for side in BACKBONES}
    if given and features is None:
        widths["image"] = widths["text"]
    if widths["image"] != widths["text"]:
        seen = f"{config.model.image.backbone!r}, {config.model.image.features!r}"
        raise configs.ConfigError(
            "config field 'model.network' is 'none', but pictures have "
            f"{widths['image']} channels ({'features of the data' if given else seen}) and "
            f"sentences {widths['text']} "
            f"({config.model.text.backbone!r}, {config.model.text.features!r}): the towers have no "
            "space in common; choose a network, such as 'residual'"
        )
    config = config.copy_and_resolve_references()
    config.model.dimension = widths["text"]
    return config


def features_are_cached(config: ConfigDict, frozen: Frozen) -> Frozen:
    """What goes through its backbone once: it is frozen, and its inputs do not vary."""
    plain = config.data.crop_area == (1.0, 1.0) and not config.data.flip
    return Frozen(frozen.image and plain, frozen.text and not config.model.text.alter)


def similarity_of(config: ConfigDict) -> Similarity:
    """Of two embeddings: for training, evaluation and search alike."""
    return {"dot": dot, "negative_euclidean": negative_euclidean}[config.model.similarity]


def is_pairwise(config: ConfigDict) -> bool:
    """Whether the model has scores of pairs instead of embeddings to compare."""
    return config.model.network in network_checks.PAIRWISE


def writes_captions(config: ConfigDict) -> bool:
    """Whether the model writes captions."""
    return not compares(config) and config.objective.generation.weight > 0


def classifies(config: ConfigDict) -> bool:
    """Whether the model tells classes."""
    return config.objective.classification.weight > 0


def compares(config: ConfigDict) -> bool:
    """Whether the model compares pictures and sentences."""
    return config.model.network not in network_checks.CAPTIONERS


def _shapes(config: ConfigDict, features: int | None = None) -> dict[str, Any]:
    """The shapes of the `params`, and of the embeddings of one `image` and one `text`.

    Without a backbone the picture is `features` of that width, or of 1 where it is not known yet.
    """
    # Names depend neither on the vocabulary nor on the width of given features.
    model = make_model(config, Words(len(SPECIAL), 0, ()), sources_of(config))
    width = features or 1
    example = _example(config, width if config.model.image.backbone == "none" else None)

    def traced(key: PRNGKeyArray) -> dict[str, Any]:
        outputs, variables = model.init_with_output(key, example, train=False)
        widths = {side: outputs[side].pooled for side in BACKBONES if side in outputs}
        return {"params": variables["params"]} | widths

    return jax.eval_shape(traced, jax.random.key(0))


def backbone_of(config: ConfigDict) -> catalogue.Backbone:
    """The backbone of pictures that the config names.

    Raises:
      ConfigError: unknown, or with weights where there are none.
    """
    name, source = config.model.image.backbone, config.model.image.weights
    backbone = configs.choose(catalogue, name, "model.image.backbone")
    if source is not None and backbone.load is None:
        raise configs.ConfigError(
            f"{name!r} has no pretrained weights: unset 'model.image.weights' ({source})"
        )
    return backbone


def text_backbone_of(config: ConfigDict) -> text_catalogue.TextBackbone | None:
    """The pretrained reader of sentences that the config names; None for one from nothing."""
    name = config.model.text.backbone
    if name in network_checks.FROM_NOTHING:
        return None
    return configs.choose(text_catalogue, name, "model.text.backbone")


def make_model(
    config: ConfigDict,
    words: Words,
    sources: Sources,
    frozen: Frozen = Frozen(image=False, text=False),  # noqa: B008 (immutable)
) -> VisualSemanticModel:
    """The model without variables.

    Args:
      config: of the run.
      words: of its tokenizer.
      sources: of the pretrained weights.
      frozen: which backbones are used as they are, which matters in training alone.

    Raises:
      ConfigError: as `backbone_of`.
      WeightsError: `sources` describe something else.
    """
    section = config.model
    options = networks.Options(
        dimension=section.dimension,
        normalize=section.normalize,
        image_pooling=section.image.pooling,
        text_pooling=section.text.pooling,
        project_text=section.text.backbone != "gru",
        scaled_over=section.image.scaled_over,
        drop_parts=section.image.drop_parts,
        hidden=section.hidden,
        tile=Tile(*section.tile),
        vocabulary=words.vocabulary,
        words=section.text.words,
        cell=section.captioner.cell,
        drop_words=section.captioner.dropout,
        classes=words.classes,
        dtype=compute_dtype(config),
        axis_name=parallel.AXIS,
    )
    network = configs.choose(networks, section.network, "model.network")(options)
    generates, disagreement = config.objective.generation.weight > 0, config.objective.disagreement
    return VisualSemanticModel(
        image=_image_encoder(config, network.image, sources.image or {}, frozen.image),
        text=_text_encoder(config, network, sources.text or {}, frozen.text, words),
        pairwise=network.pairwise,
        generator=network.generator if generates else None,
        captioner=network.captioner if generates else None,
        classifier=network.classifier if classifies(config) else None,
        maps=("whole" if disagreement.second_order else "constant")
        if disagreement.weight
        else None,
        function_words=words.function_words,
        scales=_scales(config) or None,
    )


def _scales(config: ConfigDict) -> dict[str, Scale]:
    """Of the losses that learn how scores are scaled."""
    own, found = config.objective, {}
    if own.infonce.weight and own.infonce.learned:
        found["infonce"] = Scale(own.infonce.temperature)
    if own.sigmoid.weight:
        found["sigmoid"] = Scale(own.sigmoid.temperature, own.sigmoid.bias)
    return found


def _image_encoder(
    config: ConfigDict, head: nn.Module, source: dict[str, Any], frozen: bool
) -> ImageEncoder:
    section = config.model.image
    return ImageEncoder(
        head=head,
        backbone=_rematerialised(
            config, backbone_of(config).make(source, compute_dtype(config), parallel.AXIS)
        ),
        parts=section.features,
        cells=section.cells,
        frozen=frozen,
        keep_statistics=section.keep_statistics,
        normalize_features=section.normalize_features,
        dropout=section.dropout,
    )


def _text_encoder(
    config: ConfigDict,
    network: networks.Network,
    source: dict[str, Any],
    frozen: bool,
    words: Words,
) -> TextEncoder | None:
    if network.text is None or not (compares(config) or config.objective.embedding.weight):
        return None
    section, pretrained = config.model.text, text_backbone_of(config)
    alter = partial(
        altered_tokens,
        vocabulary=words.vocabulary,
        mask_token=words.mask,
        special=words.special,
        rate=section.alter,
    )
    return TextEncoder(
        reader=_untrained_reader(config, words)
        if pretrained is None
        else _rematerialised(config, pretrained.make(source, compute_dtype(config))),
        head=network.text,
        parts=section.features,
        words_only=network.words_only,
        frozen=frozen,
        dropout=0.0 if pretrained is None else section.dropout,
        alter=alter if section.alter else None,
    )


def _rematerialised(config: ConfigDict, backbone: Any) -> Any:
    """The backbone, its blocks computed again in the backward pass if the config says so."""
    if backbone is None or not config.train.remat:
        return backbone
    return backbone.clone(remat=True)


def _untrained_reader(config: ConfigDict, words: Words) -> nn.Module:
    """The reader that is trained from nothing: its sizes are the config's."""
    section = config.model.text
    shared = {
        "vocabulary": words.vocabulary,
        "width": section.words,
        "dropout": section.dropout,
        "dtype": compute_dtype(config),
    }
    if section.backbone == "brnn":
        return BRNNReader(**shared, hidden=config.model.hidden)
    return GRUReader(**shared, hidden=config.model.dimension, bidirectional=section.bidirectional)


def build_model(
    config: ConfigDict, words: Words, frozen: Frozen, features: int | None = None
) -> Built:
    """The model with its starting variables: random from the seed, or the pretrained weights.

    Args:
      config: of the run.
      words: of its tokenizer.
      frozen: `frozen_backbones(config)`.
      features: width of the pictures' features where the data are such; None for pixels.

    Raises:
      ConfigError: as `backbone_of`.
      WeightsError: the weights are missing or do not fit, or are not those of the tokenizer.
    """
    sources = sources_of(config)
    model = make_model(config, words, sources, frozen)
    reader_of = None if model.text is None else model.text.reader
    known = getattr(reader_of, "vocab_size", words.vocabulary)
    if not words.vocabulary <= known < words.vocabulary + SPARE:
        raise WeightsError(
            f"{config.model.text.weights}: the tokenizer beside it has {words.vocabulary} tokens, "
            f"the weights have {known}: it is the tokenizer of another model"
        )
    # Drawing what is pretrained would take longer to compile than the rest.
    given: dict[str, Leaf] = {}
    loads = {"image": backbone_of(config).load}
    if model.text is not None and (reader := text_backbone_of(config)) is not None:
        loads["text"] = reader.load
    for side, load in loads.items():
        if load is not None and config.model[side].weights is not None:
            module = getattr(getattr(model, side), BACKBONES[side])
            found = load(config.model[side].weights, module)
            given |= flatten({k: {side: {BACKBONES[side]: v}} for k, v in found.items()})

    @jax.jit
    def draw(key: PRNGKeyArray) -> dict[str, Leaf]:
        flat = flatten(model.init(key, _example(config, features), train=False))
        return {name: value for name, value in flat.items() if name not in given}

    drawn = draw(jax.random.fold_in(jax.random.key(config.seed), 0))
    variables = unflatten(jax.tree.map(np.array, drawn | given))
    random = tuple(name.removeprefix("params/") for name in drawn if name.startswith("params/"))
    return Built(model, {"params": {}, "batch_stats": {}} | variables, sources, random)


def _example(config: ConfigDict, features: int | None = None) -> dict[str, Array]:
    """A batch of one, for its shapes; with features of that width, or else with pixels."""
    size = config.data.image_size
    seen: dict[str, Array] = {
        "image": jnp.zeros((1, size, size, 3), jnp.uint8),
        "boxes": jnp.asarray([[[0.0, 0.0, 1.0, 1.0]]]),
    }
    if features is not None:
        seen = {"features": jnp.zeros((1, 1, features)), "feature_mask": jnp.ones((1, 1), bool)}
    return seen | {
        "tokens": jnp.zeros((1, 3), jnp.int32),
        "token_mask": jnp.ones((1, 3), bool),
        "label": jnp.zeros(1, jnp.int32),
    }


def with_variables(built: Built, variables: Mapping[str, Any], source: str, parts: str) -> Built:
    """The same starting from a trained model's variables, all of which must be this model's.

    Args:
      built: the model as it would start.
      variables: `params` and `batch_stats`.
      source: where they are of, for messages.
      parts: pattern of the names, as of `train.freeze`, of those that are taken; the rest stays.

    Raises:
      ConfigError: one of them, or of this model's, is missing or of another shape, or there are
        none.
    """

    def taken(tree: Mapping[str, Any]) -> dict[str, Leaf]:
        leaves = flatten(tree).items()
        return {k: v for k, v in leaves if re.fullmatch(parts, k.partition("/")[2])}

    def told(leaf: Leaf | None) -> str:
        return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"

    wanted, found = taken(built.variables), taken(variables)
    for name in sorted(wanted.keys() | found.keys()):
        here, there = told(wanted.get(name)), told(found.get(name))
        if here != there:
            raise configs.ConfigError(
                f"config field 'train.start_from': {source} is of another model: {name} is "
                f"{there} there, {here} here"
            )
    if not found:
        raise configs.ConfigError(
            f"config field 'train.start_parts' is {parts!r}, which matches nothing of {source}; "
            f"names look like {', '.join(sorted(flatten(variables['params']))[:3])}"
        )
    return dataclasses.replace(
        built,
        variables={**built.variables, **unflatten({**flatten(built.variables), **found})},
        drawn=tuple(name for name in built.drawn if not re.fullmatch(parts, name)),
    )


def with_word_vectors(
    built: Built, vectors: Float[np.ndarray, "v e"], found: Bool[np.ndarray, "v"]
) -> Built:
    """The same with the words that were `found` starting from the given vectors."""
    text = built.variables["params"]["text"]
    words = np.where(found[:, None], vectors, text["reader"]["words"])
    text = {**text, "reader": {**text["reader"], "words": words}}
    params = {**built.variables["params"], "text": text}
    return dataclasses.replace(built, variables={**built.variables, "params": params})


def with_word_frequencies(built: Built, log_frequencies: Float[np.ndarray, "v"]) -> Built:
    """The same with a captioner that at first writes words as often as these logarithms say."""
    captioner = with_frequencies(built.variables["params"]["captioner"], log_frequencies)
    params = {**built.variables["params"], "captioner": jax.tree.map(np.asarray, captioner)}
    return dataclasses.replace(built, variables={**built.variables, "params": params})
