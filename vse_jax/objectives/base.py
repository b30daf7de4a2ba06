"""What is optimised: (init, apply) pairs with a state of their own, and their weighted sum."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from vse_jax import parallel

State = Any
Outputs = Mapping[str, Any]
Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


class Spec(flax.struct.PyTreeNode):
    """What an objective may know before the first step.

    Attributes:
      dimension: of the common space.
      images: training pictures.
      steps_per_epoch: optimisation steps an epoch, rounded up.
      steps: optimisation steps of the whole training.
    """

    dimension: int
    images: int
    steps_per_epoch: int
    steps: int


class Objective(NamedTuple):
    """A loss with a state that the train state carries, in the manner of optax.

    Attributes:
      init: (rng, spec) -> state.
      apply: (state, outputs, batch) -> (loss, new state, metrics), run on each device with
        its rows of the batch. Sums are over the global batch: the mean over the devices of
        the returned losses is the loss of the whole batch. The new state, but for its
        `parallel.SplitRows`, and the metrics are the same on every device.
    """

    init: Callable[[PRNGKeyArray, Spec], State]
    apply: Callable[[State, Outputs, Batch], tuple[Float[Array, ""], State, Metrics]]


def no_state(rng: PRNGKeyArray, spec: Spec) -> dict[str, Any]:
    """The `init` of an objective that keeps nothing from step to step."""
    del rng, spec
    return {}


def mean_over(costs: Float[Array, " b"], where: Bool[Array, " b"]) -> Float[Array, ""]:
    """This device's share of the mean over the rows of the global batch that `where` keeps.

    The mean over the devices of the shares is that mean; 0, without gradient, where none is kept.
    """
    count = jnp.maximum(parallel.total(jnp.sum(where)), 1)
    return parallel.device_count() * jnp.sum(jnp.where(where, costs, 0.0)) / count


def weighted_sum(terms: Mapping[str, tuple[float, Objective]]) -> Objective:
    """The sum of weight x loss over the terms; states and metrics are kept by term name."""

    def init(rng: PRNGKeyArray, spec: Spec) -> State:
        keys = jax.random.split(rng, len(terms))
        return {
            name: objective.init(key, spec)
            for key, (name, (_, objective)) in zip(keys, sorted(terms.items()), strict=True)
        }

    def apply(
        state: State, outputs: Outputs, batch: Batch
    ) -> tuple[Float[Array, ""], State, Metrics]:
        losses: list[Float[Array, ""]] = []
        states: dict[str, State] = {}
        metrics: Metrics = {}
        for name, (weight, objective) in sorted(terms.items()):
            loss, states[name], own = objective.apply(state[name], outputs, batch)
            losses.append(weight * loss)
            metrics |= {f"{name}/{key}": value for key, value in own.items()}
        return sum(losses[1:], losses[0]), states, metrics

    return Objective(init, apply)
