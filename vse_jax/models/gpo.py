"""The generalized pooling operator: how much each of the sorted values counts is learnt.

Source: Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding", CVPR 2021,
section 3.2, and the released code (`lib/modules/aggr/gpo.py`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from vse_jax.models.gru_cell import GRUWeights, next_state
from vse_jax.models.masked import masked_softmax
from vse_jax.models.recurrent import GRUParams
from vse_jax.models.symbolic import Size, is_symbolic
from vse_jax.models.text import symmetric_uniform

# Up to this many parts, values are ranked by counting: n^2 comparisons that run over the channels
# in one fused loop, against a sort that XLA does for one channel at a time on a CPU.
_COUNTED = 128


class GPO(nn.Module):
    """Pools the parts by weights for the largest, second largest, ... value of each channel.

    theta = softmax(w . h_k / temperature) over the positions k of the parts, h the states of a
    bidirectional GRU (directions averaged) over the positions' sinusoidal code;
    pooled_d = sum_k theta_k max_k(d), max_k(d) the k-th largest value of channel d. The weights
    depend on nothing but the number of parts. They are computed in float32 whatever the precision
    elsewhere: the temperature magnifies rounding tenfold.

    Parameters: `gru`, `gru_reverse` and `score` [hidden].

    Attributes:
      code: width of the position code, even.
      hidden: width of the GRU's state.
      temperature: of the softmax.
    """

    code: int = 32
    hidden: int = 32
    temperature: float = 0.1

    def setup(self) -> None:
        """The two directions of the GRU and the last layer."""
        self.gru, self.gru_reverse = GRUWeights(self.hidden), GRUWeights(self.hidden)
        self.score = self.param("score", symmetric_uniform(self.hidden**-0.5), (self.hidden,))

    def __call__(
        self, parts: Float[Array, "b n d"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b d"]:
        """One vector of the parts that `mask` keeps; zero where there are none."""
        (batch, size), count = mask.shape, jnp.sum(mask, axis=1, dtype=jnp.int32)
        if is_symbolic(batch, size) or batch > size + 1:
            # Fewer counts than rows: the weights of each count are computed once.
            theta = jnp.take(self.weights(jnp.arange(size + 1), size), count, axis=0)
        else:
            theta = self.weights(count, size)
        return sorted_pool(parts, mask, theta)

    def weights(self, counts: Int[Array, " c"], size: Size) -> Float[Array, "c n"]:
        """theta for sets of these counts, each at most n = `size`; zero beyond the count."""
        code = position_code(size, self.code)
        # What the forward direction has read at a position does not depend on the count.
        forward = _read(self.gru(self.code), code, jnp.full(1, size))
        backward = _read(self.gru_reverse(self.code), code, counts, reverse=True)
        states = (jnp.broadcast_to(forward, backward.shape) + backward) / 2
        real = jnp.arange(size)[None] < counts[:, None]
        return masked_softmax(states @ self.score / self.temperature, real)


def _read(
    params: GRUParams, code: Float[Array, "n e"], counts: Int[Array, " c"], *, reverse: bool = False
) -> Float[Array, "c n h"]:
    """A GRU's states over the first 1, 2, ... of one row of inputs, zero beyond each count.

    A plain scan: at this size `recurrent.gru`, made to skip padding, takes longer to compile.
    """
    from_code = code @ params.weight_ih.T + params.bias_ih[None]

    def step(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        place, from_input = inputs
        from_state = state @ params.weight_hh.T + params.bias_hh[None]
        from_input = jnp.broadcast_to(from_input, from_state.shape)
        state = next_state(from_input, from_state, state)
        state = jnp.where((place < counts)[:, None], state, 0.0)
        return state, state

    start = jnp.zeros((counts.shape[0], params.weight_hh.shape[1]))
    inputs = (jnp.arange(code.shape[0]), from_code)
    return lax.scan(step, start, inputs, reverse=reverse)[1].swapaxes(0, 1)


def position_code(length: Size, width: int) -> Float[Array, "n c"]:
    """sin(k w_i) and cos(k w_i) of each position k, alternating; w_i = 10000^(-2i / width).

    Source: Vaswani et al., NeurIPS 2017, section 3.5.
    """
    frequency = 10000.0 ** (-jnp.arange(0, width, 2) / width)
    angle = jnp.arange(length)[:, None] * frequency[None]
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(length, width)


def sorted_pool(
    values: Float[Array, "b n d"], mask: Bool[Array, "b n"], theta: Float[Array, "b n"]
) -> Float[Array, "b d"]:
    """sum_k theta_k y_k, y_k the k-th largest of each channel's values that `mask` keeps.

    Entries of `theta` beyond their number are not used. Where values are equal, so is their
    gradient (with more than 128 parts, each has that of one of the group's ranks).

    >>> values = jnp.array([[[1.0], [3.0], [2.0], [9.0]]])
    >>> mask = jnp.array([[True, True, True, False]])
    >>> sorted_pool(values, mask, jnp.array([[0.5, 0.25, 0.0, 1.0]]))
    Array([[2.]], dtype=float32)
    """
    values = jnp.where(mask[..., None], values, 0.0).astype(jnp.float32)
    count = jnp.sum(mask, axis=1, keepdims=True)
    real = jnp.arange(mask.shape[1])[None] < count
    theta = jnp.where(real, theta, 0.0)
    if not is_symbolic(mask.shape[1]) and mask.shape[1] <= _COUNTED:
        return _counted_pool(values, mask, theta)
    lowered = jnp.sort(jnp.where(mask[..., None], -values, jnp.inf), axis=1)
    return -jnp.sum(theta[..., None] * jnp.where(real[..., None], lowered, 0.0), axis=1)


@jax.custom_vjp
def _counted_pool(
    values: Float[Array, "b n d"], mask: Bool[Array, "b n"], theta: Float[Array, "b n"]
) -> Float[Array, "b d"]:
    """`sorted_pool` of values and weights that are zero where there is none."""
    return _counted_pool_forward(values, mask, theta)[0]


def _counted_pool_forward(values: Any, mask: Any, theta: Any) -> Any:
    ranked = _sorted(values, _ranks(values, mask))
    # Added one by one: XLA's reduction over a middle axis reads memory in strides.
    pooled = jnp.zeros_like(values[:, 0])
    for k in range(values.shape[1]):
        pooled += theta[:, k, None] * ranked[:, k]
    return pooled, (values, mask, theta, ranked)


def _counted_pool_backward(residual: Any, gradient: Any) -> Any:
    """The gradients by the values and by theta.

    A value gets that of its rank, found again as the ones of equal value: their mean, if several.
    """
    values, mask, theta, ranked = residual
    real = jnp.arange(mask.shape[1])[None] < jnp.sum(mask, axis=1, keepdims=True)
    total, found = jnp.zeros(values.shape), jnp.zeros(values.shape)
    for k in range(values.shape[1]):
        same = values == ranked[:, k, None]
        total += jnp.where(same, theta[:, k, None, None], 0.0)
        found += jnp.where(same & real[:, k, None, None], 1.0, 0.0)
    share = jnp.where(mask[..., None], total / jnp.maximum(found, 1.0), 0.0)
    return gradient[:, None] * share, None, jnp.einsum("bnd,bd->bn", ranked, gradient)


_counted_pool.defvjp(_counted_pool_forward, _counted_pool_backward)


def _ranks(values: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Int[Array, "b n d"]:
    """How many of its channel's values come before each in descending order, masked ones last.

    Of equal values the earlier part comes first.
    """
    size = mask.shape[1]
    place = jnp.arange(size, dtype=jnp.int32)[None, :, None]
    if is_symbolic(mask.shape[0]):
        # Elsewhere than under XLA the bits of a float may be out of reach.
        return _ranks_of_floats(jnp.where(mask[..., None], values, -jnp.inf), place)
    bits = lax.bitcast_convert_type(values, jnp.int32)
    # Integers in the order of the floats: the bits below the sign are turned round if it is set.
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = jnp.where(mask[..., None], keys, jnp.iinfo(jnp.int32).min + 1)
    ranks = jnp.zeros(keys.shape, jnp.int8)
    for j in range(size):
        # An earlier part's value comes first if it is as large, a later one's only if larger.
        ranks += (keys[:, j, None] > keys - (place > j)).astype(jnp.int8)
    return ranks


def _ranks_of_floats(
    keys: Float[Array, "b n d"], place: Int[Array, "1 n 1"]
) -> Int[Array, "b n d"]:
    """`_ranks` of keys that are lowest where there is none."""
    ranks = jnp.zeros(keys.shape, jnp.int32)
    for j in range(keys.shape[1]):
        own = lax.slice_in_dim(keys, j, j + 1, axis=1)
        ranks += ((own > keys) | ((own == keys) & (place > j))).astype(jnp.int32)
    return ranks


def _sorted(values: Float[Array, "b n d"], ranks: Int[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Each channel's values at their ranks."""
    place = jnp.arange(values.shape[1], dtype=ranks.dtype)[None, :, None]
    result = jnp.zeros(values.shape)
    for i in range(values.shape[1]):
        result = jnp.where(ranks[:, i, None] == place, values[:, i, None], result)
    return result
