"""The step of one device: forward, objective, gradient, all-reduce, update."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vse_jax import parallel
from vse_jax.objectives.base import Batch, Metrics, Objective, Spec
from vse_jax.optimizer import Rules, average, flatten, partition, unflatten
from vse_jax.train_state import TrainState


class NonFiniteLoss(Exception):  # noqa: N818 (it says what happened)
    """A loss or gradient that is NaN or infinite: names the step and the pictures."""


def init_state(
    variables: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    spec: Spec,
    rules: Rules,
    seed: int,
    ema: bool,
) -> TrainState:
    """The state before the first step.

    Args:
      variables: {"params": ..., "batch_stats"?: ...}, pretrained weights already inside.
      objective: whose state to start.
      optimizer: over the trainable parameters, by whole name.
      spec: for the objective.
      rules: `train.freeze`.
      seed: of the run.
      ema: whether to keep a moving average of the parameters.
    """
    trainable, _ = partition(variables["params"], rules)
    rng = jax.random.fold_in(jax.random.key(seed), 1)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(trainable),
        objective_state=objective.init(rng, spec),
        ema=jax.tree.map(jnp.copy, trainable) if ema else None,
    )


def make_step(
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rules: Rules,
    seed: int,
    ema_decay: float,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A step (state, this device's rows) -> (new state, metrics), for `Devices.map`.

    Metrics are the same on every device: `loss`, `gradient_norm` (before clipping) and the
    objective's own.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trainable, frozen = partition(state.params, rules)
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        rng = jax.random.fold_in(rng, parallel.device_index())

        def loss_of(trainable: dict[str, Array]) -> tuple[Float[Array, ""], Any]:
            variables = {
                "params": unflatten(trainable | frozen),
                "batch_stats": state.batch_stats,
            }
            outputs, updated = model.apply(
                variables,
                batch,
                train=True,
                gather=parallel.all_gather,
                rngs={"dropout": rng},
                mutable=["batch_stats"],
            )
            loss, objective_state, metrics = objective.apply(state.objective_state, outputs, batch)
            return loss, (updated.get("batch_stats", {}), objective_state, metrics)

        (loss, (batch_stats, objective_state, metrics)), gradient = jax.value_and_grad(
            loss_of, has_aux=True
        )(trainable)
        gradient, loss = parallel.mean((gradient, loss))
        updates, opt_state = optimizer.update(gradient, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        # Shorter at first, or the average would hold the random start for epochs.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = state.ema if state.ema is None else average(state.ema, trainable, decay)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)} | metrics
        return state.replace(
            step=state.step + 1,
            params=unflatten(trainable | frozen),
            # A model fed with cached features leaves the backbone's statistics out.
            batch_stats=unflatten(flatten(state.batch_stats) | flatten(parallel.mean(batch_stats))),
            opt_state=opt_state,
            objective_state=objective_state,
            ema=ema,
        ), metrics

    return step


def evaluation_params(state: TrainState) -> Any:
    """The parameters to evaluate: the moving average where there is one."""
    return _averaged(state.params, state.ema)


def evaluation_variables(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """`params`, as `evaluation_params`, and `batch_stats` of a state as it was saved."""
    params = _averaged(checkpoint["params"], checkpoint.get("ema"))
    return {"params": params, "batch_stats": checkpoint.get("batch_stats", {})}


def _averaged(params: Any, ema: Any) -> Any:
    return params if ema is None else unflatten(flatten(params) | flatten(ema))
