"""From a config to its pieces: data, tokenizer, model, objective, optimizer."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from ml_collections import ConfigDict

from vse_jax import config as configs
from vse_jax import parallel
from vse_jax.codebook import Codebook
from vse_jax.data.tokenizer import SPECIAL
from vse_jax.models.backbones import catalogue
from vse_jax.models.backbones.weights import load_config
from vse_jax.models.image import ImageEncoder
from vse_jax.models.model import VisualSemanticModel
from vse_jax.models.text import GRUTextEncoder
from vse_jax.objectives.base import Objective, weighted_sum
from vse_jax.objectives.centers import Center
from vse_jax.objectives.infonce import infonce
from vse_jax.objectives.leap import leap
from vse_jax.objectives.margin import Hinge
from vse_jax.objectives.quantizer import Multitask, Quantizer
from vse_jax.objectives.triplet import triplet
from vse_jax.optimizer import Leaf, flatten, partition, unflatten
from vse_jax.similarity import Similarity, dot, negative_euclidean

BACKBONE = "image/backbone"


@dataclasses.dataclass(frozen=True)
class Built:
    """A model and the variables it starts from.

    Attributes:
      model: of pictures and sentences.
      variables: `params` and `batch_stats`, host arrays.
      backbone: the configuration of its pretrained backbone; None without one.
    """

    model: VisualSemanticModel
    variables: dict[str, Any]
    backbone: dict[str, Any] | None


def compute_dtype(config: ConfigDict) -> jnp.dtype:
    """The type that layers compute in."""
    return jnp.dtype(config.precision)


def backbone_is_frozen(config: ConfigDict) -> bool:
    """Whether `train.freeze` leaves the whole backbone as it is; traces the model, no more.

    Raises:
      ConfigError: a pattern matches no parameter; or as `backbone_of`; or it is frozen without
        pretrained weights.
      WeightsError: the weights are missing.
    """
    if not config.train.freeze or config.model.image.backbone == "none":
        return False
    source = config.model.image.weights
    model = make_model(config, len(SPECIAL), None if source is None else load_config(source))
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), _example(config))
    trainable, frozen = partition(shapes["params"], config.train.freeze)
    inside = f"{BACKBONE}/"
    if any(name.startswith(inside) for name in trainable):
        return False
    if source is None and any(name.startswith(inside) for name in frozen):
        raise configs.ConfigError(
            "'train.freeze' freezes the backbone, which has no pretrained weights: "
            "set 'model.image.weights'"
        )
    return True


def features_are_cached(config: ConfigDict, frozen: bool) -> bool:
    """Whether pictures go through the backbone once: it is frozen, and they do not vary."""
    return frozen and config.data.crop_area == (1.0, 1.0) and not config.data.flip


def similarity_of(config: ConfigDict) -> Similarity:
    """Of two embeddings: for training, evaluation and search alike."""
    return {"dot": dot, "negative_euclidean": negative_euclidean}[config.model.similarity]


def codebook_of(objective_state: Mapping[str, Any]) -> Codebook | None:
    """The learned codebook in the objective's state, as trained or as read from a checkpoint."""
    leap = objective_state.get("leap")
    if leap is None:
        return None
    state = leap.get("quantizer") if isinstance(leap, Mapping) else leap.quantizer
    if state is None:
        return None
    found = state["codebook"] if isinstance(state, Mapping) else state.codebook
    if isinstance(found, Mapping):
        found = Codebook(**found)
    return jax.tree.map(np.asarray, found)


def with_codebook(objective_state: Any, codebook: Codebook) -> Any:
    """A trained objective's state, one with a codebook, with another in its place."""
    own = objective_state["leap"]
    return {
        **objective_state,
        "leap": own.replace(quantizer=own.quantizer.replace(codebook=codebook)),
    }


def build_objective(config: ConfigDict) -> Objective:
    """The weighted sum of the terms whose weight is not 0."""
    terms: dict[str, tuple[float, Objective]] = {}
    similarity = similarity_of(config)
    section = config.objective.triplet
    if section.weight:
        terms["triplet"] = (
            section.weight,
            triplet(
                margin=section.margin,
                negatives=section.negatives,
                warmup_epochs=section.warmup_epochs,
                chunk=section.chunk,
                warmup=section.warmup,
                temperature=section.temperature,
                similarity=similarity,
                semantic=section.semantic,
            ),
        )
    section = config.objective.infonce
    if section.weight:
        objective = infonce(section.temperature, section.chunk, similarity)
        terms["infonce"] = (section.weight, objective)
    given = dict(configs.fields(config))
    if any(given[name] for name in configs.LEAP):
        terms["leap"] = (1.0, _leap(config.objective))
    return weighted_sum(terms)


