"""Writes what training captions mean as a pretrained reader has it, for `data.semantics`.

    python scripts/caption_semantics.py --config=configs/flickr8k.py:frozen --output=FILE.npz \
        [--config.data.manual_dir=... and others]

The config names the data set and a frozen reader of sentences whose features are a vector each
(`model.text.features=pooled`), such as MiniLM's in `frozen`. Vectors are scaled to length 1. LSEH
takes them in place of the latent semantic analysis (`objective=lseh` and
`--config.data.semantics=FILE.npz`); the file knows whose captions they are. Of the image side
nothing is needed.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import config_command
import numpy as np
from ml_collections import ConfigDict

from vse_jax import assembly, config_checks, optimizer, parallel
from vse_jax import config as configs
from vse_jax.data import datasets, pipeline, semantics, tokenizer
from vse_jax.data.split import Split
from vse_jax.encode import Encoder
from vse_jax.frozen_features import FrozenFeatures
from vse_jax.models.backbones.weights import digest

log = logging.getLogger("vse_jax.caption_semantics")
_FROZEN_READER = (
    "the semantics of captions are a frozen reader's, a vector each: take a config such as "
    "configs/flickr8k.py:frozen, with 'model.text.features' at 'pooled'"
)


def write(config: ConfigDict, output: Path) -> None:
    """Writes the vectors of the training captions of a config's data set.

    Raises:
      ConfigError: the reader is not frozen, or gives a vector for each word.
      ConfigError, DataError, WeightsError: for the user's other mistakes.
    """
    config = _validated(config)
    words = tokenizer.pretrained(config.model.text.weights, config.data.max_tokens)
    built = _text_side(config, words)
    dataset = datasets.load(config.data, config.seed)
    found = _vectors(config, words, built, dataset.splits)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    captions = dataset.splits["train"].captions
    semantics.to_file(output, captions, found / np.maximum(length, 1e-12))
    log.info("semantics of %d captions, width %d: %s", *found.shape, output)


def _validated(config: ConfigDict) -> ConfigDict:
    """A copy with absolute paths; raises ConfigError where no pretrained reader gives vectors."""
    config = configs.resolved(config)
    config_checks.validate(config)
    text = config.model.text
    if text.backbone == "gru" or text.features != "pooled" or text.alter:
        raise configs.ConfigError(_FROZEN_READER)
    if config.train.start_from is not None:
        raise configs.ConfigError(
            "config field 'train.start_from' is set, but what captions mean is told by the reader "
            "of 'model.text.weights': unset it"
        )
    return configs.with_absolute_paths(config)


def _text_side(config: ConfigDict, words: tokenizer.Tokenizer) -> assembly.Built:
    """The reader in a model that has nothing else; raises ConfigError where it is not frozen."""
    config = config.copy_and_resolve_references()
    configs.without_backbone(config)
    config.model.network = "none"
    known = assembly.Words.of(words, config, classes=1)
    frozen = assembly.Frozen(image=False, text=True)
    built = assembly.build_model(config, known, frozen, features=1)
    for name in optimizer.flatten(built.variables["params"]["text"]["reader"]):
        if optimizer.multiplier(f"text/reader/{name}", config.train.freeze) is not None:
            raise configs.ConfigError(_FROZEN_READER)
    return built


def _vectors(
    config: ConfigDict,
    words: tokenizer.Tokenizer,
    built: assembly.Built,
    splits: Mapping[str, Split],
) -> np.ndarray:
    """float32 [m, f] of the training captions; those of every split are cached, as of a run."""
    devices = parallel.Devices.all(config.parallel)
    pictures = pipeline.Pictures(config.data.image_size)
    examples = {
        name: pipeline.Examples(split, *words.tokenize(split.captions), pictures)
        for name, split in splits.items()
    }
    cache = FrozenFeatures(config, devices, built, Encoder(built.model, devices), examples)
    read = cache.of_texts(digest(config.model.text.weights))["train"].text_features
    assert read is not None
    return np.asarray(read.rows[read.start], np.float32)


def main(arguments: Sequence[str]) -> None:
    """Writes what the command line asks for; a user's mistake ends in one clear line."""
    config_command.run("caption_semantics", __doc__, arguments, write, suffix=".npz")


if __name__ == "__main__":
    main(sys.argv[1:])
