"""What a training step takes on a machine that is not here, from its true program.

    python scripts/plan.py --config=configs/shapes.py --topology=v5e:4x4 [--batch=4096,65536] \
        --output=plan.json [--config.train.accumulate=8 and other fields]

Compiles the step ahead of time for the topology of a TPU (`pip install 'vse_jax[tpu]'`; no TPU is
needed) of v4, v5e, v5p or v6e, such as v5e:16x16 or v5p:4x4x4; "here" means the devices of this
machine, on which the step is measured too. Tells for each batch what a device holds, computes,
moves and receives, and how many pairs a second none of these lets it exceed.
"""

import dataclasses
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import config_command
import jax
import jax.numpy as jnp
import numpy as np
import step_costs
from absl import flags
from benchmarks import peak
from benchmarks.timing import alternately
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vse_jax import (
    assembly,
    config_checks,
    optimizer,
    parallel,
    train_step,
    training_objective,
)
from vse_jax.config import ConfigError
from vse_jax.data import whole_file
from vse_jax.objectives.base import Spec

# Nobody is asked for the TPU that this machine may be a part of.
_ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
log = logging.getLogger("vse_jax.plan")
# The data are not looked at: so many words, and training pictures.
VOCABULARY, IMAGES = 10_000, 30_000


class Chip(NamedTuple):
    """Of a device: products by bfloat16 in FLOP/s, memory and links in bytes/s, memory in bytes."""

    flops: float
    memory_speed: float
    link_speed: float
    memory: float


# As Google's pages on each version of Cloud TPU have it.
CHIPS = {
    "v4": Chip(275e12, 1228e9, 300e9, 32 * 2**30),
    "v5e": Chip(197e12, 819e9, 200e9, 16 * 2**30),
    "v5p": Chip(459e12, 2765e9, 600e9, 95 * 2**30),
    "v6e": Chip(918e12, 1640e9, 448e9, 32 * 2**30),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of a step of so many pairs, what one device has of it.

    Attributes:
      batch: pairs of the step, over all devices.
      devices: how many there are.
      holds: bytes in use at most, as the compiler planned them.
      flops: of products and convolutions.
      moves: bytes to and from memory, as the compiler counts them: the body of a loop once.
      receives: bytes, by collective.
      seconds: the least that a step can take, by what bounds it: "products", "memory", "links".
      measured: seconds of a step, where it was run.
    """

    batch: int
    devices: int
    holds: int
    flops: float
    moves: float
    receives: dict[str, float]
    seconds: dict[str, float]
    measured: float | None = None

    @property
    def bound(self) -> str:
        """What bounds the step."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def pairs_a_second(self) -> float:
        """At most."""
        return self.batch / self.seconds[self.bound]


def topology(name: str) -> tuple[tuple[Any, ...], Chip]:
    """The devices of a topology and what each can do.

    Raises:
      ConfigError: there is no such topology, or no libtpu to compile for it.
    """
    if name == "here":
        return tuple(jax.devices()), _here()
    kind, _, _ = name.partition(":")
    if kind not in CHIPS:
        raise ConfigError(
            f"--topology is {name!r}; it must be 'here' or one of {', '.join(CHIPS)} with its "
            "chips, such as v5e:4x4"
        )
    from jax.experimental import topologies

    for name_of, value in _ALONE.items():
        os.environ.setdefault(name_of, value)
    try:
        found = topologies.get_topology_desc(topology_name=name, platform="tpu")
    except Exception as error:  # libtpu's own errors are of many kinds
        told = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"--topology is {name!r}, which cannot be compiled for; is libtpu there "
            f"(pip install 'vse_jax[tpu]')? It says: {told}"
        ) from error
    return tuple(found.devices), CHIPS[kind]


def _here() -> Chip:
    """This machine's devices share its cores, and so what it can do."""
    copies = alternately({"copy": peak.copies(2**25)["XLA"]}, 5)["copy"]
    share = 1 / jax.device_count()
    speed = share * 2 * 4 * 2**25 / min(copies.seconds)
    return Chip(share * 1e9 * peak.gflops(2048), speed, speed, float("inf"))


