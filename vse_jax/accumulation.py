"""The gradient of a large batch in memory for a part of it, with all the negatives of the whole.

What is encoded row by row is encoded part by part, the loss looks at all rows together, and what it
says of each row is carried back part by part, for which each part is encoded again. Source: Gao et
al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# (parameters, rows, number of the part) -> (outputs row by row, statistics).
Encode = Callable[[Any, Any, Any], tuple[Any, Any]]
# (parameters, outputs, statistics) -> (loss, whatever else).
Judge = Callable[[Any, Any, Any], tuple[Float[Array, ""], Any]]


def value_and_grad(
    encode: Encode, judge: Judge, params: Any, batch: Any, parts: int
) -> tuple[Float[Array, ""], Any, Any]:
    """(loss, whatever else, gradient) of judge(params, *encode(params, batch, 0)).

    Args:
      encode: of some rows; its statistics are the mean over the parts.
      judge: of the outputs of all rows.
      params: to differentiate by.
      batch: arrays [b, ...].
      parts: into which the rows are cut; 1 encodes once.
    """
    if parts == 1:

        def loss_of(params: Any) -> tuple[Float[Array, ""], Any]:
            return judge(params, *encode(params, batch, 0))

        (loss, more), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        return loss, more, gradient

    cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch), jnp.arange(parts)
    outputs, statistics = jax.lax.map(lambda part: encode(params, *part), cut)
    statistics = jax.tree.map(lambda x: jnp.mean(x, axis=0), statistics)
    whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)

    def judged(params: Any, values: list[Array]) -> tuple[Float[Array, ""], Any]:
        return judge(params, _with_floats(whole, values), statistics)

    (loss, more), (gradient, slopes) = jax.value_and_grad(judged, (0, 1), has_aux=True)(
        params, _floats(whole)
    )
    slopes = [x.reshape(parts, -1, *x.shape[1:]) for x in slopes]

    def carry_back(gradient: Any, part: Any) -> tuple[Any, None]:
        (rows, number), slopes = part
        _, back = jax.vjp(lambda params: _floats(encode(params, rows, number)[0]), params)
        return jax.tree.map(jnp.add, gradient, *back(slopes)), None

    gradient, _ = jax.lax.scan(carry_back, gradient, (cut, slopes))
    return loss, more, gradient


def _is_float(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _floats(tree: Any) -> list[Array]:
    """The arrays that have a gradient."""
    return [x for x in jax.tree.leaves(tree) if _is_float(x)]


def _with_floats(tree: Any, values: list[Array]) -> Any:
    """The tree with those arrays replaced."""
    left = iter(values)
    return jax.tree.map(lambda x: next(left) if _is_float(x) else x, tree)
