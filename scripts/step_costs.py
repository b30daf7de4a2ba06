"""What a traced function computes and sends, counted from its jaxpr.

XLA's own count takes the body of a loop once, however often it runs. Here a loop counts as often as
it does: what the numbers among the arguments say, such as how long captions are, is followed
through the program, so that a loop over the tokens of a batch ends where it would. Of what depends
on what is not given the least counts: one turn of a loop, of a condition the cheapest branch.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

# Bytes that a device receives for one byte of a collective's larger side, of n devices in a ring.
_RECEIVED: dict[str, Callable[[int], float]] = {
    "psum": lambda n: 2 * (n - 1) / n,
    "psum_invariant": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "ppermute": lambda n: float(n > 1),
    "pmax": lambda n: 2 * (n - 1) / n,
    "pmin": lambda n: 2 * (n - 1) / n,
}
# They say on which devices a value may differ, and leave it as it is.
_CASTS = ("pvary", "pcast", "reshard")
# What is known of a value: its integers or truths, or nothing.
_Known = np.ndarray | None


@dataclasses.dataclass
class Costs:
    """Of one device.

    Attributes:
      flops: of matrix products and convolutions, two a multiplication; nothing else is counted.
      received: bytes that collectives bring, by their names.
      calls: how many of these there are.
    """

    flops: float = 0.0
    received: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    calls: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))

    def add(self, other: "Costs", times: float = 1.0) -> None:
        """Adds what another costs, so many times."""
        self.flops += times * other.flops
        for mine, more in ((self.received, other.received), (self.calls, other.calls)):
            for name, value in more.items():
                mine[name] += times * value


def count(function: Callable[..., Any], *arguments: Any, devices: int) -> Costs:
    """The costs of a function of arrays, or of their shapes, mapped over so many devices.

    Integers and truths that are given as arrays are followed; of split ones the first device's.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments)
    given = [
        None if isinstance(x, jax.ShapeDtypeStruct) else _known(x)
        for x in jax.tree.leaves(arguments)
    ]
    counter = _Counter(devices)
    counter.run(jaxpr, given)
    return counter.total


def _known(value: Any) -> _Known:
    """The value, if it is of integers or truths."""
    return np.asarray(value) if _is_followed(value) else None


def _is_followed(value: Any) -> bool:
    """Whether an array or its type is one of integers or truths, which say how often loops run."""
    dtype = getattr(value, "dtype", None)
    return isinstance(dtype, np.dtype) and dtype.kind in "iub"


