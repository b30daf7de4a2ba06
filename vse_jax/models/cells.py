"""A rectified cell and an LSTM over real words alone, under static shapes; see `packed`.

Either reads a = W_hx x_t + W_hh h_{t-1} + b, and what it is shown beside its first word:
"rnn": h = relu(a). "lstm": i, f, g, o = a, c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g), h_t =
sigmoid(o) tanh(c_t). h_0 = c_0 = 0.

The gradient is written by hand, and has none itself: one loop backwards finds that of a, and a few
large products over the packed buffer give those of weights and words.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vse_jax.models import packed
from vse_jax.models.packed import Packing
from vse_jax.models.symbolic import is_symbolic


class CellParams(NamedTuple):
    """Weights, inputs x outputs; an LSTM's four gates are stacked.

    Attributes:
      weight_hx: from the words; None where they are what is added, and g wide.
      weight_hh: from the state.
      bias: added to both.
    """

    weight_hx: Float[Array, "w g"] | None
    weight_hh: Float[Array, "h g"]
    bias: Float[Array, " g"]


class _Kept(NamedTuple):
    """Of each token what a way back needs; of "rnn" the states alone."""

    states: Float[Array, "p h"]
    arguments: Float[Array, "p g"] | None
    memories: Float[Array, "p h"] | None


def cell(
    argument: Float[Array, "b g"], memory: Float[Array, "b h"] | None
) -> tuple[Float[Array, "b h"], Float[Array, "b h"] | None]:
    """(h, c) after a word, given a and the c before it; of "rnn" both c are None."""
    if memory is None:
        return jax.nn.relu(argument), None
    i, f, g, o = jnp.split(argument, 4, axis=1)
    memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(memory), memory


def states(
    params: CellParams,
    shown: Float[Array, "b g"],
    words: Float[Array, "b t w"],
    lengths: Int[Array, " b"],
    *,
    lstm: bool,
    reverse: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "b t h"]:
    """h after each of the first `lengths` words of each caption; zero behind them.

    Args:
      params: of the cell.
      shown: what is added to a at the first word.
      words: vectors; those behind a caption's end are never read.
      lengths: of the captions.
      lstm: which cell.
      reverse: whether captions are read from their last word to their first.
      dtype: of the operands of products, which are summed in float32; all else is float32.
    """
    if is_symbolic(words.shape[0]):
        return _scanned(lstm, reverse, jnp.dtype(dtype), params, shown, words, lengths)
    return _states(lstm, reverse, jnp.dtype(dtype), params, shown, words, lengths)


class Read(NamedTuple):
    """Captions that were read, for `word_gradients`.

    Attributes:
      params: of the cell.
      packing: of the captions.
      words: their packed vectors.
      kept: of each word.
    """

    params: CellParams
    packing: Packing
    words: Float[Array, "p w"]
    kept: _Kept


def read(
    params: CellParams,
    shown: Float[Array, "b g"],
    words: Float[Array, "b t w"],
    lengths: Int[Array, " b"],
    *,
    lstm: bool,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "b t h"], Read]:
    """As `states`, and what `word_gradients` needs; without a gradient."""
    return _forward(lstm, False, jnp.dtype(dtype), params, shown, words, lengths)


def word_gradients(
    read: Read,
    d_states: Float[Array, "b t h"],
    asked: Bool[Array, "b t"],
    finish: Callable[[Float[Array, "r g"], Int[Array, " r"]], Float[Array, "r d"]],
    *,
    lstm: bool,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "b t d"]:
    """Of each word asked for, the gradient of h_t . d_states_t by what was shown; 0 of others.

    Each has a way back of its own, through the same cells of its caption: the captions are read
    once, and at every step all words that come later go back together.

    Args:
      read: the captions.
      d_states: at each word.
      asked: which words.
      finish: from gradients by what was shown, and the captions that they are of, to what is
        wanted.
      lstm: which cell.
      dtype: as of `states`.
    """
    packing, kept, dtype = read.packing, read.kept, jnp.dtype(dtype)
    back, count = read.params.weight_hh.T.astype(dtype), asked.shape[1]
    # Each is a lane as long as its way back.
    ways = packed.pack(jnp.where(asked, jnp.arange(1, count + 1)[None], 0).reshape(-1), count)
    lanes, hidden = packed.lane_count(ways), d_states.shape[2]
    captions = jnp.pad(ways.order // count, (0, lanes - asked.size))
    d = jnp.zeros((lanes, hidden)).at[: asked.size].set(d_states.reshape(-1, hidden)[ways.order])

    def step(t: Int[Array, ""], given: Any, found: Float[Array, "n d"]) -> Any:
        d, d_memory = given
        own, alive = captions[: len(d)], packed.alive(ways, t, len(d))
        here = packing.place[:, t][own]
        if lstm:
            assert kept.arguments is not None
            assert kept.memories is not None
            before = jnp.where(t > 0, packing.place[:, jnp.maximum(t - 1, 0)][own], len(read.words))
            argument, memory = packed.take(kept.arguments, here), packed.take(kept.memories, before)
            _, of_cell = jax.vjp(cell, argument, memory)
            d_argument, new_memory = of_cell((d, d_memory))
            d_memory = jnp.where(alive, new_memory, d_memory)
        else:
            d_argument = jnp.where(packed.take(kept.states, here) > 0, d, 0)
        d_argument = jnp.where(alive, d_argument, 0)
        found = lax.cond(
            t == 0, lambda: packed.write(found, finish(d_argument, own), 0), lambda: found
        )
        d = jnp.where(alive, packed.dot(d_argument, back, 1, dtype), d)
        return (d, d_memory), found

    example = jax.ShapeDtypeStruct((1, len(read.params.bias)), jnp.float32)
    width = jax.eval_shape(finish, example, jax.ShapeDtypeStruct((1,), jnp.int32)).shape[1]
    begun = d, jnp.zeros((lanes, hidden)) if lstm else None
    _, found = packed.backward(ways, step, begun, jnp.zeros((lanes, width)))
    found = found[ways.lane].reshape(*asked.shape, width)
    return jnp.where(asked[..., None], found, 0)


def _scanned(
    lstm: bool, reverse: bool, dtype: Any, params: CellParams, shown: Any, words: Any, lengths: Any
) -> Float[Array, "b t h"]:
    """`states` by a plain scan, padding and all, for as many captions as come."""

    def step(before: Any, given: tuple[Array, Array]) -> tuple[Any, Array]:
        t, x = given
        if params.weight_hx is not None:
            x = packed.dot(x, params.weight_hx, 1, dtype)
        argument = x + packed.dot(before[0], params.weight_hh, 1, dtype) + params.bias[None]
        first = t == lengths - 1 if reverse else t == jnp.zeros_like(lengths)
        alive = (t < lengths)[:, None]
        after = cell(argument + jnp.where(first[:, None], shown, 0), before[1])
        after = jax.tree.map(lambda new, old: jnp.where(alive, new, old), after, before)
        return after, jnp.where(alive, after[0], 0)

    nothing = jnp.zeros((words.shape[0], params.weight_hh.shape[0]))
    begun = nothing, nothing if lstm else None
    given = jnp.arange(words.shape[1]), words.swapaxes(0, 1)
    return lax.scan(step, begun, given, reverse=reverse)[1].swapaxes(0, 1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _states(
    lstm: bool, reverse: bool, dtype: Any, params: CellParams, shown: Any, words: Any, lengths: Any
) -> Float[Array, "b t h"]:
    return _forward(lstm, reverse, dtype, params, shown, words, lengths)[0]


def _forward(
    lstm: bool, reverse: bool, dtype: Any, params: CellParams, shown: Any, words: Any, lengths: Any
) -> tuple[Float[Array, "b t h"], Read]:
    packing = packed.pack(lengths, words.shape[1], reverse=reverse)
    hidden, lanes = params.weight_hh.shape[0], packed.lane_count(packing)
    x, weight = packed.flat(words, packing), params.weight_hh.astype(dtype)
    if params.weight_hx is not None:
        # Word and state in one product.
        weight = jnp.concatenate([params.weight_hx.astype(dtype), weight])
        x = x.astype(dtype)
    weight = lax.optimization_barrier(weight)
    first = jnp.zeros((lanes, shown.shape[1])).at[: len(shown)].set(shown[packing.order])

    def step(t: Int[Array, ""], given: Any, kept: _Kept) -> Any:
        h, memory = given
        start, rows = packing.starts[t], len(h)
        read, state = packed.rows_of(x, start, rows), h.astype(dtype)
        if params.weight_hx is None:
            argument = read + packed.dot(state, weight, 1, dtype) + params.bias[None]
        else:
            both = jnp.concatenate([read, state], axis=1)
            argument = packed.dot(both, weight, 1, dtype) + params.bias[None]
        argument = argument + jnp.where(t == 0, first[:rows], 0)
        # What lies behind a caption's end must not overflow, or the way back would have NaN there.
        alive = packed.alive(packing, t, rows)
        argument = jnp.where(alive, argument, 0)
        h, memory = jax.tree.map(
            lambda new, old: jnp.where(alive, new, old), cell(argument, memory), (h, memory)
        )
        kept = jax.tree.map(
            lambda buffer, value: packed.write(buffer, value, start),
            kept,
            _Kept(h, argument if lstm else None, memory),
        )
        return (h, memory), kept

    nothing, tokens = jnp.zeros((lanes, hidden)), len(x)
    kept = _Kept(
        jnp.zeros((tokens, hidden)),
        jnp.zeros((tokens, 4 * hidden)) if lstm else None,
        jnp.zeros((tokens, hidden)) if lstm else None,
    )
    begun = nothing, nothing if lstm else None
    _, kept = packed.forward(packing, step, begun, kept)
    return packed.take(kept.states, packing.place), Read(params, packing, x, kept)


def _backward(
    lstm: bool, reverse: bool, dtype: Any, residual: Read, d_outputs: Float[Array, "b t h"]
) -> Any:
    del reverse
    params, packing, x, kept = residual
    hidden, lanes = params.weight_hh.shape[0], packed.lane_count(packing)
    d_states = packed.flat(d_outputs, packing)
    zero = packed.zero_after(d_states, packing)
    back = params.weight_hh.T.astype(dtype)

    def step(t: Int[Array, ""], given: Any, d_arguments: Float[Array, "p g"]) -> Any:
        d, d_memory = given
        start, rows = packing.starts[t], len(d)
        alive = packed.alive(packing, t, rows)
        d_h = d + packed.rows_of(d_states, start, rows)
        if lstm:
            assert kept.arguments is not None
            assert kept.memories is not None
            argument = packed.rows_of(kept.arguments, start, rows)
            memory = packed.before(packing, kept.memories, t, rows)
            _, of_cell = jax.vjp(cell, argument, memory)
            d_argument, new_memory = of_cell((d_h, d_memory))
            d_memory = jnp.where(alive, new_memory, d_memory)
        else:
            d_argument = jnp.where(packed.rows_of(kept.states, start, rows) > 0, d_h, 0)
        d_argument = jnp.where(alive, d_argument, 0)
        d = jnp.where(alive, packed.dot(d_argument, back, 1, dtype), d)
        return (d, d_memory), packed.write(d_arguments, d_argument, start)

    nothing = jnp.zeros((lanes, hidden))
    begun = nothing, nothing if lstm else None
    d_arguments = jnp.broadcast_to(zero, (len(x), len(params.bias)))
    _, d_arguments = packed.backward(packing, step, begun, d_arguments)
    d_params, dx = _weight_gradient(params, packing, x, kept.states, d_arguments, dtype)
    d_shown = jnp.where(packed.alive(packing, jnp.int32(0), lanes), d_arguments[:lanes], 0)
    return d_params, d_shown[packing.lane], packed.take(dx, packing.place), None


_states.defvjp(_forward, _backward)


def _weight_gradient(
    params: CellParams,
    packing: Packing,
    x: Float[Array, "p w"],
    states: Float[Array, "p h"],
    d_arguments: Float[Array, "p g"],
    dtype: Any,
) -> tuple[CellParams, Float[Array, "p w"]]:
    """Gradients of the weights and of the packed words."""
    zero, weight = packed.zero_after(d_arguments, packing), params.weight_hx

    def block(start: Int[Array, ""], size: int, carry: Any) -> Any:
        grads, dx = carry
        d = packed.rows_of(d_arguments, start, size)
        h = packed.take(states, lax.dynamic_slice_in_dim(packing.previous, start, size))
        of_weight = None
        if weight is not None:
            of_weight = packed.dot(packed.rows_of(x, start, size), d, 0, dtype)
            dx = packed.write(dx, packed.dot(d, weight.T.astype(dtype), 1, dtype), start)
        part = CellParams(of_weight, packed.dot(h, d, 0, dtype), jnp.sum(d, axis=0))
        return jax.tree.map(jnp.add, grads, part), dx

    grads = jax.tree.map(lambda leaf: jnp.broadcast_to(zero, leaf.shape), params)
    dx = d_arguments if weight is None else jnp.broadcast_to(zero, x.shape)
    return packed.over_blocks(packing.total, len(packing.source), block, (grads, dx))