def plan(config: ConfigDict, batch: int, devices: tuple[Any, ...], chip: Chip, run: bool) -> Plan:
    """The plan of a step of `batch` pairs, which is measured where `run` says so.

    Raises:
      ConfigError: as `config_checks.validate`.
      WeightsError: as `assembly.build_model`.
    """
    config = config.copy_and_resolve_references()
    config.train.batch_size = batch
    config_checks.validate(config, len(devices))
    step, state, rows = _step(config, batch)
    placed = parallel.placements(state)
    mapped = parallel.Devices("shard_map", devices)
    function = mapped.map(
        step, (placed, parallel.SPLIT), (placed, parallel.REPLICATED), donate=(0,)
    )
    given = (
        _on(mapped, placed, state),
        _on(mapped, jax.tree.map(lambda _: parallel.SPLIT, rows), rows),
    )
    compiled = function.lower(*given).compile()
    memory = compiled.memory_analysis()
    costs = step_costs.count(function, *given, devices=len(devices))
    holds = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )  # fmt: skip
    moves = float(compiled.cost_analysis().get("bytes accessed", 0.0))
    received = dict(costs.received)
    seconds = {
        "products": costs.flops / chip.flops,
        "memory": moves / chip.memory_speed,
        "links": sum(received.values()) / chip.link_speed,
    }
    measured = _measured(mapped, function, state, rows) if run else None
    return Plan(batch, len(devices), holds, costs.flops, moves, received, seconds, measured)


def _step(config: ConfigDict, batch: int) -> tuple[Any, Any, dict[str, jax.ShapeDtypeStruct]]:
    """The step of a device, the shapes of the state, and those of a batch."""
    frozen = assembly.frozen_backbones(config)
    cached = assembly.features_are_cached(config, frozen)
    function_words = tuple(range(4))
    words = assembly.Words(VOCABULARY, 3, (0, 1, 2), function_words, classes=100)
    model = assembly.make_model(config, words, assembly.sources_of(config), frozen)
    rows = _rows(config, model, cached, batch)
    variables = jax.eval_shape(
        lambda key, rows: model.init(key, rows, train=False),
        jax.random.key(0),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), rows),
    )
    epoch = IMAGES / batch
    rate = optimizer.schedule(config.train, 1000, epoch)
    trainable, _ = optimizer.partition(variables["params"], config.train.freeze)
    update = optimizer.make_optimizer(config.train, trainable, rate)
    objective = training_objective.build(config)
    spec = Spec(config.model.dimension, IMAGES, max(1, round(epoch)), 1000)
    state = jax.eval_shape(
        lambda variables: train_step.init_state(
            variables, objective, update, spec, config.train.freeze, 0, config.train.ema > 0
        ),
        variables,
    )
    step = train_step.make_step(
        model, objective, update, config.train.freeze, 0, config.train.ema,
        config.train.accumulate,
    )  # fmt: skip
    return step, state, rows


