"""From a config, a model and the length of a training to its first state and its step."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vse_jax import optimizer, parallel, train_step, training_objective
from vse_jax.objectives.base import Batch, Metrics, Spec
from vse_jax.train_state import TrainState


class Training(NamedTuple):
    """What a config trains.

    Attributes:
      initial_state: variables -> the state before the first step.
      step: of one device, (state, its rows) -> (new state, metrics).
      rate: number of a step, from 0 -> its learning rate.
    """

    initial_state: Callable[[Any], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    rate: Callable[[int], Float[Array, ""]]

    def on(
        self, devices: parallel.Devices, state: TrainState
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """The step over all devices, which takes the memory of the state that it is given.

        `state` may be shapes alone.
        """
        placed = parallel.placements(state)
        return devices.map(
            self.step, (placed, parallel.SPLIT), (placed, parallel.REPLICATED), donate=(0,)
        )


def build(
    config: ConfigDict,
    model: nn.Module,
    params: Mapping[str, Any],
    *,
    images: int,
    steps: int,
    steps_per_epoch: float,
) -> Training:
    """The training of `model` by `config`.

    Args:
      config: of the run.
      model: its network.
      params: parameters like its own, or their shapes, of which `train.freeze` names some.
      images: training pictures.
      steps: of the whole training.
      steps_per_epoch: examples of an epoch over those of a batch.
    """
    own = config.train
    trainable, _ = optimizer.partition(params, own.freeze)
    rate = optimizer.schedule(own, steps, steps_per_epoch)
    update: optax.GradientTransformation = optimizer.make_optimizer(own, trainable, rate)
    objective = training_objective.build(config)
    spec = Spec(config.model.dimension, images, math.ceil(steps_per_epoch), steps)

    def initial_state(variables: Any) -> TrainState:
        return train_step.init_state(
            variables, objective, update, spec, own.freeze, config.seed, ema=own.ema > 0
        )

    step = train_step.make_step(
        model, objective, update, own.freeze, config.seed, own.ema, own.accumulate
    )
    return Training(initial_state, step, rate)