def _leap(section: ConfigDict) -> Objective:
    """LEAP with the parts whose weight is not 0; their weights are inside."""
    return leap(
        Hinge(**section.leap),
        Center(**section.center, chunk=section.leap.chunk) if section.center.weight else None,
        Quantizer(**section.quantizer) if section.quantizer.weight else None,
        Multitask(**section.multitask) if section.multitask.weight else None,
    )


def backbone_of(config: ConfigDict) -> catalogue.Backbone:
    """The backbone that the config names.

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


def make_model(
    config: ConfigDict,
    vocabulary: int,
    backbone: Mapping[str, Any] | None,
    frozen: bool = False,
) -> VisualSemanticModel:
    """The model without variables.

    Args:
      config: of the run.
      vocabulary: how many token numbers there are.
      backbone: `Built.backbone`.
      frozen: whether the backbone is used as it is, which matters in training alone.

    Raises:
      ConfigError: as `backbone_of`.
      WeightsError: `backbone` describes something else.
    """
    section = config.model
    dtype = compute_dtype(config)
    return VisualSemanticModel(
        image=ImageEncoder(
            dimension=section.dimension,
            backbone=backbone_of(config).make(backbone or {}, dtype, parallel.AXIS),
            pool=section.image.features == "pooled",
            pooling=section.image.pooling,
            frozen=frozen,
            normalize_features=section.image.normalize_features,
            normalize=section.normalize,
            dropout=section.image.dropout,
            dtype=dtype,
        ),
        text=GRUTextEncoder(
            vocabulary=vocabulary,
            words=section.text.words,
            embedding=section.dimension,
            bidirectional=section.text.bidirectional,
            pooling=section.text.pooling,
            normalize=section.normalize,
            dropout=section.text.dropout,
            dtype=dtype,
        ),
    )


def build_model(
    config: ConfigDict, vocabulary: int, frozen: bool, features: int | None = None
) -> Built:
    """The model with its starting variables: random from the seed, or the pretrained weights.

    Args:
      config: of the run.
      vocabulary: how many token numbers there are.
      frozen: `backbone_is_frozen(config)`.
      features: width of the pictures' features where the data are such; None for pixels.

    Raises:
      ConfigError: as `backbone_of`.
      WeightsError: the weights are missing or do not fit.
    """
    source, load = config.model.image.weights, backbone_of(config).load
    backbone = None if source is None else load_config(source)
    model = make_model(config, vocabulary, backbone, frozen)
    pretrained = {} if source is None or load is None else load(source, model.image.backbone)
    # Drawing what is pretrained would take longer to compile than the rest.
    given = flatten({k: {"image": {"backbone": v}} for k, v in pretrained.items()})

    @jax.jit
    def draw(key: PRNGKeyArray) -> dict[str, Leaf]:
        flat = flatten(model.init(key, _example(config, features), train=False))
        return {name: value for name, value in flat.items() if name not in given}

    drawn = draw(jax.random.fold_in(jax.random.key(config.seed), 0))
    variables = unflatten(jax.tree.map(np.array, drawn | given))
    return Built(model, {"batch_stats": {}} | variables, backbone)


def _example(config: ConfigDict, features: int | None = None) -> dict[str, Array]:
    """A batch of one, for its shapes; with features of that width, or else with pixels."""
    size = config.data.image_size
    seen: dict[str, Array] = {"image": jnp.zeros((1, size, size, 3), jnp.uint8)}
    if features is not None:
        seen = {"features": jnp.zeros((1, 1, features)), "feature_mask": jnp.ones((1, 1), bool)}
    return seen | {
        "tokens": jnp.zeros((1, 3), jnp.int32),
        "token_mask": jnp.ones((1, 3), bool),
    }


def with_word_vectors(
    built: Built, vectors: Float[np.ndarray, "v e"], found: Bool[np.ndarray, "v"]
) -> Built:
    """The same with the words that were `found` starting from the given vectors."""
    text = dict(built.variables["params"]["text"])
    text["words"] = np.where(found[:, None], vectors, text["words"])
    params = {**built.variables["params"], "text": text}
    return dataclasses.replace(built, variables={**built.variables, "params": params})
