"""A gated recurrent unit that pays for real tokens only, under static shapes; see `packed`.

The gradient is written by hand. The forward pass keeps, for each token, r, z, W_hn h + b_hn and the
new state, from which n follows; one loop backwards finds the state's gradients, and a few large
products over the packed buffer give those of weights and inputs. Forward a step's inputs are
multiplied within it: all of them in one product before the loop took the same time (a step of VSE++
at batch 128 on a CPU, 1.00x) and three widths a token of memory more.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vse_jax.models import packed
from vse_jax.models.packed import Packing
from vse_jax.models.symbolic import is_symbolic


class GRUParams(NamedTuple):
    """Weights under PyTorch's names and shapes; the gates r, z, n are stacked in this order.

    Attributes:
      weight_ih: from the inputs.
      weight_hh: from the state.
      bias_ih: added to the inputs' part.
      bias_hh: added to the state's part.
    """

    weight_ih: Float[Array, "h3 e"]
    weight_hh: Float[Array, "h3 h"]
    bias_ih: Float[Array, " h3"]
    bias_hh: Float[Array, " h3"]


class GRUResult(NamedTuple):
    """What a GRU says of each caption.

    Attributes:
      outputs: the state after each token, zero where there is none.
      last: the state after the last token read, zero for a caption without tokens.
    """

    outputs: Float[Array, "b l h"]
    last: Float[Array, "b h"]


def gru(
    params: GRUParams,
    inputs: Float[Array, "b l e"],
    lengths: Int[Array, " b"],
    *,
    reverse: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> GRUResult:
    """States of a GRU over the first `lengths` inputs of each caption, from a zero state.

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr), z likewise, n = tanh(W_in x + b_in + r (W_hn h +
    b_hn)), h' = (1 - z) n + z h: PyTorch's `nn.GRU` on packed sequences. With `reverse` a caption
    is read from its last token to its first, and `last` is the state after the first. Products
    take `dtype` operands and sum in float32; the state, its gradient and the weights' are float32.
    The same inputs give the same bits. Inputs beyond a caption's length are never read.
    Source: Cho et al., EMNLP 2014, section 2.3.
    """
    if is_symbolic(inputs.shape[0]):
        return _scanned(reverse, jnp.dtype(dtype), params, inputs, lengths)
    outputs, last = _gru(reverse, jnp.dtype(dtype), params, inputs, lengths)
    return GRUResult(outputs, last)


def average(forward: GRUResult, backward: GRUResult) -> GRUResult:
    """The mean of the two directions, after each token and over the whole."""
    outputs = (forward.outputs + backward.outputs) / 2
    return GRUResult(outputs, (forward.last + backward.last) / 2)


def _scanned(
    reverse: bool,
    dtype: Any,
    params: GRUParams,
    inputs: Float[Array, "b l e"],
    lengths: Int[Array, " b"],
) -> GRUResult:
    """`gru` by a plain scan, padding and all, for as many captions as come."""
    w_ih, w_hh = params.weight_ih.T, params.weight_hh.T

    def step(h: Float[Array, "b h"], given: tuple[Array, Array]) -> tuple[Array, Array]:
        t, x = given
        from_x = packed.dot(x, w_ih, 1, dtype) + params.bias_ih[None]
        from_h = packed.dot(h, w_hh, 1, dtype) + params.bias_hh[None]
        alive = (t < lengths)[:, None]
        h = jnp.where(alive, _next(from_x, from_h, h)[0], h)
        return h, jnp.where(alive, h, 0)

    begun = jnp.zeros((inputs.shape[0], w_hh.shape[0]))
    given = jnp.arange(inputs.shape[1]), inputs.swapaxes(0, 1)
    last, outputs = lax.scan(step, begun, given, reverse=reverse)
    return GRUResult(outputs.swapaxes(0, 1), last)


def _next(
    from_x: Float[Array, "r h3"], from_h: Float[Array, "r h3"], h: Float[Array, "r h"]
) -> tuple[Float[Array, "r h"], Float[Array, "r h3"]]:
    """The new state, and its r, z and W_hn h + b_hn."""
    (x, of_n), (s, q) = (jnp.split(part, [2 * h.shape[1]], axis=1) for part in (from_x, from_h))
    r, z = jnp.split(jax.nn.sigmoid(x + s), 2, axis=1)
    n = jnp.tanh(of_n + r * q)
    return (1 - z) * n + z * h, jnp.concatenate([r, z, q], axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gru(
    reverse: bool,
    dtype: Any,
    params: GRUParams,
    inputs: Float[Array, "b l e"],
    lengths: Int[Array, " b"],
) -> tuple[Float[Array, "b l h"], Float[Array, "b h"]]:
    packing = packed.pack(lengths, inputs.shape[1], reverse=reverse)
    x = packed.flat(inputs, packing).astype(dtype)
    last, states, _ = _forward(params, packing, x, dtype, keep=False)
    return packed.take(states, packing.place), last


def _gru_forward(reverse: bool, dtype: Any, params: Any, inputs: Any, lengths: Any) -> Any:
    """The states and what the gradient needs; arguments come wrapped in `CustomVJPPrimal`."""
    params = jax.tree.map(lambda leaf: leaf.value, params)
    inputs, lengths = inputs.value, lengths.value
    packing = packed.pack(lengths, inputs.shape[1], reverse=reverse)
    x = packed.flat(inputs, packing).astype(dtype)
    last, states, gates = _forward(params, packing, x, dtype, keep=True)
    example = jnp.zeros((0,), inputs.dtype)
    return (packed.take(states, packing.place), last), (params, packing, x, states, gates, example)


def _gru_backward(reverse: bool, dtype: Any, residual: Any, cotangents: Any) -> Any:
    """Gradients of the weights, the inputs and (none) the lengths."""
    del reverse
    params, packing, x, states, gates, example = residual
    d_outputs, d_last = cotangents
    d_packed = None if isinstance(d_outputs, SymbolicZero) else packed.flat(d_outputs, packing)
    zero = packed.zero_after(d_last if d_packed is None else d_packed, packing)
    if isinstance(d_last, SymbolicZero):
        d_last = jnp.broadcast_to(zero, d_last.shape)
    d_state = _state_gradient(params, packing, states, gates, d_packed, d_last, zero, dtype)
    d_params, dx = _weight_gradient(params, packing, x, states, gates, d_state, dtype)
    d_params = jax.tree.map(lambda d, p: d.astype(p.dtype), d_params, params)
    return d_params, packed.take(dx, packing.place).astype(example.dtype), None


_gru.defvjp(_gru_forward, _gru_backward, symbolic_zeros=True)


def _forward(
    params: GRUParams, packing: Packing, x: Float[Array, "p e"], dtype: Any, *, keep: bool
) -> tuple[Float[Array, "b h"], Float[Array, "p h"], Float[Array, "k h3"]]:
    """Last states, the state after each token and, if `keep`, its r, z and W_hn h + b_hn."""
    hidden = params.weight_hh.shape[1]
    # Transposed once: a product with the transpose of a large right factor is slower at each step.
    w_ih, w_hh = lax.optimization_barrier(
        (params.weight_ih.T.astype(dtype), params.weight_hh.T.astype(dtype))
    )

    def step(t: Int[Array, ""], h: Float[Array, "r h"], buffers: Any) -> Any:
        states, gates = buffers
        start, rows = packing.starts[t], len(h)
        from_x = packed.dot(packed.rows_of(x, start, rows), w_ih, 1, dtype) + params.bias_ih[None]
        from_h = packed.dot(h, w_hh, 1, dtype) + params.bias_hh[None]
        new, own = _next(from_x, from_h, h)
        if keep:
            gates = packed.write(gates, own, start)
        new = jnp.where(packed.alive(packing, t, rows), new, h)
        return new, (packed.write(states, new, start), gates)

    begun = jnp.zeros((packed.lane_count(packing), hidden))
    states = jnp.zeros((x.shape[0], hidden))
    gates = jnp.zeros((x.shape[0] if keep else 0, 3 * hidden))
    last, (states, gates) = packed.forward(packing, step, begun, (states, gates))
    return last[packing.lane], states, gates


def _gate_gradient(
    gates: Float[Array, "r h3"],
    prior: Float[Array, "r h"],
    state: Float[Array, "r h"],
    d: Float[Array, "r h"],
) -> tuple[Float[Array, "r h"], ...]:
    """Gradients by the arguments of r, z, n and by W_hn h + b_hn, given that of the new state.

    n is found from the new state, (1 - z) n + z h; the less of it that has, the less exactly, but
    then the less it counts: d_n is exact to a rounding error of the states.
    """
    r, z, q = jnp.split(gates, 3, axis=1)
    share = 1 - z
    n = jnp.clip((state - z * prior) / jnp.maximum(share, jnp.finfo(z.dtype).tiny), -1, 1)
    d_n = d * share * (1 - n * n)
    return d_n * q * r * (1 - r), d * (prior - state) * z, d_n, d_n * r


def _state_gradient(
    params: GRUParams,
    packing: Packing,
    states: Float[Array, "p h"],
    gates: Float[Array, "p h3"],
    d_outputs: Float[Array, "p h"] | None,
    d_last: Float[Array, "b h"],
    zero: Float[Array, ""],
    dtype: Any,
) -> Float[Array, "p h"]:
    """The whole gradient by the state after each token, through all later ones."""
    batch, hidden = d_last.shape
    w_hh = params.weight_hh.astype(dtype)

    def step(t: Int[Array, ""], d: Float[Array, "r h"], d_state: Float[Array, "p h"]) -> Any:
        start, rows = packing.starts[t], len(d)
        alive = packed.alive(packing, t, rows)
        if d_outputs is not None:
            d = d + packed.rows_of(d_outputs, start, rows)
        gate = packed.rows_of(gates, start, rows)
        prior, state = packed.before(packing, states, t, rows), packed.rows_of(states, start, rows)
        d_r, d_z, _, d_q = _gate_gradient(gate, prior, state, d)
        through = packed.dot(jnp.concatenate([d_r, d_z, d_q], axis=1), w_hh, 1, dtype)
        before = jnp.where(alive, d * gate[:, hidden : 2 * hidden] + through, d)
        return before, packed.write(d_state, jnp.where(alive, d, 0), start)

    d_lanes = jnp.zeros((packed.lane_count(packing), hidden)).at[:batch].set(d_last[packing.order])
    d_state = jnp.broadcast_to(zero, states.shape)
    return packed.backward(packing, step, d_lanes, d_state)[1]


def _weight_gradient(
    params: GRUParams,
    packing: Packing,
    x: Float[Array, "p e"],
    states: Float[Array, "p h"],
    gates: Float[Array, "p h3"],
    d_state: Float[Array, "p h"],
    dtype: Any,
) -> tuple[GRUParams, Float[Array, "p e"]]:
    """Gradients of the weights and of the packed inputs."""
    w_ih = params.weight_ih.astype(dtype)
    zero = packed.zero_after(d_state, packing)

    def block(start: Int[Array, ""], size: int, carry: Any) -> Any:
        grads, dx = carry
        h = packed.take(states, lax.dynamic_slice_in_dim(packing.previous, start, size))
        kept = (packed.rows_of(rows, start, size) for rows in (gates, states, d_state))
        gate, state, d = kept
        d_r, d_z, d_n, d_q = _gate_gradient(gate, h, state, d)
        by_x = jnp.concatenate([d_r, d_z, d_n], axis=1)
        by_h = jnp.concatenate([d_r, d_z, d_q], axis=1)
        part = GRUParams(
            packed.dot(by_x, packed.rows_of(x, start, size), 0, dtype),
            packed.dot(by_h, h, 0, dtype),
            jnp.sum(by_x, axis=0),
            jnp.sum(by_h, axis=0),
        )
        dx = packed.write(dx, packed.dot(by_x, w_ih, 1, dtype), start)
        return jax.tree.map(jnp.add, grads, part), dx

    grads = jax.tree.map(lambda leaf: jnp.broadcast_to(zero, leaf.shape), params)
    return packed.over_blocks(
        packing.total, len(packing.source), block, (grads, jnp.broadcast_to(zero, x.shape))
    )
