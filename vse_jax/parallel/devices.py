"""How functions written for one device run on all of them, and what is placed where."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from vse_jax.parallel.collectives import AXIS, SplitRows

# Of a tree of arrays: one of the two for all, or a tree of them, see `placements`.
Placement = Any
REPLICATED, SPLIT = "replicated", "split"


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

        Inside are `exact_products`.

        Args:
          function: takes and returns trees of arrays, one device's rows of the split ones.
          inputs: the placement of each argument; a tree of them where it has `SplitRows`.
          outputs: the placement of each result.
          donate: arguments whose memory the results may take over.
        """

        @functools.wraps(function)
        def exact(*arguments: Any) -> Any:
            with exact_products():
                return function(*arguments)

        if self.mode == "pmap":
            # jax.pmap refuses donated replicated arguments across processes (JAX 0.10).
            donated = donate if jax.process_count() == 1 else ()
            return jax.pmap(exact, AXIS, donate_argnums=donated, devices=self.devices)

        def specs(placement: Placement) -> Any:
            return jax.tree.map(lambda name: P() if name == REPLICATED else P(AXIS), placement)

        mapped = jax.shard_map(
            exact,
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


def without_transfers() -> contextlib.AbstractContextManager[None]:
    """Inside, an array that must first be moved to a device is an error and no silent copy."""
    return jax.transfer_guard("disallow")


def exact_products() -> contextlib.AbstractContextManager[None]:
    """Inside, products of float32 numbers are traced as in float32.

    By itself JAX takes TensorFloat-32 for them on a GPU, and bfloat16 on a TPU.
    """
    return jax.default_matmul_precision("highest")


def keep_compiled() -> None:
    """Keeps compiled programs for later runs, in JAX_COMPILATION_CACHE_DIR if that is set."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/vse_jax/xla")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
    # The many small programs of a start take seconds together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
