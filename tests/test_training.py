"""The step that a config makes, as the loop takes it."""

import jax
import numpy as np
import pytest
import tiny_step

from vse_jax import accumulation
from vse_jax.optimizer import flatten
from vse_jax.parallel import Devices


@pytest.fixture
def config(preset):
    """A loss that sees all pairs of the batch."""
    return tiny_step.config(preset, "vsepp,objective=infonce")


def random(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def test_a_step_takes_the_memory_of_the_state_before(config):
    batch = tiny_step.batch()
    _, whole, shapes = tiny_step.built(config, batch)
    state = jax.tree.map(np.asarray, whole.initial_state(random(shapes)))
    devices = Devices("shard_map", tuple(jax.devices()[:2]))
    before, rows = devices.place(state), devices.split(batch)
    after, _ = whole.on(devices, state)(before, rows)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, rows)))


def test_the_config_says_in_how_many_parts_gradients_are_taken(config, monkeypatch):
    batch, parts, found = tiny_step.batch(), [], []
    whole_gradient = accumulation.value_and_grad

    def watched(*given):
        parts.append(given[-1])
        return whole_gradient(*given)

    monkeypatch.setattr(accumulation, "value_and_grad", watched)
    for asked in (1, 4):
        config.train.accumulate = asked
        _, whole, shapes = tiny_step.built(config, batch)
        variables = random(shapes)
        found.append(tiny_step.stepped(whole, variables, batch))
    assert parts == [1, 4]
    (one, alone), (other, together) = found
    np.testing.assert_allclose(together["loss"], alone["loss"], rtol=1e-5)
    old, one, other = map(flatten, (variables["params"], one.params, other.params))
    gradients = [{name: each[name] - old[name] for name in old} for each in (one, other)]
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in gradients[0].values()))
    assert norm > 0.1
    for name, leaf in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], leaf, atol=1e-5 * norm, err_msg=name)
