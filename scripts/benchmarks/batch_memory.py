"""Memory of a training step against the size of its batch, as XLA plans it: nothing is run."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import step
from benchmarks.memory import planned
from benchmarks.timing import Options, Row
from vse_jax import assembly, parallel

# Of MobileNetV2; SAF looks at the grid.
WIDTH, CELLS = 1280, 49
# Semantics of captions, as by the latent semantic analysis.
SEMANTICS = 400
# Twice the pairs may take this much more than twice what a pair adds.
LINEAR = 1.1


# Fields of a config and their values.
Changes = tuple[tuple[str, Any], ...]


class Case(NamedTuple):
    """An objective on a network.

    Attributes:
      choice: of configs/flickr8k.py.
      sizes: of batches.
      parts: of a picture.
      changes: to the config.
    """

    choice: str
    sizes: tuple[int, ...]
    parts: int = 1
    changes: Changes = ()


GLOBAL = (4096, 16_384, 65_536)
CASES = {
    "LMH": Case("vsepp,objective=lmh", GLOBAL),
    "LSEH": Case("vsepp,objective=lseh", GLOBAL),
    "InfoNCE": Case("vsepp,objective=infonce", GLOBAL),
    "sigmoid": Case("vsepp,objective=sigmoid", GLOBAL),
    "LMH, accumulate=8": Case("vsepp,objective=lmh", GLOBAL, changes=(("train.accumulate", 8),)),
    "SAF, LMH": Case("saf,objective=lmh", (64, 128, 256, 512), CELLS),
}


def run(options: Options) -> list[Row]:
    """Of each objective the memory at each size, and whether it grows as the batch does."""
    del options
    rows: list[Row] = []
    for name, case in CASES.items():
        found = {size: of_step(case, size) for size in case.sizes}
        rows += [
            Row("batch_memory", f"{name}, step of {size:,} pairs", held / 2**20, "MiB",
                note="width 1,024, one device: state, batch and the most beside them")
            for size, held in found.items()
        ]  # fmt: skip
        growth = steepening(found)
        rows.append(
            Row("batch_memory", f"{name}: what a pair adds, at most over at first", growth, "x",
                wanted=f"<= {LINEAR}", met=growth <= LINEAR, note="1: memory is linear")
        )  # fmt: skip
    return rows


def steepening(found: dict[int, int]) -> float:
    """The most bytes that a further pair adds between two sizes, over those of the first two."""
    slopes = [
        (found[large] - found[small]) / (large - small)
        for small, large in itertools.pairwise(sorted(found))
    ]
    return max(slopes) / slopes[0]


def of_step(case: Case, size: int) -> int:
    """Bytes on one device at the most, from the memory analysis of the compiled step."""
    conf, few, model, variables = _started(case)
    conf = conf.copy_and_resolve_references()
    conf.train.batch_size = size
    whole = step.training_of(conf, model, variables["params"])
    state = jax.eval_shape(whole.initial_state, variables)
    batch: Any = {
        name: jax.ShapeDtypeStruct((size, *rows.shape[1:]), rows.dtype)
        for name, rows in few.items()
    }
    devices = parallel.Devices("shard_map", tuple(jax.devices()[:1]))
    return planned(whole.on(devices, state).lower(state, batch).compile())


@functools.cache
def _started(case: Case) -> tuple[ConfigDict, step.Batch, Any, Any]:
    """Config, two pairs, model and variables, which are the same for every size of the batch."""
    conf = step.config(case.choice)
    conf.update_from_flattened_dict(dict(case.changes))
    few = step.batches(step.drawn(conf), 2, WIDTH, 1, case.parts)[0]
    few["semantics"] = np.zeros((2, SEMANTICS), np.float32)
    model, variables = step.started(conf, assembly.Words(step.VOCABULARY, 0, ()), few)
    conf.train.freeze = ()
    return conf, few, model, variables
