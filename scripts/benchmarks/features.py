"""MobileNetV2 over pictures, beside the PyTorch model of `transformers`."""

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.timing import Options, Row, alternately, rate, ratio
from vse_jax import parallel
from vse_jax.encode import Encoder
from vse_jax.models.backbones import mobilenet_v2
from vse_jax.models.heads import LinearHead
from vse_jax.models.image import ImageEncoder
from vse_jax.models.model import VisualSemanticModel
from vse_jax.models.text import GRUReader, TextEncoder

SIZE, BATCHES = 224, (16, 64, 256)


def run(options: Options) -> list[Row]:
    """Rows at 224 pixels for three batch sizes."""
    return measure(SIZE, BATCHES, options.rounds or 3)


def measure(size: int, batches: Sequence[int], rounds: int, settings: Any = None) -> list[Row]:
    """Rows of each batch size.

    Args:
      size: pixels a side.
      batches: pictures at a time.
      rounds: of each batch size.
      settings: for `transformers`' MobileNetV2Config; None: the published model.
    """
    devices = parallel.Devices.all("shard_map")
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        module, variables, work = _with_twins(settings or {})
    else:
        module, variables, work = *_random(), {}
    text = TextEncoder(GRUReader(8, 8, 8), LinearHead(None))
    model = VisualSemanticModel(ImageEncoder(LinearHead(8), module), text)
    encoder = Encoder(model, devices)
    placed = encoder.variables(
        *({"image": {"backbone": variables[name]}} for name in ("params", "batch_stats"))
    )

    def ours(pictures: np.ndarray) -> np.ndarray:
        batch = {"image": pictures, "weight": np.ones(len(pictures), np.float32)}
        (found,) = encoder.image_features(placed, [batch])
        return found[:, 0]

    return [
        row for batch in batches for row in _compare({"ours": ours} | work, size, batch, rounds)
    ]


def _compare(
    work: dict[str, Callable[[np.ndarray], np.ndarray]], size: int, batch: int, rounds: int
) -> list[Row]:
    """Rows of one batch size, the features once found equal."""
    pictures = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    wanted = work["ours"](pictures)
    for name, function in work.items():
        difference = np.max(np.abs(function(pictures) - wanted))
        assert difference < 1e-3 * max(np.max(np.abs(wanted)), 1.0), (name, difference)
    timings = alternately(
        {name: lambda _, function=function: function(pictures) for name, function in work.items()},
        rounds,
        warmup=1,
    )
    note = f"MobileNetV2, {size}x{size} uint8 to pooled float32"
    rows = [
        rate("features", f"batch {batch}, {name}", timing, batch, "pictures/s", note)
        for name, timing in timings.items()
    ]
    rows += [
        ratio("features", f"batch {batch}, time of ours / {name}", timings["ours"], timing)
        for name, timing in timings.items()
        if name != "ours"
    ]
    return rows


def _random() -> tuple[Any, Any]:
    """The published model with random weights, and its variables."""
    import jax
    import jax.numpy as jnp

    module = mobilenet_v2.MobileNetV2()
    picture = jnp.zeros((1, SIZE, SIZE, 3), jnp.uint8)
    return module, jax.jit(lambda key: module.init(key, picture, train=False))(jax.random.key(0))


def _with_twins(settings: Any) -> tuple[Any, Any, dict[str, Callable[[np.ndarray], np.ndarray]]]:
    """The project's model and variables, and PyTorch's of the same weights in two layouts."""
    import copy

    import torch

    from benchmarks.torch_twins import PooledFeatures

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # deprecations inside transformers
        from transformers import MobileNetV2Config, MobileNetV2Model

        torch.manual_seed(0)
        model = MobileNetV2Model(MobileNetV2Config(**settings))
        model.save_pretrained(folder)
        module, variables = mobilenet_v2.from_pretrained(folder)
    return (
        module,
        variables,
        {
            "PyTorch": PooledFeatures(copy.deepcopy(model), torch.contiguous_format),
            "PyTorch channels-last": PooledFeatures(model, torch.channels_last),
        },
    )
