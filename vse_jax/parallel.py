"""The only module that names devices, the mesh, the axis, processes and collectives.

A step is written for one device, with the collectives below over the axis "data".
`Devices.map` runs it on every device, through `jax.shard_map` or `jax.pmap`. Both
leave `pmean(grad(local_loss))` right (see `map`), so one step serves both.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

AXIS = "data"
# As the address of process 0: what the environment says.
AUTO = "auto"
# Silence after which another process counts as dead.
HEARTBEAT_SECONDS = 30
# In what backends say then: gloo of CPUs, NCCL of GPUs, JAX's coordination service.
_SIGNS_OF_A_LOSS = (
    "Gloo", "gloo", "NCCL", "by peer", "heartbeat", "oordination", "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
)  # fmt: skip
_ABORTED = (
    b"vse_jax: aborted, as JAX does (it says why above) when another process of the run has ended; "
    b"the same command on all of them goes on from what was saved\n"
)
# Of a tree of arrays: one of the two for all, or a tree of them, see `placements`.
Placement = Any
REPLICATED, SPLIT = "replicated", "split"
T = TypeVar("T")


class SplitRows(flax.struct.PyTreeNode):
    """A table too large for every device to hold: an equal part of its rows is on each.

    Attributes:
      rows: [n, ...]; all of them on the host, in a mapped function those of this device, with
        zeros behind the last row where the devices do not divide n.
      count: n.
    """

    rows: Any
    count: int = flax.struct.field(pytree_node=False)


# Collectives, for use inside a mapped function.


def all_gather(tree: Any) -> Any:
    """Every device's rows of each array, stacked along the first axis in device order."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), tree)


def transposed(rows: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """The transpose of a square matrix of which each device has an equal share of the rows."""
    return jax.lax.all_to_all(rows, AXIS, split_axis=1, concat_axis=0, tiled=True).T


def mean(tree: Any) -> Any:
    """The mean of each array over the devices."""
    return jax.lax.pmean(tree, AXIS)


def total(tree: Any) -> Any:
    """The sum of each array over the devices."""
    return jax.lax.psum(tree, AXIS)


def around(
    meet: Callable[[Any, Any], tuple[Any, Any]], known: Any, visitor: Any
) -> tuple[Any, Any]:
    """(known, visitor) after the visitors of every device have met this one, its own first.

    They go from device to device in a ring, so that each holds one device's at a time.

    Args:
      meet: (known, visitor) -> (what is known then, the visitor as it goes on).
      known: by this device at first.
      visitor: arrays that leave this device; home again at the end.
    """
    count = device_count()
    onward = [(number, (number + 1) % count) for number in range(count)]

    def turn(held: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        known, visitor = meet(*held)
        visitor = jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, onward), visitor)
        return (known, visitor), None

    return jax.lax.scan(turn, (known, visitor), length=count)[0]


