"""Writes what training captions mean as a pretrained reader has it, for `data.semantics`.

    python scripts/caption_semantics.py --config=configs/flickr8k.py:frozen --output=FILE.npz \
        [--config.data.manual_dir=... and others]

The config names the data set and a frozen reader of sentences whose features are a vector each
(`model.text.features=pooled`), such as MiniLM's in `frozen`. Vectors are scaled to length 1. LSEH
takes them in place of the latent semantic analysis (`objective=lseh` and
`--config.data.semantics=FILE.npz`); the file knows whose captions they are.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from vse_jax import console, experiment
from vse_jax.config import ConfigError
from vse_jax.data import semantics
from vse_jax.errors import USER_ERRORS


def write(config: ConfigDict, output: Path) -> None:
    """Writes the vectors of the training captions of a config's data set.

    Raises:
      ConfigError: the reader is not frozen, or gives a vector for each word.
      ConfigError, DataError, WeightsError: for the user's other mistakes.
    """
    with tempfile.TemporaryDirectory() as folder:
        examples = experiment.prepare(config, Path(folder) / "run").examples["train"]
    read = examples.text_features
    if read is None or read.most > 1:
        raise ConfigError(
            "the semantics of captions are a frozen reader's, a vector each: take a config such as "
            "configs/flickr8k.py:frozen, with 'model.text.features' at 'pooled'"
        )
    found = np.asarray(read.rows[read.start], np.float32)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    semantics.to_file(output, examples.split.captions, found / np.maximum(length, 1e-12))
    experiment.log.info("semantics of %d captions, width %d: %s", *found.shape, output)


def main(arguments: Sequence[str]) -> None:
    """Writes what the command line asks for; a user's mistake ends in one clear line."""
    # Own flags, so that whoever imports this keeps theirs; ml_collections looks at sys.argv.
    own = flags.FlagValues()
    chosen = config_flags.DEFINE_config_file("config", None, "A file of configs/.", flag_values=own)
    output = flags.DEFINE_string("output", None, "The .npz file to write.", flag_values=own)
    console.set_up_logging()
    try:
        rest = own(["caption_semantics", *arguments])[1:]
        if rest or chosen.value is None or not (output.value or "").endswith(".npz"):
            sys.exit(
                f"{__doc__}\ncaption_semantics: needs --config and --output=FILE.npz, and knows no "
                f"{rest}"
            )
        write(chosen.value, Path(output.value).expanduser())
    except (*USER_ERRORS, OSError, flags.Error) as error:
        sys.exit(f"caption_semantics: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
