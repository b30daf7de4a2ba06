import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vse_jax import optimizer, parallel
from vse_jax.config import ConfigError, default_config
from vse_jax.parallel import Devices

PARAMS = {
    "image": {
        "backbone": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)},
        "project": {"kernel": np.full((3, 2), 0.5, np.float32)},
    },
    "text": {"words": np.full((4, 2), -0.5, np.float32), "bias": np.zeros(2, np.float32)},
}
NAMES = (
    "image/backbone/kernel", "image/backbone/bias", "image/project/kernel",
    "text/words", "text/bias",
)  # fmt: skip


def section(**values):
    config = default_config().train
    config.update(values)
    return config


def test_names_join_all_levels_and_come_apart_again():
    flat = optimizer.flatten(PARAMS)
    assert set(flat) == set(NAMES)
    assert jax.tree.all(jax.tree.map(np.array_equal, optimizer.unflatten(flat), PARAMS))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((), (1.0, 1.0, 1.0, 1.0, 1.0)),
        ((("image/.*", 0.1), ("image/project/.*", 5.0)), (0.1, 0.1, 0.1, 1.0, 1.0)),
        ((("image/project/.*", 5.0), ("image/.*", 0.1)), (0.1, 0.1, 5.0, 1.0, 1.0)),
        ((("image/backbone/bias", 2.0), ("image/.*", None)), (None, 2.0, None, 1.0, 1.0)),
        # The whole name has to match.
        ((("image", 3.0), ("bias", 3.0), (".*/bias", 4.0)), (1.0, 4.0, 1.0, 1.0, 4.0)),
    ],
)
def test_the_first_rule_that_matches_the_whole_name_wins(rules, expected):
    assert tuple(optimizer.multiplier(name, rules) for name in NAMES) == expected


