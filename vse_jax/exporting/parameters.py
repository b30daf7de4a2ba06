"""Parameters alone, by Orbax; and a folder that `vse_jax.load` takes, by safetensors."""

import json
import os
import shutil
from pathlib import Path

import orbax.checkpoint as ocp

from vse_jax import config as configs
from vse_jax import trained as trained_models
from vse_jax import workdir
from vse_jax.models.backbones import weights
from vse_jax.trained import RANKING, WEIGHTS, Trained


def write_orbax(trained: Trained, folder: Path) -> None:
    """`parameters`, a checkpoint of nested dicts `params` and `batch_stats`."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "parameters").absolute(), trained.variables)
    (folder / workdir.CONFIG).write_text(configs.to_json(published(trained)), encoding="utf-8")


def write_safetensors(trained: Trained, folder: Path) -> None:
    """Parameters and codebook, config, origin and tokenizer; what ranks boxes, where that is."""
    trained_models.write_file(trained, folder / WEIGHTS)
    (folder / workdir.TOKENIZER).write_text(trained.vocabulary, encoding="utf-8")
    (folder / workdir.ORIGIN).write_text(json.dumps(trained.origin, indent=2), encoding="utf-8")
    (folder / workdir.CONFIG).write_text(configs.to_json(published(trained)), encoding="utf-8")
    source = trained.config.model.image.weights
    if trained.looks_at_boxes and source is not None:
        (folder / RANKING).mkdir()
        found = weights.locate(source)
        for path in sorted(found.iterdir()) if found.is_dir() else [found]:
            if path.suffix in (".json", ".safetensors"):
                shutil.copyfile(path, folder / RANKING / path.name)


def published(trained: Trained) -> configs.ConfigDict:
    """The config without the paths of this machine; names on the hub stay."""
    config = trained.config.copy_and_resolve_references()
    known = configs.known()
    for name in configs.PATHS:
        *parents, leaf = name.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        local = not name.endswith(".weights") or os.path.exists(str(section[leaf]))
        if section[leaf] is not None and (local or os.path.isabs(section[leaf])):
            section[leaf] = known[name].default
    return config
