"""A model as it lies on disk: a workdir's checkpoint, or a folder of safetensors."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from ml_collections import ConfigDict

from vse_jax import (
    assembly,
    checkpoint,
    hub,
    pretrained,
    train_step,
    training_objective,
    workdir,
)
from vse_jax.codebook import Codebook
from vse_jax.data import tokenizer
from vse_jax.models.model import VisualSemanticModel

# The parameters of a folder that has no checkpoints, and of one that looks at boxes the weights
# whose classifier ranks them.
WEIGHTS, RANKING = "model.safetensors", "ranking"


class Trained(NamedTuple):
    """What makes a model.

    Attributes:
      config: of the run.
      origin: what `workdir.claim` was given, and a digest of the tokenizer; of published weights
        what a model is made of, no more.
      vocabulary: the tokenizer as JSON.
      tokenizer: the same, made ready.
      model: without variables.
      variables: `params` to evaluate and `batch_stats`, host arrays.
      codebook: learned; None where the model has none.
      step: of the checkpoint.
    """

    config: ConfigDict
    origin: dict[str, Any]
    vocabulary: str
    tokenizer: tokenizer.Tokenizer
    model: VisualSemanticModel
    variables: dict[str, Any]
    codebook: Codebook | None
    step: int

    @property
    def features(self) -> int | None:
        """The width of the pictures' features; None of a model that takes pixels."""
        return self.origin.get("features")

    @property
    def classes(self) -> list[str]:
        """Names of the classes that the model tells; none where it tells none."""
        return self.origin.get("classes", [])

    @property
    def looks_at_boxes(self) -> bool:
        """Whether the model looks at boxes: given ones, or else proposed ones."""
        return self.features is None and self.config.model.image.features == "boxes"


def read(folder: str | os.PathLike[str]) -> Trained:
    """The best checkpoint of a workdir, or the newest that is whole; or an exported folder.

    Args:
      folder: of either, or of the published weights of CLIP or SigLIP, see `pretrained`;
        "hub:OWNER/NAME" is fetched from the Hugging Face hub.

    Raises:
      WorkdirError: none of these, or its tokenizer is another one.
      CheckpointError: no usable checkpoint, or the exported file is damaged.
      WeightsError, DataError, ConfigError: of published weights, as `pretrained.read`.
    """
    path = hub.located(folder)
    if pretrained.lies_in(path):
        return _of_published(path)
    config, origin = workdir.read_config(path), workdir.read_origin(path)
    workdir.check_tokenizer(path)
    preset, most = config.data.tokenizer, config.data.max_tokens
    exported = (path / WEIGHTS).is_file() and not (path / "checkpoints").exists()
    if exported and (path / RANKING).is_dir():
        config.model.image.weights = str((path / RANKING).absolute())
    variables, codebook, step = _of_file(path / WEIGHTS) if exported else _of_run(path)
    return Trained(
        config,
        origin,
        (path / workdir.TOKENIZER).read_text(encoding="utf-8"),
        tokenizer.load(path / workdir.TOKENIZER, preset, most),
        model_of(config, origin),
        variables,
        codebook,
        step,
    )


def model_of(config: ConfigDict, origin: Mapping[str, Any]) -> VisualSemanticModel:
    """The model of a run, by what its workdir says of weights and words."""
    words = assembly.Words.from_json(origin["words"])
    return assembly.make_model(config, words, assembly.Sources(**origin["sources"]))


def _of_published(path: Path) -> Trained:
    config, words, own, built = pretrained.read(path)
    vocabulary = own.to_json()
    origin: dict[str, Any] = {
        "sources": built.sources._asdict(),
        "words": words._asdict(),
        "features": None,
        "classes": [],
        "tokenizer": workdir.digest(vocabulary),
    }
    return Trained(config, origin, vocabulary, own, built.model, built.variables, None, 0)


def _of_run(path: Path) -> tuple[dict[str, Any], Codebook | None, int]:
    tree = checkpoint.read_newest(path / "checkpoints" / "best")
    codebook = training_objective.codebook_of(tree.get("objective_state", {}))
    return train_step.evaluation_variables(tree), codebook, int(tree["step"])


def write_file(trained: Trained, path: Path) -> None:
    """Writes variables and codebook as safetensors, with step and checksums beside them."""
    tree: dict[str, Any] = dict(trained.variables)
    if trained.codebook is not None:
        told = trained.codebook._asdict().items()
        tree["codebook"] = {name: value for name, value in told if value is not None}
    flat = traverse_util.flatten_dict(tree, sep="/")
    # The library writes what lies in memory, whatever its strides.
    arrays = {name: np.array(leaf, order="C") for name, leaf in flat.items()}
    sums = {name: checkpoint.checksum(leaf) for name, leaf in arrays.items()}
    about = {"format": "vse_jax", "step": str(trained.step), "checksums": json.dumps(sums)}
    safetensors.numpy.save_file(arrays, path, metadata=about)


def _of_file(path: Path) -> tuple[dict[str, Any], Codebook | None, int]:
    """What `write_file` wrote; raises CheckpointError where it is damaged, or another's."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = file.metadata() or {}
        step, sums = int(about["step"]), json.loads(about["checksums"])
        found = checkpoint.checked(safetensors.numpy.load_file(path), sums)
    except KeyError as error:
        raise checkpoint.CheckpointError(f"{path} is no export of vse_jax") from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} cannot be read: {error}") from error
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"{path} is damaged: {error}") from error
    tree = traverse_util.unflatten_dict(found, sep="/")
    codebook = Codebook(**tree.pop("codebook")) if "codebook" in tree else None
    return {"params": {}, "batch_stats": {}} | tree, codebook, step
