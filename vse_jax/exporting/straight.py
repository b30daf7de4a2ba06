"""A function written anew, without what the converter to ONNX does not know or does wrongly.

Of jax2onnx 0.17: loops that run backwards are missing, and those over sequences of floats have
doubles in them; padding of an axis of any size fails, and so does a product over several batch axes
in which nothing is summed; and a result that is an argument as it is would be one value of two
names. So loops are unrolled, padding is concatenation, such a product is one of elements, and
functions within the function are written out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp

# Where equations keep the function that they call.
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2")


def straightened(
    call: Callable[..., Sequence[Any]], arguments: Sequence[jax.ShapeDtypeStruct]
) -> Callable[..., Sequence[Any]]:
    """The same function of arguments of these shapes.

    Raises:
      NotImplementedError: a loop runs as often as a symbol says.
    """
    traced = jax.make_jaxpr(call)(*arguments)

    def straight(*arrays: Any) -> list[Any]:
        found = _evaluate(traced.jaxpr, traced.consts, arrays)
        return [_copied(one) if any(one is given for given in arrays) else one for one in found]

    return straight


def _copied(array: Any) -> Any:
    """The same in an array of its own, of truth values as masks are."""
    return jax.lax.bitwise_and(array, jnp.ones_like(array))


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jax.extend.core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        found = _applied(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _applied(equation: Any, values: list[Any]) -> Sequence[Any]:
    """The results of an equation."""
    name, given = equation.primitive.name, equation.params
    if name == "scan":
        return _unrolled(given, values)
    if name in _CALLS:
        inner = next(given[key] for key in _INNER if key in given)
        if isinstance(inner, jax.extend.core.ClosedJaxpr):
            return _evaluate(inner.jaxpr, inner.consts, values)
        return _evaluate(inner, (), values)
    if name == "pad" and all(min(low, high) >= 0 == dilated for low, high, dilated in _pads(given)):
        array, value = values
        return [_padded(array, value, _pads(given))]
    if name == "dot_general" and not given["dimension_numbers"][0][0]:
        return [_outer(*values, *given["dimension_numbers"][1])]
    found = equation.primitive.bind(*values, **given)
    return found if equation.primitive.multiple_results else [found]


def _outer(a: Any, b: Any, of_a: Sequence[int], of_b: Sequence[int]) -> Any:
    """Every product of the other axes of a and b, for each place along the batch axes."""
    count = len(of_a)
    a, b = (jnp.moveaxis(x, own, range(count)) for x, own in ((a, of_a), (b, of_b)))
    of_rest = a.ndim - count
    a = jnp.expand_dims(a, range(a.ndim, a.ndim + b.ndim - count))
    return a * jnp.expand_dims(b, range(count, count + of_rest))


def _unrolled(given: dict[str, Any], values: list[Any]) -> list[Any]:
    """What a scan gives, step after step."""
    length, closed = given["length"], given["jaxpr"]
    if not isinstance(length, int):
        raise NotImplementedError(f"a loop of {length} steps has no end that is known")
    consts, carry, rows = _cut(values, given["num_consts"], given["num_carry"])
    found: dict[int, list[Any]] = {}
    for number in reversed(range(length)) if given["reverse"] else range(length):
        own = [jax.lax.index_in_dim(row, number, keepdims=False) for row in rows]
        result = _evaluate(closed.jaxpr, closed.consts, [*consts, *carry, *own])
        carry, found[number] = result[: len(carry)], result[len(carry) :]
    steps = [found[number] for number in range(length)]
    return [*carry, *(jnp.stack(parts) for parts in zip(*steps, strict=True))]


def _cut(values: list[Any], consts: int, carry: int) -> tuple[list[Any], list[Any], list[Any]]:
    return values[:consts], values[consts : consts + carry], values[consts + carry :]


def _pads(given: dict[str, Any]) -> list[tuple[int, int, int]]:
    return [(int(low), int(high), int(between)) for low, high, between in given["padding_config"]]


def _padded(array: Any, value: Any, pads: list[tuple[int, int, int]]) -> Any:
    for axis, (low, high, _) in enumerate(pads):
        parts = []
        for size in (low, high):
            shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
            parts.append([jax.lax.broadcast(value, shape)] if size else [])
        if low or high:
            array = jax.lax.concatenate([*parts[0], array, *parts[1]], axis)
    return array