def _rows(
    config: ConfigDict, model: Any, cached: assembly.Frozen, batch: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch; a frozen backbone's features are there already."""
    size, length = config.data.image_size, config.data.max_tokens
    shape = jax.ShapeDtypeStruct
    image = shape((1, size, size, 3), jnp.uint8)
    found = {
        "tokens": shape((batch, length), jnp.int32),
        "token_mask": shape((batch, length), jnp.bool_),
        "image_id": shape((batch,), jnp.int32),
        "caption_id": shape((batch,), jnp.int32),
        "label": shape((batch,), jnp.int32),
        "weight": shape((batch,), jnp.float32),
        "semantics": shape((batch, 100), jnp.float32),
    }
    if cached.image:
        seen = jax.eval_shape(
            lambda key, image: model.init_with_output(key, image, method=_features)[0],
            jax.random.key(0),
            image,
        )
        parts, width = seen.shape[1:]
        found["features"] = shape((batch, parts, width), jnp.float32)
        found["feature_mask"] = shape((batch, parts), jnp.bool_)
    else:
        found["image"] = shape((batch, *image.shape[1:]), image.dtype)
        found["boxes"] = shape((batch, 20, 4), jnp.float32)
    if cached.text:
        width = model.text.reader.hidden_size
        found["text_features"] = shape((batch, length, width), jnp.float32)
        found["text_feature_mask"] = shape((batch, length), jnp.bool_)
    return found


def _features(model: Any, image: Any) -> Any:
    return model.image.features(image, None)


def _on(devices: parallel.Devices, placed: Any, shapes: Any) -> Any:
    """The shapes as they lie on the devices."""

    def one(where: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        split = where == parallel.SPLIT
        spec = PartitionSpec(parallel.AXIS) if split else PartitionSpec()
        shape = (devices.shared(x.shape[0]), *x.shape[1:]) if split else x.shape
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(devices.mesh, spec))

    return jax.tree.map(one, placed, shapes)


def _measured(devices: parallel.Devices, function: Any, state: Any, rows: Any) -> float:
    """The median of five steps over drawn numbers, the first three left out."""
    rng = np.random.default_rng(0)

    def drawn(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return rng.uniform(0, 0.1, x.shape).astype(x.dtype)
        return np.ones(x.shape, x.dtype)

    held = devices.place(jax.tree.map(drawn, state))
    batch = {name: drawn(x) for name, x in rows.items()}
    numbers = np.arange(len(batch["image_id"]), dtype=np.int32)
    batch |= {"image_id": numbers, "weight": np.ones(len(numbers), np.float32)}
    shown = devices.split(batch)
    seconds = []
    for _ in range(8):
        begun = time.perf_counter()
        held, metrics = function(held, shown)
        jax.block_until_ready((held, metrics))
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[3:])


def table(plans: Sequence[Plan], chip: Chip) -> str:
    """A line a batch, in Markdown."""
    lines = [
        "| batch | devices | held a device | of its memory | TFLOP | GB moved | GB received | "
        "bound by | step at least | pairs/s at most | step measured |",
        "|" + "---|" * 11,
    ]
    for each in plans:
        full = each.holds / chip.memory
        share = f"{full:.0%}{', too much' if full > 1 else ''}" if chip.memory < 1e15 else ""
        measured = "" if each.measured is None else f"{1e3 * each.measured:.4g} ms"
        cells = (
            f"{each.batch:,}", f"{each.devices}", f"{each.holds / 2**30:.2f} GiB", share,
            f"{each.flops / 1e12:.3g}", f"{each.moves / 1e9:.3g}",
            f"{sum(each.receives.values()) / 1e9:.3g}", each.bound,
            f"{1e3 * each.seconds[each.bound]:.3g} ms", f"{each.pairs_a_second:,.0f}", measured,
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Plans what the flags name."""
    own = flags.FlagValues()
    where = flags.DEFINE_string("topology", "here", "Of which TPU.", flag_values=own)
    sizes = flags.DEFINE_list("batch", None, "Pairs of a step.", flag_values=own)

    def work(config: ConfigDict, output: Path) -> None:
        devices, chip = topology(where.value)
        try:
            batches = [int(size) for size in sizes.value or [config.train.batch_size]]
        except ValueError as error:
            raise ConfigError(f"--batch is {','.join(sizes.value)}; it must be numbers") from error
        plans = []
        for batch in batches:
            log.info("compiling the step of %d pairs for %d devices", batch, len(devices))
            plans.append(plan(config, batch, devices, chip, where.value == "here"))
        report = {
            "topology": where.value,
            "chip": chip._asdict(),
            "plans": [
                dataclasses.asdict(each)
                | {"bound": each.bound, "pairs_a_second": each.pairs_a_second}
                for each in plans
            ],
        }
        text = json.dumps(report, indent=2) + "\n"
        whole_file.write(output, lambda file: file.write(text.encode()))
        print(table(plans, chip))

    config_command.run("plan", __doc__, arguments, work, own=own, suffix=".json")


if __name__ == "__main__":
    main(sys.argv[1:])
