"""Sums over the keys of every device, of which a device never holds more than one device's.

The keys go from device to device in a ring and meet each device's queries; in the backward pass
they go round once more, and their gradients with them. Gathered keys would take memory for the
whole batch. Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, section
3.3.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vse_jax import parallel
from vse_jax.losses.blocks import Rows

# How keys come to the queries of other devices: gathered on all of them, or going round.
Exchange = Literal["gather", "ring"]


class Labels(NamedTuple):
    """What rows have besides their vectors: see `Rows`."""

    ids: Int[Array, " b"]
    where: Bool[Array, " b"]


class Fold(NamedTuple):
    """How the parts of a total are put together, one after the other.

    Attributes:
      start: the total of no parts.
      combine: (total, part) -> total.
      slope: (part, total of all) -> the derivative of the total by the part.
    """

    start: float
    combine: Callable[[Array, Array], Array]
    slope: Callable[[Array, Array], Array]


SUM = Fold(0.0, jnp.add, lambda _, total: jnp.ones_like(total))
LOG_SUM = Fold(-jnp.inf, jnp.logaddexp, lambda part, total: jnp.exp(part - total))

# (arrays of the queries, vectors of keys, labels of both) -> the part of each query, [b].
Part = Callable[[Any, Any, tuple[Labels, Labels]], Float[Array, " b"]]


def labels(rows: Rows) -> Labels:
    """Those of rows."""
    return Labels(rows.ids, rows.where)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def total(
    fold: Fold, part: Part, own: Any, keys: Float[Array, "b d"], given: tuple[Labels, Labels]
) -> Float[Array, " b"]:
    """The total of each of this device's queries over the keys of every device.

    Args:
      fold: puts the parts of the devices together.
      part: of the total, of the keys of one device; closes over no array.
      own: what `part` takes first: the queries' vectors, and numbers of the loss.
      keys: of this device.
      given: labels of this device's queries and keys.
    """
    return _forward(fold, part, own, keys, given)[0]


def _forward(
    fold: Fold, part: Part, own: Any, keys: Float[Array, "b d"], given: tuple[Labels, Labels]
) -> tuple[Float[Array, " b"], Any]:
    ours, theirs = given

    def meet(so_far: Float[Array, " b"], visitor: Any) -> tuple[Float[Array, " b"], Any]:
        vectors, known = visitor
        return fold.combine(so_far, part(own, vectors, (ours, known))), visitor

    nothing = jnp.full(ours.where.shape, fold.start, jnp.float32)
    found, _ = parallel.around(meet, nothing, (keys, theirs))
    return found, (own, keys, given, found)


def _backward(
    fold: Fold, part: Part, kept: Any, slope: Float[Array, " b"]
) -> tuple[Any, Any, None]:
    own, keys, (ours, theirs), found = kept

    def meet(of_own: Any, visitor: Any) -> tuple[Any, Any]:
        vectors, known, of_keys = visitor
        value, back = jax.vjp(lambda own, keys: part(own, keys, (ours, known)), own, vectors)
        more = back(slope * fold.slope(value, found))
        of_own, of_keys = jax.tree.map(jnp.add, (of_own, of_keys), more)
        return of_own, (vectors, known, of_keys)

    nothing = jax.tree.map(jnp.zeros_like, (own, keys))
    of_own, (_, _, of_keys) = parallel.around(meet, nothing[0], (keys, theirs, nothing[1]))
    return of_own, of_keys, None


total.defvjp(_forward, _backward)