class _Counter:
    """Runs a program on what is known of its arguments, and adds up what it costs."""

    def __init__(self, devices: int) -> None:
        self.total = Costs()
        self._devices = devices
        # What nobody asks for, such as the words of a text encoder whose whole is compared, is
        # dropped by the compiler too. The keys' jaxprs are held, so that no id is another's.
        self._needed: dict[int, tuple[core.Jaxpr, core.Jaxpr]] = {}
        # Of those run with nothing known.
        self._unknown: dict[int, Costs] = {}

    def run(self, jaxpr: core.Jaxpr | core.ClosedJaxpr, given: Sequence[_Known]) -> list[_Known]:
        """What is known of the results, given what is known of the arguments."""
        constants: Sequence[Any] = ()
        if isinstance(jaxpr, core.ClosedJaxpr):
            jaxpr, constants = jaxpr.jaxpr, jaxpr.consts
        if id(jaxpr) not in self._needed:
            every = [True] * len(jaxpr.outvars)
            self._needed[id(jaxpr)] = (
                jaxpr,
                partial_eval.dce_jaxpr(jaxpr, every, instantiate=True)[0],
            )
        needed = self._needed[id(jaxpr)][1]
        env = dict(zip(needed.constvars, map(_known, constants), strict=True))
        env |= dict(zip(needed.invars, given, strict=True))

        def read(name: Any) -> _Known:
            if isinstance(name, core.Literal):
                return _known(np.asarray(name.val, name.aval.dtype))
            return env[name]

        for equation in needed.eqns:
            found = self._equation(equation, [read(name) for name in equation.invars])
            env |= dict(zip(equation.outvars, found, strict=True))
        return [read(name) for name in needed.outvars]

    def _equation(self, equation: core.JaxprEqn, given: Sequence[_Known]) -> Sequence[_Known]:
        """The same of an equation, whose cost it adds."""
        name, params = equation.primitive.name, equation.params
        nothing: Sequence[_Known] = [None] * len(equation.outvars)
        if name == "dot_general":
            self.total.flops += _product(equation)
        elif name == "conv_general_dilated":
            self.total.flops += _convolution(equation)
        elif name in _RECEIVED:
            sides = [equation.invars, equation.outvars]
            size = max(sum(_bytes(x.aval) for x in side) for side in sides)
            self.total.received[name] += _RECEIVED[name](self._devices) * size
            self.total.calls[name] += 1
        elif name in _CASTS:
            return given
        elif name == "axis_index":
            return [np.int32(0)]
        elif name == "while":
            return self._while(params, given)
        elif name == "scan":
            return self._scan(params, given) or nothing
        elif name == "cond":
            return self._cond(params, given)
        elif parts := list(_parts(equation)):
            if name == "shard_map":
                given = [
                    _first(x, spec, self._devices)
                    for x, spec in zip(given, params["in_specs"], strict=True)
                ]
                self.run(parts[0], given)
            elif len(parts) == 1 and len(_inside(parts[0]).invars) == len(given):
                return self.run(parts[0], given)
            else:
                for part in parts:
                    self.total.add(self._alone(part))
        elif all(x is not None for x in given) and all(
            _is_followed(x.aval) for x in equation.outvars
        ):
            found = equation.primitive.bind(*given, **params)
            return [
                np.asarray(x) for x in (found if equation.primitive.multiple_results else [found])
            ]
        return nothing

    def _alone(self, jaxpr: core.Jaxpr | core.ClosedJaxpr) -> Costs:
        """The costs of a program of whose arguments nothing is known."""
        key = id(_inside(jaxpr))
        if key not in self._unknown:
            outer, self.total = self.total, Costs()
            self.run(jaxpr, [None] * len(_inside(jaxpr).invars))
            self._unknown[key], self.total = self.total, outer
        return self._unknown[key]

    def _while(self, params: Any, given: Sequence[_Known]) -> Sequence[_Known]:
        of_condition, of_body = params["cond_nconsts"], params["body_nconsts"]
        condition, given = given[:of_condition], given[of_condition:]
        body, carry = given[:of_body], given[of_body:]
        while True:
            (goes_on,) = self.run(params["cond_jaxpr"], [*condition, *carry])
            if goes_on is None:
                self.total.add(self._alone(params["body_jaxpr"]))
                return [None] * len(carry)
            if not goes_on:
                return carry
            carry = self.run(params["body_jaxpr"], [*body, *carry])

    def _scan(self, params: Any, given: Sequence[_Known]) -> Sequence[_Known] | None:
        """What is known of the last carry, if anything was of what differs between the turns."""
        constants, carries = params["num_consts"], params["num_carry"]
        length = params["length"]
        rows = given[constants + carries :]
        carry = given[constants : constants + carries]
        if all(x is None for x in (*carry, *rows)):
            if all(x is None for x in given):
                self.total.add(self._alone(params["jaxpr"]), length)
            else:
                outer, self.total = self.total, Costs()
                self.run(params["jaxpr"], given)
                outer.add(self.total, length)
                self.total = outer
            return None
        turns = range(length - 1, -1, -1) if params["reverse"] else range(length)
        for turn in turns:
            row = [None if x is None else x[turn] for x in rows]
            found = self.run(params["jaxpr"], [*given[:constants], *carry, *row])
            carry = found[:carries]
        return [*carry, *[None] * (len(found) - carries)] if length else None

    def _cond(self, params: Any, given: Sequence[_Known]) -> Sequence[_Known]:
        branches, (index, *arguments) = params["branches"], given
        if index is not None:
            return self.run(branches[min(max(int(index), 0), len(branches) - 1)], arguments)
        outer, found = self.total, []
        for branch in branches:
            self.total = Costs()
            self.run(branch, arguments)
            found.append(self.total)
        self.total = outer
        self.total.add(min(found, key=lambda costs: costs.flops))
        return [None] * len(branches[0].out_avals)


def _first(value: _Known, spec: Any, devices: int) -> _Known:
    """The first device's share of a value that is split by its rows, or all of it."""
    if value is None or not any(axis is not None for axis in spec):
        return value
    return value[: len(value) // devices]


def _parts(equation: core.JaxprEqn) -> Iterator[core.Jaxpr | core.ClosedJaxpr]:
    """The functions that an equation calls."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                yield part


def _inside(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _product(equation: core.JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: core.JaxprEqn) -> float:
    """Of dilated inputs, as strides have them backward, zeros do not count."""
    out, kernel = equation.outvars[0].aval.shape, equation.invars[1].aval.shape
    numbers = equation.params["dimension_numbers"]
    window = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    return 2.0 * math.prod(out) * window / math.prod(equation.params["lhs_dilation"])


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize
