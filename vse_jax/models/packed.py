"""Batches of captions without their padding, under static shapes, for what reads word by word.

A padded batch makes a plain scan multiply matrices for every padded slot. Here captions are sorted
by length, longest first, so that those still running at step t are the first lanes, and their
tokens lie step after step in one packed buffer, as in PyTorch's `pack_padded_sequence`. The number
of running lanes only falls: the steps form consecutive runs of one row count (rounded up to a few
static levels), each a `while_loop` of dynamic trip count over products of static shape. None of it
has a gradient of its own: who uses it writes one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

# At most this many static row counts: each costs compile time and saves half a level's rows a step.
_LEVELS = 16
# Rows of the products over the packed buffer, greedily from the largest.
_BLOCKS = (1024, 512, 256, 128)
BLOCK = _BLOCKS[-1]


class Packing(NamedTuple):
    """Where the tokens of a batch lie in the packed buffer of p rows.

    Attributes:
      order: the caption of each lane, longest first.
      lane: the lane of each caption.
      active: lanes running at each step.
      rows: the same, rounded up to a level.
      starts: first packed row of each step.
      steps: length of the longest caption.
      total: packed rows in use.
      step: the step that reads each position.
      place: the packed row of each position; p where there is no token.
      source: the flat position of each packed row; b * l where there is no token.
      previous: the packed row of the token read before each packed row's; p where there is none.
    """

    order: Int[Array, " b"]
    lane: Int[Array, " b"]
    active: Int[Array, " l"]
    rows: Int[Array, " l"]
    starts: Int[Array, " l"]
    steps: Int[Array, ""]
    total: Int[Array, ""]
    step: Int[Array, "b l"]
    place: Int[Array, "b l"]
    source: Int[Array, " p"]
    previous: Int[Array, " p"]


def pack(lengths: Int[Array, " b"], length: int, *, reverse: bool = False) -> Packing:
    """The packing of captions of these lengths in a batch padded to `length`."""
    (batch,) = lengths.shape
    levels = _levels(batch)
    lengths = jnp.clip(lengths, 0, length).astype(jnp.int32)
    order = jnp.argsort(lengths, descending=True, stable=True)
    lane = jnp.argsort(order)
    times = jnp.arange(length, dtype=jnp.int32)[None]
    mask = times < lengths[:, None]
    active = jnp.sum(mask, axis=0, dtype=jnp.int32)
    rows = -(-active // levels[0]) * levels[0]
    ends = jnp.cumsum(rows, dtype=jnp.int32)
    starts = ends - rows

    capacity = whole_blocks(levels[-1] * length)
    step = jnp.where(mask, lengths[:, None] - 1 - times if reverse else times, 0)
    place = jnp.where(mask, starts[step] + lane[:, None], capacity)
    position = jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, length)
    source = jnp.full(capacity, batch * length, jnp.int32).at[place].set(position, mode="drop")
    before = jnp.where(step > 0, starts[step - 1] + lane[:, None], capacity)
    previous = jnp.full(capacity, capacity, jnp.int32).at[place].set(before, mode="drop")
    return Packing(
        order, lane, active, rows, starts, jnp.max(lengths), ends[-1], step, place, source, previous
    )


def forward(
    packing: Packing,
    step: Callable[[Int[Array, ""], Any, Any], tuple[Any, Any]],
    lanes: Any,
    buffers: Any,
) -> tuple[Any, Any]:
    """(lanes, buffers) after all steps, the first one first.

    Args:
      packing: of the batch.
      step: (t, the first lanes, buffers) -> these lanes and the buffers; of as many lanes as run
        then, and some more.
      lanes: arrays of `lane_count` rows.
      buffers: what every step may write to.
    """
    t = jnp.int32(0)
    for rows in reversed(_levels(len(packing.order))):
        t, lanes, buffers = _at_level(packing, rows, step, 1, t, lanes, buffers)
    return lanes, buffers


def backward(
    packing: Packing,
    step: Callable[[Int[Array, ""], Any, Any], tuple[Any, Any]],
    lanes: Any,
    buffers: Any,
) -> tuple[Any, Any]:
    """As `forward`, the last step first."""
    t = packing.steps - 1
    for rows in _levels(len(packing.order)):
        t, lanes, buffers = _at_level(packing, rows, step, -1, t, lanes, buffers)
    return lanes, buffers


def _at_level(
    packing: Packing, rows: int, step: Any, onward: int, t: Int[Array, ""], lanes: Any, buffers: Any
) -> tuple[Int[Array, ""], Any, Any]:
    """The same after the steps of this many rows."""

    def turn(carry: Any) -> Any:
        t, some, buffers = carry
        return t + onward, *step(t, some, buffers)

    def runs(carry: Any) -> Bool[Array, ""]:
        t = carry[0]
        exists = (t >= 0) & (t < packing.steps)
        return exists & (packing.rows[jnp.clip(t, 0, packing.rows.shape[0] - 1)] == rows)

    some = jax.tree.map(lambda leaf: leaf[:rows], lanes)
    t, some, buffers = lax.while_loop(runs, turn, (t, some, buffers))
    return t, jax.tree.map(lambda leaf, new: write(leaf, new, 0), lanes, some), buffers


def over_blocks(
    total: Int[Array, ""],
    capacity: int,
    block: Callable[[Int[Array, ""], int, Any], Any],
    carry: Any,
) -> Any:
    """The carry after `block(first row, rows, carry)` for the first `total` rows, and some more.

    Args:
      total: rows in use.
      capacity: rows that there are, a multiple of `BLOCK`.
      block: of so many rows at a time.
      carry: what the first is given.
    """

    def left(least: int, carry: Any) -> Bool[Array, ""]:
        return total - carry[0] >= least

    def one(size: int, carry: Any) -> Any:
        return carry[0] + size, block(carry[0], size, carry[1])

    both: Any = (jnp.int32(0), carry)
    for size in _BLOCKS:
        if size <= capacity:
            least = size if size > BLOCK else 1
            both = lax.while_loop(partial(left, least), partial(one, size), both)
    return both[1]


def whole_blocks(rows: int) -> int:
    """So many rows, rounded up to whole blocks."""
    return -(-rows // BLOCK) * BLOCK


def lane_count(packing: Packing) -> int:
    """Rows of what is kept for each lane: one for every caption, rounded up to a level."""
    return _levels(len(packing.order))[-1]


def alive(packing: Packing, t: Int[Array, ""], rows: int) -> Bool[Array, "r 1"]:
    """Which of the first lanes run at step t."""
    return (jnp.arange(rows) < packing.active[t])[:, None]


def take(values: Float[Array, "n d"], rows: Int[Array, "..."]) -> Float[Array, "... d"]:
    """The rows of these numbers; zero for a number beyond the end."""
    return jnp.take(values, rows, axis=0, mode="fill", fill_value=0)


def rows_of(buffer: Float[Array, "n d"], start: Int[Array, ""], rows: int) -> Float[Array, "r d"]:
    """So many rows of a buffer."""
    return lax.dynamic_slice_in_dim(buffer, start, rows, axis=0)


def before(
    packing: Packing, buffer: Float[Array, "n d"], t: Int[Array, ""], rows: int
) -> Float[Array, "r d"]:
    """What the first lanes have of the step before t; zero at the first step."""
    # The lanes of a step are the first of the step before.
    found = rows_of(buffer, packing.starts[jnp.maximum(t - 1, 0)], rows)
    return jnp.where(t > 0, found, 0)


def write(
    buffer: Float[Array, "n d"], values: Float[Array, "r d"], start: Int[Array, ""] | int
) -> Float[Array, "n d"]:
    """The buffer with these rows in place of its own."""
    return lax.dynamic_update_slice_in_dim(buffer, values, start, axis=0)


def dot(
    a: Float[Array, "..."], b: Float[Array, "..."], axis: int, dtype: Any
) -> Float[Array, "..."]:
    """a.T b (axis 0) or a b (axis 1), of `dtype` operands, summed in float32."""
    dims = (((axis,), (0,)), ((), ()))
    return lax.dot_general(
        a.astype(dtype), b.astype(dtype), dims, preferred_element_type=jnp.float32
    )


def flat(values: Float[Array, "b l d"], packing: Packing) -> Float[Array, "p d"]:
    """The packed rows of a padded batch, zero where there is no token."""
    return take(values.reshape(-1, values.shape[-1]), packing.source)


def zero_after(value: Any, packing: Packing) -> Float[Array, ""]:
    """A zero that XLA does not know before the value [r, h] is there.

    It fills buffers that begin as known zeros long before they are needed, and holds them through
    the forward pass; a barrier does not keep it from that.
    """
    if isinstance(value, SymbolicZero):
        return jnp.zeros(())
    return jnp.where(packing.steps > packing.starts.shape[0], value[0, 0], 0)


def _levels(batch: int) -> tuple[int, ...]:
    """Static row counts, rising by eights or more; the last holds the whole batch."""
    quantum = min(batch, 8 * -(-batch // (8 * _LEVELS)))
    return tuple(range(quantum, batch + quantum, quantum))
