"""From a config to what a model is trained for: its objective, and the codebook this may learn."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vse_jax import assembly, network_checks
from vse_jax import config as configs
from vse_jax.codebook import Codebook
from vse_jax.objectives.base import Objective, weighted_sum
from vse_jax.objectives.centers import Center
from vse_jax.objectives.classification import classification
from vse_jax.objectives.disagreement import disagreement
from vse_jax.objectives.generation import generation
from vse_jax.objectives.infonce import infonce
from vse_jax.objectives.joint_embedding import joint_embedding
from vse_jax.objectives.leap import leap
from vse_jax.objectives.margin import Hinge
from vse_jax.objectives.quantizer import Multitask, Quantizer
from vse_jax.objectives.sigmoid import sigmoid
from vse_jax.objectives.triplet import triplet


def build(config: ConfigDict) -> Objective:
    """The weighted sum of the terms whose weight is not 0."""
    terms: dict[str, tuple[float, Objective]] = {}
    similarity = assembly.similarity_of(config)
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
        objective = infonce(section.temperature, section.chunk, similarity, section.exchange)
        terms["infonce"] = (section.weight, objective)
    section = config.objective.sigmoid
    if section.weight:
        terms["sigmoid"] = (section.weight, sigmoid(section.chunk, similarity, section.exchange))
    if config.objective.generation.weight:
        terms["generation"] = (config.objective.generation.weight, generation())
    if config.objective.classification.weight:
        terms["classification"] = (config.objective.classification.weight, classification())
    section = config.objective.disagreement
    if section.weight:
        terms["disagreement"] = (section.weight, disagreement(section.kind))
    section = config.objective.embedding
    if section.weight:
        terms["embedding"] = (section.weight, joint_embedding(section.kind, section.temperature))
    given = dict(configs.fields(config))
    if any(given[name] for name in network_checks.LEAP):
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
