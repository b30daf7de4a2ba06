"""Scores of SAF and SGR, beside PyTorch's and over all of a test split, on 49 regions.

The whole split is scored in processes of their own, which are this module:
python -m benchmarks.scoring NETWORK PRECISION.
"""

import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import step
from benchmarks.memory import in_process, peak, start_peak
from benchmarks.networks import PRECISIONS, REGIONS, TORCH, WANTED, WIDTH, within
from benchmarks.timing import Options, Row, alternately, rate, ratio
from vse_jax import assembly, parallel
from vse_jax.encode import Encoder

# Flickr8k's test split, and the part of it that is scored in turns.
IMAGES, CAPTIONS = 1000, 5000
SOME_IMAGES, SOME_CAPTIONS = 200, 400


def run(options: Options) -> list[Row]:
    """Rows of SAF beside PyTorch's, and of the whole split's time and memory."""
    rows = in_turns(options)
    for name, precision in itertools.product(("saf", "sgr"), PRECISIONS):
        found = in_process("benchmarks.scoring", name, precision)
        what = f"{name}, {precision}"
        rows += [
            Row("scoring", f"{what}: {IMAGES} x {CAPTIONS} pairs", found["seconds"], "s",
                note=f"{REGIONS} regions"),
            within(what, "scoring", found),
        ]  # fmt: skip
    return rows


def in_turns(options: Options) -> list[Row]:
    """SAF's scores of pictures with captions in turns with PyTorch's."""
    scorers = {
        precision: _scorer("saf", SOME_IMAGES, SOME_CAPTIONS, precision) for precision in PRECISIONS
    }
    work = {f"ours, {precision}": score for precision, (score, _, _) in scorers.items()}
    if importlib.util.find_spec("torch") is not None:
        import torch

        from benchmarks.torch_twins import SAFLoss

        ours, conf, params = scorers["float32"]
        module = SAFLoss(params, conf).eval()
        batch = _given(conf, SOME_IMAGES, SOME_CAPTIONS)
        lengths = torch.from_numpy(batch["token_mask"].sum(1))
        tokens = torch.from_numpy(batch["tokens"].astype(np.int64))
        with torch.inference_mode():
            encoded = module.encode(torch.from_numpy(batch["features"]), tokens, lengths)
        work[TORCH] = lambda: module.scores(*encoded).numpy()
        np.testing.assert_allclose(ours(), work[TORCH](), atol=1e-4)
    timings = alternately(
        {kind: lambda _, one=one: one() for kind, one in work.items()}, options.rounds or 5, 1
    )
    pairs = SOME_IMAGES * SOME_CAPTIONS
    rows = [
        rate("scoring", f"saf scores, {kind}", timing, pairs, "pairs/s", f"{REGIONS} regions")
        for kind, timing in timings.items()
    ]
    if TORCH in timings:
        rows += [
            ratio("scoring", f"saf scores: time of {TORCH} / {kind}", timings[TORCH], timing,
                  at_least=WANTED["saf"])
            for kind, timing in timings.items()
            if kind != TORCH
        ]  # fmt: skip
    return rows


def _given(conf: ConfigDict, pictures: int, sentences: int) -> dict[str, np.ndarray]:
    """Drawn features of pictures, and drawn captions."""
    captions = step.drawn(conf)
    features = np.random.default_rng(0).gamma(0.5, 1.0, (pictures, REGIONS, WIDTH))
    mask = captions.mask[:sentences]
    most = int(mask.sum(1).max())
    return {
        "features": features.astype(np.float32),
        "feature_mask": np.ones((pictures, REGIONS), bool),
        "tokens": captions.tokens[:sentences, :most],
        "token_mask": mask[:, :most],
    }


def _scorer(
    name: str, pictures: int, sentences: int, precision: str
) -> tuple[Callable[[], np.ndarray], ConfigDict, Any]:
    """What scores that many encoded pictures and captions, its config and parameters."""
    conf = step.without_dropout(step.config(name, precision))
    conf.train.freeze, conf.model.image.weights = (), None
    frozen = assembly.Frozen(image=False, text=False)
    built = assembly.build_model(conf, assembly.Words(step.VOCABULARY, 0, ()), frozen, WIDTH)
    encoder = Encoder(built.model, parallel.Devices(conf.parallel, tuple(jax.devices()[:1])))
    variables = encoder.variables(built.variables["params"], built.variables["batch_stats"])
    batch = _given(conf, pictures, sentences)

    def slices(names: tuple[str, ...], count: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, count, 200):
            rows = {key: batch[key][start : start + 200] for key in names}
            yield rows | {"weight": np.ones(len(rows[names[0]]), np.float32)}

    images = encoder.images(variables, slices(("features", "feature_mask"), pictures))
    texts = encoder.texts(variables, slices(("tokens", "token_mask"), sentences))
    return lambda: encoder.scores(variables, images, texts), conf, built.variables["params"]


def _whole(name: str, precision: str) -> dict[str, Any]:
    """Seconds of scoring the whole split, compiling included, and the process' peak memory."""
    score, _, _ = _scorer(name, IMAGES, CAPTIONS, precision)
    start_peak()
    begun = time.perf_counter()
    score()
    seconds = time.perf_counter() - begun
    most, how = peak()
    return {"seconds": seconds, "total": most, "how": how}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_whole(*sys.argv[1:])) + "\n")
