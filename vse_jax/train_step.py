"""The step of one device: forward, objective, gradient, all-reduce, update."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vse_jax import accumulation, parallel
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
    parts: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A step (state, this device's rows) -> (new state, metrics), for `Devices.map`.

    Metrics are the same on every device: `loss`, `gradient_norm` (before clipping) and the
    objective's own. A device's rows are encoded in `parts`, see `accumulation`; batch statistics,
    and what is drawn at random, are of each part by itself then.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trainable, frozen = partition(state.params, rules)
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        rng = jax.random.fold_in(rng, parallel.device_index())

        def encode(trainable: dict[str, Array], rows: Batch, number: Any) -> tuple[Any, Any]:
            own = rng if parts == 1 else jax.random.fold_in(rng, number)
            outputs, updated = model.apply(
                {"params": unflatten(trainable | frozen), "batch_stats": state.batch_stats},
                rows,
                train=True,
                rngs={"dropout": own},
                mutable=["batch_stats"],
                method="encode",
            )
            return outputs, _moved(state.batch_stats, updated)

        def judge(
            trainable: dict[str, Array], outputs: Any, batch_stats: Any
        ) -> tuple[Float[Array, ""], Any]:
            outputs, updated = model.apply(
                {"params": unflatten(trainable | frozen), "batch_stats": batch_stats},
                outputs,
                train=True,
                gather=parallel.all_gather,
                rngs={"dropout": rng},
                mutable=["batch_stats"],
                method="relate",
            )
            loss, objective_state, metrics = objective.apply(state.objective_state, outputs, batch)
            return loss, (_moved(batch_stats, updated), objective_state, metrics)

        loss, (batch_stats, objective_state, metrics), gradient = accumulation.value_and_grad(
            encode, judge, trainable, batch, parts
        )
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
            batch_stats=parallel.mean(batch_stats),
            opt_state=opt_state,
            objective_state=objective_state,
            ema=ema,
        ), metrics

    return step


def _moved(batch_stats: Any, updated: Mapping[str, Any]) -> Any:
    """The statistics with those that a pass has moved; of cached features it leaves some out."""
    return unflatten(flatten(batch_stats) | flatten(updated.get("batch_stats", {})))


def evaluation_params(state: TrainState) -> Any:
    """The parameters to evaluate: the moving average where there is one."""
    return _averaged(state.params, state.ema)


def evaluation_variables(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """`params`, as `evaluation_params`, and `batch_stats` of a state as it was saved."""
    params = _averaged(checkpoint["params"], checkpoint.get("ema"))
    return {"params": params, "batch_stats": checkpoint.get("batch_stats", {})}


def _averaged(params: Any, ema: Any) -> Any:
    return params if ema is None else unflatten(flatten(params) | flatten(ema))
