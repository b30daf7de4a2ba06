"""What a training step takes on a machine that is not here, from its true program.

    python scripts/plan.py --config=configs/shapes.py --topology=v5e:4x4,v4:2x2x4 \
        [--batch=4096,65536 or --each=256] --output=plan.json [--config.train.accumulate=8 ...]

Compiles the step ahead of time for the topology of a TPU (`pip install 'vse_jax[tpu]'`; no TPU is
needed) of v4, v5e, v5p or v6e, such as v5e:16x16 or v5p:4x4x4; "here" means the devices of this
machine, on which the step is measured too. Tells for each batch, of so many pairs or of so many for
each device, what a device holds, computes, moves and receives, and how many pairs a second none of
these lets it exceed. Products of a TPU count at its peak in bfloat16; float32 takes longer.
"""

import dataclasses
import itertools
import json
import logging
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import config_command
import jax
import jax.numpy as jnp
import numpy as np
import step_costs
import step_shapes
from absl import flags
from benchmarks import peak
from benchmarks.memory import planned
from benchmarks.timing import alternately
from ml_collections import ConfigDict

from vse_jax import config_checks, parallel
from vse_jax.config import ConfigError
from vse_jax.data import whole_file

# Nobody is asked for the TPU that this machine may be a part of.
_ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
log = logging.getLogger("vse_jax.plan")
HERE = "here"
FLOAT32_ON_TPU = (
    "precision=float32: the bound by products is that of bfloat16, whose peak is all that is known "
    "of a TPU; the step takes longer"
)


class Chip(NamedTuple):
    """Of a device: products (a TPU's by bfloat16) in FLOP/s, memory and links in bytes/s, bytes."""

    flops: float
    memory_speed: float
    link_speed: float
    memory: float

    def shared(self, devices: float) -> "Chip":
        """What one has of so many devices that are a chip together."""
        return Chip(*(value / devices for value in self))


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
      topology: by name, whose devices they are.
      batch: pairs of the step, over all devices.
      devices: how many there are.
      holds: bytes in use at most, as the compiler planned them.
      precision: of the config.
      flops: of products and convolutions.
      moves: bytes to and from memory, as the compiler counts them: the body of a loop once; None
        of a step that does not fit, which is not compiled to its end.
      receives: bytes, by collective.
      calls: how many collectives there are, by kind.
      seconds: the least that a step can take, by what bounds it: "products", "memory", "links".
      measured: seconds of a step, where it was run.
    """

    topology: str
    batch: int
    devices: int
    holds: int
    precision: str
    flops: float
    moves: float | None
    receives: dict[str, float]
    calls: dict[str, float]
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


class Topology(NamedTuple):
    """Devices, and what each can do."""

    name: str
    devices: tuple[Any, ...]
    chip: Chip


def topology(name: str, precision: str) -> Topology:
    """The topology of this name.

    Args:
      name: as of the flag.
      precision: of the config, in which the products of this machine are measured.

    Raises:
      ConfigError: there is no such topology, or no libtpu to compile for it.
    """
    if name == HERE:
        return Topology(HERE, tuple(jax.devices()), _here(precision))
    kind, _, _ = name.partition(":")
    if kind not in CHIPS:
        raise ConfigError(
            f"--topology is {name!r}; it must be {HERE!r} or one of {', '.join(CHIPS)} with its "
            "chips, such as v5e:4x4"
        )
    from jax.experimental import topologies

    for name_of, value in _ALONE.items():
        os.environ.setdefault(name_of, value)
    try:
        # The two cores of a v4 work as one device, as on Cloud TPU unless told otherwise.
        more = {"chip_config_name": "megacore"} if kind == "v4" else {}
        found = topologies.get_topology_desc(topology_name=name, platform="tpu", **more)
    except Exception as error:  # libtpu's own errors are of many kinds
        told = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"--topology is {name!r}, which cannot be compiled for; is libtpu there "
            f"(pip install 'vse_jax[tpu]')? It says: {told}"
        ) from error
    devices = tuple(found.devices)
    # The two cores of a v4 are a device each.
    chips = len({tuple(device.coords) for device in devices})
    return Topology(name, devices, CHIPS[kind].shared(len(devices) / chips))


def _here(precision: str) -> Chip:
    """One of this machine's devices; where they are its CPU, they share its cores."""
    device = jax.devices()[0]
    copies = alternately({"copy": peak.copies(2**25)["XLA"]}, 5)["copy"]
    share = 1 / jax.device_count() if device.platform == "cpu" else 1.0
    speed = share * 2 * 4 * 2**25 / min(copies.seconds)
    # Of a step in bfloat16 some products are in float32, and on many CPUs these are the faster.
    products = max(peak.gflops(2048, dtype=dtype) for dtype in {"float32", precision})
    holds = (device.memory_stats() or {}).get("bytes_limit", float("inf"))
    return Chip(share * 1e9 * products, speed, speed, float(holds))


