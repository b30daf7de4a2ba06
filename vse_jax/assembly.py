"""From a config to its pieces: data, tokenizer, model, objective, optimizer."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray
from ml_collections import ConfigDict

from vse_jax import config as configs
from vse_jax import parallel
from vse_jax.models.backbones import catalogue
from vse_jax.models.image import ImageEncoder
from vse_jax.models.model import VisualSemanticModel
from vse_jax.models.text import GRUTextEncoder
from vse_jax.objectives.base import Objective, weighted_sum
from vse_jax.objectives.infonce import infonce
from vse_jax.objectives.triplet import triplet
from vse_jax.optimizer import Leaf, flatten, multiplier, unflatten

BACKBONE = "image/backbone"


@dataclasses.dataclass(frozen=True)
class Built:
    """A model and the variables it starts from."""

    model: nn.Module
    variables: dict[str, Any]


def compute_dtype(config: ConfigDict) -> jnp.dtype:
    """The type that layers compute in."""
    return jnp.dtype(config.precision)


def backbone_is_frozen(config: ConfigDict) -> bool:
    """Whether `train.freeze` leaves the whole backbone as it is."""
    return multiplier(f"{BACKBONE}/any/kernel", config.train.freeze) is None


def features_are_cached(config: ConfigDict) -> bool:
    """Whether pictures go through the backbone once: it is frozen, and they do not vary."""
    still = config.data.crop_area == (1.0, 1.0) and not config.data.flip
    return backbone_is_frozen(config) and still


def build_objective(config: ConfigDict) -> Objective:
    """The weighted sum of the terms whose weight is not 0."""
    terms: dict[str, tuple[float, Objective]] = {}
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
            ),
        )
    section = config.objective.infonce
    if section.weight:
        terms["infonce"] = (section.weight, infonce(section.temperature, section.chunk))
    return weighted_sum(terms)


def make_model(config: ConfigDict, vocabulary: int) -> tuple[nn.Module, dict[str, Any] | None]:
    """The model, and the variables of its backbone where it is pretrained.

    Raises:
      ConfigError: unknown backbone, or a frozen one without weights.
      WeightsError: the weights are missing or do not fit.
    """
    section = config.model
    make = configs.choose(catalogue, section.image.backbone, "model.image.backbone")
    frozen = backbone_is_frozen(config)
    if frozen and section.image.weights is None:
        raise configs.ConfigError(
            "'train.freeze' freezes the backbone, which has no pretrained weights: "
            "set 'model.image.weights'"
        )
    dtype = compute_dtype(config)
    backbone, pretrained = make(section.image.weights, dtype, parallel.AXIS)
    model = VisualSemanticModel(
        image=ImageEncoder(
            dimension=section.dimension,
            backbone=backbone,
            pool=section.image.features == "pooled",
            pooling=section.image.pooling,
            frozen=frozen,
            normalize_features=section.image.normalize_features,
            dropout=section.image.dropout,
            dtype=dtype,
        ),
        text=GRUTextEncoder(
            vocabulary=vocabulary,
            words=section.text.words,
            embedding=section.dimension,
            bidirectional=section.text.bidirectional,
            pooling=section.text.pooling,
            dropout=section.text.dropout,
            dtype=dtype,
        ),
    )
    return model, pretrained


def build_model(config: ConfigDict, vocabulary: int) -> Built:
    """The model with its starting variables: random from the seed, or the pretrained weights.

    Raises:
      ConfigError, WeightsError: as `make_model`.
    """
    model, pretrained = make_model(config, vocabulary)
    size = config.data.image_size
    example = {
        "image": jnp.zeros((1, size, size, 3), jnp.uint8),
        "tokens": jnp.zeros((1, 3), jnp.int32),
        "token_mask": jnp.ones((1, 3), bool),
    }
    # Drawing what is pretrained would take longer to compile than the rest.
    given = flatten({k: {"image": {"backbone": v}} for k, v in (pretrained or {}).items()})

    @jax.jit
    def draw(key: PRNGKeyArray) -> dict[str, Leaf]:
        flat = flatten(model.init(key, example, train=False))
        return {name: value for name, value in flat.items() if name not in given}

    drawn = draw(jax.random.fold_in(jax.random.key(config.seed), 0))
    variables = unflatten(jax.tree.map(np.array, drawn | given))
    return Built(model, {"batch_stats": {}} | variables)


def with_word_vectors(
    built: Built, vectors: Float[np.ndarray, "v e"], found: Bool[np.ndarray, "v"]
) -> Built:
    """The same with the words that were `found` starting from the given vectors."""
    text = dict(built.variables["params"]["text"])
    text["words"] = np.where(found[:, None], vectors, text["words"])
    params = {**built.variables["params"], "text": text}
    return Built(built.model, {**built.variables, "params": params})