def test_none_freezes():
    trainable, frozen = optimizer.partition(PARAMS, (("image/backbone/.*", None), (".*", 0.5)))
    assert set(frozen) == {"image/backbone/kernel", "image/backbone/bias"}
    assert set(trainable) == set(NAMES) - set(frozen)
    trainable, frozen = optimizer.partition(PARAMS, ())
    assert (set(trainable), frozen) == (set(NAMES), {})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("image/(", None),), r"'train\.freeze' holds 'image/\(': not a pattern"),
        ((("imgae/.*", None),), r"'imgae/\.\*', which matches no parameter; .*image/backbone/bias"),
        ((("image/.*", None), ("text", 0.1)), "'text', which matches no parameter"),
        (((".*", None),), "freezes every parameter"),
    ],
)
def test_rules_that_cannot_be_meant(rules, message):
    with pytest.raises(ConfigError, match=message):
        optimizer.partition(PARAMS, rules)


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_updates_are_those_of_adam_written_by_hand(clip, decay):
    rules = (("image/backbone/kernel", 0.1), ("text/words", 3.0), ("image/backbone/bias", None))
    config = section(freeze=rules, clip_norm=clip, weight_decay=decay)
    trainable, _ = optimizer.partition(PARAMS, rules)
    rates = [0.1, 0.05, 0.2, 0.01]
    update = optimizer.make_optimizer(config, trainable, lambda step: jnp.asarray(rates)[step])
    state, params = update.init(trainable), trainable
    expected = {name: value.astype(np.float64) for name, value in trainable.items()}
    moments = dict.fromkeys(trainable, (0.0, 0.0))
    factors = {"image/backbone/kernel": 0.1, "text/words": 3.0}
    draw = np.random.default_rng(0)
    for t, rate in enumerate(rates, 1):
        gradient = {
            name: draw.normal(size=v.shape).astype(np.float32) for name, v in trainable.items()
        }
        updates, state = update.update(gradient, state, params)
        params = optax.apply_updates(params, updates)

        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradient.values()))
        shrink = 1.0 if clip is None else min(1.0, clip / norm)
        for name, g in gradient.items():
            g = g * shrink
            m = 0.9 * moments[name][0] + 0.1 * g
            v = 0.999 * moments[name][1] + 0.001 * g**2
            moments[name] = (m, v)
            # In float32, 1 - 0.999**t is off by 6e-5 of itself.
            unbiased = v / (1 - np.float32(0.999) ** np.float32(t))
            direction = (m / (1 - 0.9**t)) / (np.sqrt(unbiased) + 1e-8)
            if expected[name].ndim == 2:
                direction = direction + decay * expected[name]
            expected[name] = expected[name] - rate * factors.get(name, 1.0) * direction
        for name, value in expected.items():
            np.testing.assert_allclose(params[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    if clip:
        assert norm > clip, "nothing was clipped"


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
@pytest.mark.parametrize("rule", ["adam", "sgd", "rmsprop"])
def test_a_state_shared_out_makes_the_same_updates(rule, mode):
    """On devices that do not divide the numbers of all parameters."""
    devices = Devices(mode, tuple(jax.devices()[:4]))
    trainable, _ = optimizer.partition(PARAMS, ())
    assert any(value.size % 4 for value in trainable.values())
    draw = np.random.default_rng(0)
    gradients = [
        {name: draw.normal(size=v.shape).astype(np.float32) for name, v in trainable.items()}
        for _ in range(3)
    ]
    found, states = [], []
    for shared in (False, True):
        config = section(
            optimizer=rule, clip_norm=0.7, weight_decay=0.1, shard_optimizer=shared,
            freeze=(("text/words", 3.0),),
        )  # fmt: skip
        update = optimizer.make_optimizer(config, trainable, lambda _: 0.1)

        def step(params, state, gradient, update=update):
            updates, state = update.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, updates

        state = jax.tree.map(np.asarray, update.init(trainable))
        placed = parallel.placements(state)
        same = parallel.REPLICATED
        mapped = devices.map(step, (same, placed, same), (same, placed, same))
        params, state = devices.place(trainable), devices.place(state)
        steps = []
        for gradient in gradients:
            params, state, updates = mapped(params, state, devices.place(gradient))
            steps.append(devices.fetch(updates))
        found.append(steps)
        states.append(devices.fetch(state))
    for number, (one, other) in enumerate(zip(*found, strict=True)):
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-6, err_msg=f"{number} {name}")
    whole, shared = (jax.tree.leaves(state) for state in states)
    for one, other in zip(whole, shared, strict=True):
        np.testing.assert_allclose(other, np.ravel(one) if np.ndim(one) else one, rtol=1e-5)
    rows = [x for x in jax.tree.leaves(state, is_leaf=parallel.is_split) if parallel.is_split(x)]
    assert rows
    for x in rows:
        part = x.rows.addressable_shards[0].data.size
        assert part == -(-x.count // 4)


@pytest.mark.parametrize("rule", ["sgd", "rmsprop"])
def test_other_rules_are_their_formulas_with_each_number_clipped(rule):
    config = section(optimizer=rule, momentum=0.8, rms_decay=0.9, clip_value=0.5)
    trainable, _ = optimizer.partition(PARAMS, ())
    update = optimizer.make_optimizer(config, trainable, lambda _: 0.1)
    state, params = update.init(trainable), trainable
    expected = {name: value.astype(np.float64) for name, value in trainable.items()}
    kept = dict.fromkeys(trainable, 0.0)
    draw = np.random.default_rng(0)
    for _ in range(4):
        gradient = {
            name: draw.normal(size=v.shape).astype(np.float32) for name, v in trainable.items()
        }
        updates, state = update.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for name, g in gradient.items():
            g = np.clip(g.astype(np.float64), -0.5, 0.5)
            if rule == "sgd":
                kept[name] = 0.8 * kept[name] + g
                direction = kept[name]
            else:
                kept[name] = 0.9 * kept[name] + 0.1 * g**2
                direction = g / (np.sqrt(kept[name]) + 1e-8)
            expected[name] = expected[name] - 0.1 * direction
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def rates(config, steps, steps_per_epoch, at):
    rate = optimizer.schedule(config, steps, steps_per_epoch)
    return np.array([float(rate(step)) for step in at])


def test_cosine_falls_from_the_peak_to_zero():
    config = section(learning_rate=2.0, schedule="cosine")
    at = np.array([0, 10, 25, 50, 100])
    expected = 1.0 + np.cos(np.pi * at / 100)
    np.testing.assert_allclose(rates(config, 100, 10.0, at), expected, atol=1e-6)


def test_cosine_after_a_linear_warm_up():
    config = section(learning_rate=2.0, schedule="cosine", warmup_epochs=2.0)
    at = np.array([0, 4, 9, 18, 19, 20, 60, 100])
    expected = [0.1, 0.5, 1.0, 1.9, 2.0, 2.0, 1.0, 0.0]
    np.testing.assert_allclose(rates(config, 100, 10.0, at), expected, atol=1e-6)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_step_decays_at_its_steps_counted_from_the_start(warmup):
    config = section(
        learning_rate=1.0, schedule="step", decay_steps=(20, 35), decay_factor=0.1,
        warmup_epochs=warmup,
    )  # fmt: skip
    at = np.array([10, 19, 20, 34, 35, 99])
    expected = [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(rates(config, 100, 10.0, at), expected, rtol=1e-5)


def test_two_decays_that_fall_on_one_step_both_count():
    config = section(learning_rate=1.0, schedule="step", decay_steps=(2, 2), decay_factor=0.5)
    found = rates(config, 10, 2.0, [1, 2, 9])
    np.testing.assert_allclose(found, [1.0, 0.25, 0.25], rtol=1e-6)


def test_constant_stays_where_the_warm_up_leads():
    config = section(learning_rate=0.5, schedule="constant", warmup_epochs=0.5)
    found = rates(config, 100, 4.0, [0, 1, 2, 50, 1000])
    np.testing.assert_allclose(found, [0.25, 0.5, 0.5, 0.5, 0.5], rtol=1e-6)
    config = section(learning_rate=0.5, schedule="constant", warmup_epochs=0.25)
    np.testing.assert_allclose(rates(config, 100, 4.0, [0, 1]), [0.5, 0.5], rtol=1e-6)


def test_the_moving_average():
    ema, params = {"a": jnp.asarray([1.0])}, {"a": jnp.asarray([3.0])}
    for _ in range(2):
        ema = optimizer.average(ema, params, 0.9)
    np.testing.assert_allclose(ema["a"], [3.0 - 2.0 * 0.9**2], rtol=1e-6)
