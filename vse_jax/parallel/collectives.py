"""What devices say to each other, for use inside a function mapped over the axis "data"."""

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

AXIS = "data"


class SplitRows(flax.struct.PyTreeNode):
    """A table too large for every device to hold: an equal part of its rows is on each.

    Attributes:
      rows: [n, ...]; all of them on the host, in a mapped function those of this device, with
        zeros behind the last row where the devices do not divide n.
      count: n.
    """

    rows: Any
    count: int = flax.struct.field(pytree_node=False)


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