def own_share(x: Array) -> Float[Array, " k"]:
    """This device's equal share of the numbers of an array that is the same on every device.

    Zeros stand behind the last number where the devices do not divide how many there are.
    """
    length = -(-x.size // device_count())
    flat = jnp.pad(x.reshape(-1), (0, length * device_count() - x.size))
    return jax.lax.dynamic_slice(flat, (device_index() * length,), (length,))


def from_shares(share: Float[Array, " k"], shape: tuple[int, ...]) -> Array:
    """The array of this shape of which `share` is this device's `own_share`, on every device."""
    flat = jax.lax.all_gather(share, AXIS, tiled=True)
    return flat[: math.prod(shape)].reshape(shape)


def take_rows(table: SplitRows, numbers: Int[Array, " b"]) -> Float[Array, "b ..."]:
    """The rows of these numbers, each device's own, from wherever they are."""
    place, here = _places(table, all_gather(numbers))
    found = jnp.take(table.rows, jnp.where(here, place, 0), axis=0)
    found = jnp.where(here.reshape(-1, *[1] * (found.ndim - 1)), found, 0)
    # One device has a row, the others zeros: the sum is that row to the bit.
    return jax.lax.psum_scatter(found, AXIS, tiled=True)


def put_rows(
    table: SplitRows, numbers: Int[Array, " b"], values: Float[Array, "b ..."]
) -> SplitRows:
    """The table with the rows of these numbers replaced.

    Args:
      table: of which each device changes the rows that it holds.
      numbers: of the rows, the same on every device; none twice but -1, which is no row.
      values: of them, the same on every device.
    """
    place, here = _places(table, numbers)
    nowhere = len(table.rows) + jnp.arange(len(numbers))
    rows = table.rows.at[jnp.where(here, place, nowhere)].set(
        values, mode="drop", unique_indices=True
    )
    return table.replace(rows=rows)


def _places(
    table: SplitRows, numbers: Int[Array, " b"]
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """(where rows are among those of this device, whether they are)."""
    place = numbers - device_index() * len(table.rows)
    return place, (place >= 0) & (place < len(table.rows))


def device_index() -> Int[Array, ""]:
    """The number of this device along the axis."""
    return jax.lax.axis_index(AXIS)


def device_count() -> int:
    """How many devices the mapped function runs on."""
    return jax.lax.axis_size(AXIS)


def without_transfers() -> contextlib.AbstractContextManager[None]:
    """Inside, an array that must first be moved to a device is an error and no silent copy."""
    return jax.transfer_guard("disallow")


def keep_compiled() -> None:
    """Keeps compiled programs for later runs, in JAX_COMPILATION_CACHE_DIR if that is set."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/vse_jax/xla")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
    # The many small programs of a start take seconds together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


# Processes.


class ProcessesError(Exception):
    """Processes of one run that do not find, or have lost, each other."""


def initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins this process to the others of the run; does nothing for a single process.

    Args:
      coordinator: "host:port" of process 0; or "auto", where the environment says all three: Cloud
        TPU, SLURM, Open MPI, Kubernetes.
      processes: how many there are.
      process: the number of this one.

    Raises:
      ProcessesError: the environment does not say, or the others did not come.
    """
    if coordinator is None:
        return
    own: dict[str, Any] = {}
    if coordinator != AUTO:
        own = {
            "coordinator_address": coordinator, "num_processes": processes, "process_id": process
        }  # fmt: skip
    try:
        jax.distributed.initialize(**own, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ProcessesError(f"--coordinator={coordinator} brings no processes: {told}") from error
    _explain_aborts()


_AbortHandler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_AbortHandler
def _on_abort(number: int) -> None:
    """Ends the process with one clear line, where it would with a dump of all its threads."""
    del number
    os.write(2, _ABORTED)
    os._exit(1)


def _explain_aborts() -> None:
    """Has `_on_abort` called where a library aborts this process.

    JAX's client of the coordination service does so as soon as process 0 has ended, or another has
    been silent for too long, unless a collective fails before. It takes no callback from Python
    (JAX 0.10: the status has no type there), and a handler of `signal.signal` would come too late:
    Python calls it from the main thread when the process has gone.
    """
    handle = ctypes.CDLL(None).signal
    handle.argtypes, handle.restype = (ctypes.c_int, _AbortHandler), ctypes.c_void_p
    handle(signal.SIGABRT, _on_abort)


def leave() -> None:
    """Takes leave of the other processes: from here on each works and ends by itself.

    Without it one that ends waits for the others, and for those that take minutes in vain.
    """
    jax.distributed.shutdown()


def misfit(coordinator: str | None, processes: int | None, process: int | None) -> str | None:
    """What is wrong with flags of these names for `initialize`, if they do not belong together."""
    given = (coordinator is not None, processes is not None, process is not None)
    automatic = coordinator == AUTO
    if any(given) and given != (True, not automatic, not automatic):
        return (
            "--coordinator=host:port, --processes and --process belong together; of "
            f"--coordinator={AUTO} the environment says the others"
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        return f"--process is {process}; of {processes} --processes it must be one from 0 on"
    return None


def loss_behind(error: BaseException | None) -> str | None:
    """What a collective or a barrier said that failed, as it does when another process has ended.

    None where nothing says so, neither the error nor what it comes from.
    """
    if jax.process_count() == 1:
        return None
    while error is not None:
        if any(sign in str(error) for sign in _SIGNS_OF_A_LOSS):
            return " ".join(str(error).split())
        error = error.__cause__
    return None


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


def as_the_first(value: int) -> int:
    """`value` of process 0, in every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value)))


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


def is_split(tree: Any) -> bool:
    """Whether it is `SplitRows`."""
    return isinstance(tree, SplitRows)


def placements(tree: Any) -> Placement:
    """Where each array of a tree is: split in `SplitRows`, else the same on every device."""
    return jax.tree.map(
        lambda x: jax.tree.map(lambda _: SPLIT if is_split(x) else REPLICATED, x),
        tree,
        is_leaf=is_split,
    )


@dataclasses.dataclass(frozen=True)
class Devices:
    """Runs functions of one device on all of them.

    "replicated" values are the same on every device; "split" ones hold each device's rows.

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
        outputs: Placement,
        donate: tuple[int, ...] = (),
    ) -> Callable[..., Any]:
        """`function` of one device as a compiled function of all of them.

        With `check_vma=False`, as under `pmap`, the gradient of a replicated value is this
        device's share, so a step takes `pmean(grad(local_loss))`.

        Args:
          function: takes and returns trees of arrays, one device's rows of the split ones.
          inputs: the placement of each argument; a tree of them where it has `SplitRows`.
          outputs: the placement of each result.
          donate: arguments whose memory the results may take over.
        """
        if self.mode == "pmap":
            # jax.pmap refuses donated replicated arguments across processes (JAX 0.10).
            donated = donate if jax.process_count() == 1 else ()
            return jax.pmap(function, AXIS, donate_argnums=donated, devices=self.devices)

        def specs(placement: Placement) -> Any:
            return jax.tree.map(lambda name: P() if name == REPLICATED else P(AXIS), placement)

        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=specs(inputs),
            out_specs=specs(outputs),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donate)

    def place(self, tree: Any) -> Any:
        """Host arrays, the same in every process, on the devices as `placements` says."""

        def one(x: Any) -> Any:
            if isinstance(x, SplitRows):
                return x.replace(rows=self._shared_out(np.asarray(x.rows)))
            return self._replicated(np.asarray(x))

        return jax.tree.map(one, tree, is_leaf=is_split)

    def split(self, batch: Any) -> Any:
        """This process's rows of a tree of arrays, put on its devices, rows in order."""
        return self._assemble(batch, one_row_each=False)

    def fetch(self, tree: Any) -> Any:
        """Host copies of what is placed as `placements` says; with `SplitRows` in all processes."""

        def one(x: Any) -> Any:
            if isinstance(x, SplitRows):
                return x.replace(rows=self._collected(x.rows)[: x.count])
            data = np.array(x.addressable_data(0))
            return np.asarray(data[0]) if self.mode == "pmap" else data

        return jax.tree.map(one, tree, is_leaf=is_split)

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

    def _replicated(self, x: np.ndarray) -> Array:
        if self.mode == "pmap":
            copies = np.broadcast_to(x, (self._local_count(), *x.shape))
            return self._assemble(copies, one_row_each=True)
        sharding = NamedSharding(self.mesh, P())
        return jax.make_array_from_process_local_data(sharding, x, x.shape)

    def _shared_out(self, rows: np.ndarray) -> Array:
        """The rows, each device's part on it."""
        padding = self.shared(len(rows)) - len(rows)
        rows = np.pad(rows, ((0, padding), *((0, 0) for _ in rows.shape[1:])))
        if self.mode == "pmap":
            rows = rows.reshape(self.count, -1, *rows.shape[1:])
        sharding = NamedSharding(self.mesh, P(AXIS))
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

    def _collected(self, rows: Array) -> np.ndarray:
        """Every device's part of the rows, one after the other."""
        several = jax.process_count() > 1
        found = multihost_utils.process_allgather(rows, tiled=True) if several else np.array(rows)
        return found.reshape(-1, *found.shape[2:]) if self.mode == "pmap" else found

    def _assemble(self, tree: Any, one_row_each: bool) -> Any:
        sharding = NamedSharding(self.mesh, P(AXIS))
        local = self._local_count()

        def one(x: np.ndarray) -> Array:
            if self.mode == "pmap" and not one_row_each:
                x = x.reshape(local, -1, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(x))

        return jax.tree.map(one, tree)