def plan(config: ConfigDict, batch: int, where: Topology) -> Plan:
    """The plan of a step of `batch` pairs, which is measured where the devices are here.

    Raises:
      ConfigError: as `config_checks.validate`.
      WeightsError: as `assembly.build_model`.
    """
    devices, chip = where.devices, where.chip
    config = _checked(config, batch, len(devices))
    whole, state, rows = step_shapes.training_of(config, batch)
    mapped = parallel.Devices("shard_map", devices)
    function = whole.on(mapped, state)
    given = (
        step_shapes.placed_on(mapped, parallel.placements(state), state),
        step_shapes.placed_on(mapped, jax.tree.map(lambda _: parallel.SPLIT, rows), rows),
    )
    holds, moves = _compiled(function.lower(*given), given)
    mask = step_shapes.token_mask(config, rows["token_mask"].shape)
    costs = step_costs.count(function, state, rows | {"token_mask": mask}, devices=len(devices))
    received = dict(costs.received)
    seconds = {
        "products": costs.flops / chip.flops,
        "memory": (moves or 0.0) / chip.memory_speed,
        "links": sum(received.values()) / chip.link_speed,
    }
    measured = None
    if where.name == HERE:
        measured = _measured(mapped, function, state, rows, mask)
    return Plan(
        where.name, batch, len(devices), holds, config.precision, costs.flops, moves, received,
        dict(costs.calls), seconds, measured,
    )  # fmt: skip


def _checked(config: ConfigDict, batch: int, devices: int) -> ConfigDict:
    """The config with batches of this size, if it is one for so many devices."""
    config = config.copy_and_resolve_references()
    config.train.batch_size = batch
    config_checks.validate(config, devices)
    return config


