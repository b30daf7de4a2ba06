"""What a traced function computes and sends, counted from its jaxpr.

XLA's own count takes the body of a loop once, however often it runs; here a scan's counts as often
as it does. A while loop of unknown length counts once, of a condition the dearest branch.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
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
    """The costs of a function of arrays, or of their shapes, mapped over so many devices."""
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr, devices)


def _of(jaxpr: core.Jaxpr, devices: int) -> Costs:
    total = Costs()
    # What nobody asks for, such as the words of a text encoder whose whole is compared, is dropped
    # by the compiler too.
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total.flops += _product(equation)
        elif name == "conv_general_dilated":
            total.flops += _convolution(equation)
        elif name in _RECEIVED:
            sides = [equation.invars, equation.outvars]
            size = max(sum(_bytes(x.aval) for x in side) for side in sides)
            total.received[name] += _RECEIVED[name](devices) * size
            total.calls[name] += 1
        inside = [_of(part, devices) for part in _parts(equation)]
        if name == "cond":
            inside = [max(inside, key=lambda costs: costs.flops)]
        times = equation.params["length"] if name == "scan" else 1
        for costs in inside:
            total.add(costs, times)
    return total


def _parts(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The functions that an equation calls."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


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
