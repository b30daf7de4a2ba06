"""Schedule, clipping, the rule of the update, and which parameters move at which rate."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vse_jax import parallel
from vse_jax.config import ConfigError

Rules = Sequence[tuple[str, float | None]]
# Parameters by whole name, "text/gru/weight_hh"; on a device, or on the host.
Leaf = Array | np.ndarray | jax.ShapeDtypeStruct
Flat = Mapping[str, Leaf]


def flatten(params: Any) -> dict[str, Leaf]:
    """The tree as one dict of whole names, levels joined by "/"."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(params: Flat) -> dict[str, Any]:
    """The tree that `flatten` took apart."""
    return traverse_util.unflatten_dict(dict(params), sep="/")


def multiplier(name: str, rules: Rules) -> float | None:
    """The learning-rate factor of the first rule that matches the whole name; 1 if none does."""
    for pattern, factor in rules:
        if re.fullmatch(pattern, name):
            return factor
    return 1.0


def partition(params: Any, rules: Rules) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """(trainable, frozen) parameters by whole name.

    Raises:
      ConfigError: a pattern is no regular expression or matches nothing.
    """
    flat = flatten(params)
    for pattern, _ in rules:
        try:
            matched = any(re.fullmatch(pattern, name) for name in flat)
        except re.error as error:
            raise ConfigError(
                f"'train.freeze' holds {pattern!r}: not a pattern: {error}"
            ) from error
        if not matched:
            raise ConfigError(
                f"'train.freeze' holds {pattern!r}, which matches no parameter; "
                f"names look like {', '.join(sorted(flat)[:3])}"
            )
    trainable = {k: v for k, v in flat.items() if multiplier(k, rules) is not None}
    if not trainable:
        raise ConfigError("'train.freeze' freezes every parameter: nothing would be learned")
    return trainable, {k: v for k, v in flat.items() if k not in trainable}


def schedule(config: ConfigDict, steps: int, steps_per_epoch: float) -> optax.Schedule:
    """The learning rate of each step, as `config.train` says, over `steps` steps."""
    peak, warmup = config.learning_rate, round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    elif config.schedule == "step":
        boundaries: dict[int, float] = {}
        for step in config.decay_steps:
            boundaries[step - warmup] = boundaries.get(step - warmup, 1.0) * config.decay_factor
        main = optax.piecewise_constant_schedule(peak, boundaries)
    else:
        main = optax.constant_schedule(peak)
    if not warmup:
        return main
    # The first step has its share too: at a rate of 0 it would be wasted.
    rise = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else main
    return optax.join_schedules([rise, main], [warmup])


def make_optimizer(
    config: ConfigDict, trainable: Flat, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Clip, Adam or another rule, decoupled decay of matrices, factor by name, learning rate.

    Gradients are clipped element by element (`clip_value`), then by their global norm.

    Args:
      config: the section `train`.
      trainable: parameters by whole name, for the factors of `train.freeze`.
      learning_rate: of each step.
    """
    factors = {name: multiplier(name, config.freeze) or 0.0 for name in trainable}
    matrices = {name: value.ndim > 1 for name, value in trainable.items()}

    def scale(updates: Any, params: Any = None) -> Any:
        del params
        return {name: update * factors[name] for name, update in updates.items()}

    chain = []
    if config.clip_value is not None:
        chain.append(optax.clip(config.clip_value))
    if config.clip_norm is not None:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    rule = _RULES[config.optimizer](config)
    chain.append(_sharded(rule) if config.shard_optimizer else rule)
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=matrices))
    if any(factor != 1.0 for factor in factors.values()):
        chain.append(optax.stateless(scale))
    return optax.chain(*chain, optax.scale_by_learning_rate(learning_rate))


_RULES: Mapping[str, Callable[[ConfigDict], optax.GradientTransformation]] = {
    "adam": lambda _: optax.scale_by_adam(),
    "sgd": lambda config: optax.trace(config.momentum),
    "rmsprop": lambda config: optax.scale_by_rms(config.rms_decay, eps=1e-8, eps_in_sqrt=False),
}


def _sharded(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """A rule of single numbers, of whose state each device holds an equal share.

    Each device updates its share, and the shares are gathered. Source: Rajbhandari et al., ZeRO,
    SC 2020, section 5.1 (the optimizer's state alone).
    """

    def init(params: Any) -> Any:
        flat = jax.tree.map(lambda x: jnp.zeros(x.size, x.dtype), params)
        return jax.tree.map(
            lambda x: parallel.SplitRows(x, len(x)) if x.ndim else x, rule.init(flat)
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        own, others = (
            None if tree is None else jax.tree.map(parallel.own_share, tree)
            for tree in (updates, params)
        )
        held = jax.tree.map(
            lambda x: x.rows if parallel.is_split(x) else x, state, is_leaf=parallel.is_split
        )
        share, moved = rule.update(own, held, others)
        kept = jax.tree.map(
            lambda old, new: old.replace(rows=new) if parallel.is_split(old) else new,
            state, moved, is_leaf=parallel.is_split,
        )  # fmt: skip
        whole = jax.tree.map(lambda x, like: parallel.from_shares(x, like.shape), share, updates)
        return whole, kept

    return optax.GradientTransformation(init, update)


def average(ema: Flat, params: Flat, decay: float | Float[Array, ""]) -> dict[str, Array]:
    """ema <- decay * ema + (1 - decay) * params."""
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, dict(ema), dict(params))