def _compiled(lowered: Any, given: Any) -> tuple[int, float | None]:
    """Bytes that a device holds and moves; None moved where it would have to hold too many."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # The compiler for TPUs refuses what is too large, and says what it would take.
        told = re.search(r"HLO temporaries \(([0-9.]+)([KMGT])\)", str(error))
        if told is None:
            raise
        temporaries = float(told[1]) * 2 ** (10 * (1 + "KMGT".index(told[2])))
        arguments = sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(given)
        )
        return round(temporaries) + arguments, None
    return planned(compiled), float(compiled.cost_analysis().get("bytes accessed", 0.0))


def _measured(
    devices: parallel.Devices, function: Any, state: Any, rows: Any, mask: np.ndarray
) -> float:
    """The median of five steps over drawn numbers, the first three left out."""
    rng = np.random.default_rng(0)

    def drawn(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return rng.uniform(0, 0.1, x.shape).astype(x.dtype)
        return np.ones(x.shape, x.dtype)

    held = devices.place(jax.tree.map(drawn, state))
    batch = {name: drawn(x) for name, x in rows.items()}
    numbers = np.arange(len(batch["image_id"]), dtype=np.int32)
    weight = np.ones(len(numbers), np.float32)
    batch |= {"image_id": numbers, "weight": weight, "token_mask": mask}
    shown = devices.split(batch)
    seconds = []
    for _ in range(8):
        begun = time.perf_counter()
        held, metrics = function(held, shown)
        jax.block_until_ready((held, metrics))
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[3:])


def table(plans: Sequence[Plan], chips: Mapping[str, Chip]) -> str:
    """A line a plan, in Markdown; `chips` are those of the topologies."""
    lines = [
        "| topology | devices | batch | held a device | of its memory | TFLOP | GB moved | "
        "GB received | by collective: GB (calls) | bound by | step at least | pairs/s at most | "
        "step measured |",
        "|" + "---|" * 13,
    ]
    for each in plans:
        memory = chips[each.topology].memory
        share = f"{each.holds / memory:.0%}" if memory < 1e15 else ""
        cells = [
            each.topology, f"{each.devices}", f"{each.batch:,}", f"{each.holds / 2**30:.2f} GiB",
        ]  # fmt: skip
        brought = [f"{sum(each.receives.values()) / 1e9:.3g}", _by_collective(each)]
        if each.moves is None:
            cells += [f"{share}, too much", f"{each.flops / 1e12:.3g}", "", *brought, *4 * ("",)]
        else:
            cells += [
                share, f"{each.flops / 1e12:.3g}", f"{each.moves / 1e9:.3g}", *brought, each.bound,
                f"{1e3 * each.seconds[each.bound]:.3g} ms", f"{each.pairs_a_second:,.0f}",
                "" if each.measured is None else f"{1e3 * each.measured:.4g} ms",
            ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    if any(each.topology != HERE and each.precision != "bfloat16" for each in plans):
        lines += ["", FLOAT32_ON_TPU]
    return "\n".join(lines)


def _by_collective(each: Plan) -> str:
    """Such as "psum 0.12 (7), all_gather 0.01 (4)", what brings most first."""
    names = sorted(each.calls, key=lambda name: -each.receives[name])
    return ", ".join(
        f"{name} {each.receives[name] / 1e9:.3g} ({each.calls[name]:g})" for name in names
    )


def _numbers(name: str, given: Sequence[str | int]) -> list[int]:
    """The numbers of a flag; raises ConfigError where there is another thing."""
    try:
        return [int(number) for number in given]
    except ValueError as error:
        raise ConfigError(f"--{name} is {','.join(map(str, given))}; it must be numbers") from error


def main(arguments: Sequence[str]) -> None:
    """Plans what the flags name."""
    own = flags.FlagValues()
    names = flags.DEFINE_list("topology", HERE, "Of which TPUs.", flag_values=own)
    sizes = flags.DEFINE_list("batch", None, "Pairs of a step.", flag_values=own)
    each = flags.DEFINE_list("each", None, "Pairs of a device.", flag_values=own)

    def work(config: ConfigDict, output: Path) -> None:
        if sizes.value and each.value:
            raise ConfigError("--batch is of a step, --each of a device of it: give one of the two")
        batches = _numbers("batch", sizes.value or [config.train.batch_size])
        shares = _numbers("each", each.value or [])
        _checked(config, (shares or batches)[0], 1)
        found = [topology(name, config.precision) for name in names.value]
        plans = []
        for where, number in itertools.product(found, shares or batches):
            batch = number * len(where.devices) if shares else number
            log.info("compiling the step of %d pairs for %s", batch, where.name)
            plans.append(plan(config, batch, where))
        chips = {where.name: where.chip for where in found}
        report = {
            "chips": {name: chip._asdict() for name, chip in chips.items()},
            "plans": [
                dataclasses.asdict(made)
                | {"bound": made.bound, "pairs_a_second": made.pairs_a_second}
                for made in plans
            ],
        }
        text = json.dumps(report, indent=2) + "\n"
        whole_file.write(output, lambda file: file.write(text.encode()))
        print(table(plans, chips))

    config_command.run("plan", __doc__, arguments, work, own=own, suffix=".json")


if __name__ == "__main__":
    main(sys.argv[1:])
