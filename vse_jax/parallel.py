"""The only module that names devices, the mesh, the axis, processes and collectives.

A step is written for one device, with the collectives below over the axis "data".
`Devices.map` runs it on every device, through `jax.shard_map` or `jax.pmap`. Both
leave `pmean(grad(local_loss))` right (see `map`), so one step serves both.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

AXIS = "data"
Placement = Literal["replicated", "split"]
T = TypeVar("T")


# Collectives, for use inside a mapped function.


def all_gather(tree: Any) -> Any:
    """Every device's rows of each array, stacked along the first axis in device order."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), tree)


def mean(tree: Any) -> Any:
    """The mean of each array over the devices."""
    return jax.lax.pmean(tree, AXIS)


def total(tree: Any) -> Any:
    """The sum of each array over the devices."""
    return jax.lax.psum(tree, AXIS)


def device_index() -> Int[Array, ""]:
    """The number of this device along the axis."""
    return jax.lax.axis_index(AXIS)


def device_count() -> int:
    """How many devices the mapped function runs on."""
    return jax.lax.axis_size(AXIS)


# Processes.


def initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins this process to the others of the run; does nothing for a single process.

    Args:
      coordinator: "host:port" of process 0.
      processes: how many there are.
      process: the number of this one.
    """
    if coordinator is not None:
        jax.distributed.initialize(coordinator, processes, process)


def process_share() -> dict[str, int]:
    """{"process": number of this one, "processes": how many there are}."""
    return {"process": jax.process_index(), "processes": jax.process_count()}


def is_first_process() -> bool:
    """Whether this process writes logs and reports."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_agree(value: bool) -> bool:
    """Whether `value` is true in every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def first_process_first(name: str, function: Callable[[], T]) -> T:
    """`function()`, run by process 0 before the others: it may prepare what they then find."""
    if is_first_process():
        result = function()
        barrier(name)
    else:
        barrier(name)
        result = function()
    return result


def agreed_interruption(step: int, interrupted: bool) -> bool:
    """Whether to stop at this step, the same answer in every process.

    A single process follows its own flag; several follow JAX's preemption service, which
    picks a step that all of them reach after any one of them got SIGTERM.
    """
    if jax.process_count() == 1:
        return interrupted
    return bool(multihost_utils.reached_preemption_sync_point(step))


# Mapping.


@dataclasses.dataclass(frozen=True)
class Devices:
    """Runs functions of one device on all of them.

    "Replicated" values are the same on every device; "split" ones hold each device's rows.

    Attributes:
      mode: "shard_map" or "pmap".
      devices: in the order of the global batch's rows.
    """

    mode: Literal["shard_map", "pmap"]
    devices: tuple[jax.Device, ...]

    @classmethod
    def all(cls, mode: Literal["shard_map", "pmap"]) -> "Devices":
        """Every device of every process."""
        return cls(mode, tuple(jax.devices()))

    @property
    def count(self) -> int:
        """Devices over all processes."""
        return len(self.devices)

    def shared(self, rows: int) -> int:
        """At least `rows`, a number that the devices can share equally."""
        return -(-rows // self.count) * self.count

    @property
    def mesh(self) -> Mesh:
        """The one-dimensional mesh over "data"."""
        return Mesh(np.asarray(self.devices), (AXIS,))

    def map(
        self,
        function: Callable[..., Any],
        inputs: tuple[Placement, ...],
        outputs: Placement | tuple[Placement, ...],
        donate: tuple[int, ...] = (),
    ) -> Callable[..., Any]:
        """`function` of one device as a compiled function of all of them.

        With `check_vma=False`, as under `pmap`, the gradient of a replicated value is this
        device's share, so a step takes `pmean(grad(local_loss))`.

        Args:
          function: takes and returns trees of arrays, one device's rows of the split ones.
          inputs: the placement of each argument.
          outputs: the placement of each result.
          donate: arguments whose memory the results may take over.
        """
        if self.mode == "pmap":
            # jax.pmap refuses donated replicated arguments across processes (JAX 0.10).
            donated = donate if jax.process_count() == 1 else ()
            return jax.pmap(function, AXIS, donate_argnums=donated, devices=self.devices)

        def spec(placement: Placement) -> P:
            return P() if placement == "replicated" else P(AXIS)

        out_specs = spec(outputs) if isinstance(outputs, str) else tuple(map(spec, outputs))
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(map(spec, inputs)),
            out_specs=out_specs,
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donate)

    def replicate(self, tree: Any) -> Any:
        """Host arrays, the same in every process, put on every device."""
        if self.mode == "pmap":
            local = self._local_count()
            tree = jax.tree.map(lambda x: np.broadcast_to(x, (local, *np.shape(x))), tree)
            return self._assemble(tree, one_row_each=True)
        sharding = NamedSharding(self.mesh, P())
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x), np.shape(x)),
            tree,
        )

    def split(self, batch: dict[str, np.ndarray]) -> dict[str, Array]:
        """This process's rows of the global batch, put on its devices, rows in order."""
        return self._assemble(batch, one_row_each=False)

    def fetch(self, tree: Any) -> Any:
        """Host copies of replicated arrays."""

        def one(x: Array) -> np.ndarray:
            data = np.array(x.addressable_data(0))
            return np.asarray(data[0]) if self.mode == "pmap" else data

        return jax.tree.map(one, tree)

    def prefetch(
        self, batches: Iterator[dict[str, np.ndarray]], size: int = 2
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Array]]]:
        """(host batch, device batch) pairs, `size` of them sent ahead of their use."""
        ahead: list[tuple[dict[str, np.ndarray], dict[str, Array]]] = []
        for batch in batches:
            ahead.append((batch, self.split(batch)))
            if len(ahead) > size:
                yield ahead.pop(0)
        yield from ahead

    def _local_count(self) -> int:
        return sum(d.process_index == jax.process_index() for d in self.devices)

    def _assemble(self, tree: Any, one_row_each: bool) -> Any:
        sharding = NamedSharding(self.mesh, P(AXIS))
        local = self._local_count()

        def one(x: np.ndarray) -> Array:
            if self.mode == "pmap" and not one_row_each:
                x = x.reshape(local, -1, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(x))

        return jax.tree.map(one, tree)
