"""Steps in bfloat16 do what steps in float32 do, and keep in float32 all that adds up."""

import functools

import jax
import numpy as np
import pytest
import tiny_step
from jax.tree_util import Partial

from vse_jax import alignment, training_objective
from vse_jax.encoding import Encoding
from vse_jax.evaluators import blocks
from vse_jax.objectives.base import Objective
from vse_jax.optimizer import flatten
from vse_jax.parallel import AXIS

# One of each kind, and how near the gradient must be: embeddings, scores of pairs (of which the
# hardest are near each other before any training), words and classes.
SYSTEMS = {"leap": 0.99, "saf": 0.95, "cam": 0.99}


@pytest.fixture(params=SYSTEMS)
def system(request):
    return request.param


@pytest.fixture
def batch(system):
    return tiny_step.batch(parts=1 if system == "leap" else 5)


def in_precision(preset, system, precision):
    config = tiny_step.config(preset, system)
    config.precision = precision
    return config


@pytest.mark.slow
def test_bfloat16_goes_the_way_of_float32(preset, system, batch):
    model, exactly, _ = tiny_step.built(in_precision(preset, system, "float32"), batch)
    _, roughly, _ = tiny_step.built(in_precision(preset, system, "bfloat16"), batch)
    variables = tiny_step.drawn(model, batch)
    (full, losses), (half, rough) = (
        tiny_step.stepped(whole, variables, batch) for whole in (exactly, roughly)
    )
    assert rough["loss"].dtype == np.float32
    np.testing.assert_allclose(rough["loss"], losses["loss"], rtol=0.02)
    start, full, half = map(flatten, (variables["params"], full.params, half.params))
    exact, found = (
        np.concatenate([np.ravel(params[name] - start[name]) for name in start])
        for params in (full, half)
    )
    assert not np.array_equal(exact, found)
    cosine = exact @ found / (np.linalg.norm(exact) * np.linalg.norm(found))
    assert cosine > SYSTEMS[system]
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(exact), rtol=0.05)


def test_what_adds_up_is_float32(preset, system, batch, monkeypatch):
    """From the programs: of the objective, similarities and all, nothing is in bfloat16.

    Nor is what a step leaves behind: parameters, statistics, moments and the moving average.
    """
    programs, build = [], training_objective.build

    def watched(config):
        whole = build(config)

        def apply(*given):
            programs.append(str(jax.make_jaxpr(whole.apply, axis_env=[(AXIS, 1)])(*given)))
            return whole.apply(*given)

        return Objective(whole.init, apply)

    monkeypatch.setattr(training_objective, "build", watched)
    config = in_precision(preset, system, "bfloat16")
    config.train.update({"optimizer": "adam", "ema": 0.9})
    _, whole, shapes = tiny_step.built(config, batch)
    state = jax.eval_shape(whole.initial_state, shapes)
    step = jax.make_jaxpr(whole.on(tiny_step.ONE, state), return_shape=True)
    program, (after, metrics) = step(state, batch)
    assert "bf16" in str(program)
    assert programs
    assert all("f32" in program and "bf16" not in program for program in programs)
    assert jax.tree.leaves(after.opt_state)
    assert after.ema
    for leaf in jax.tree.leaves((after, metrics)):
        assert leaf.dtype in (np.float32, np.int32, np.uint32), leaf


def test_programs_apart_from_the_step_ask_for_float32_too():
    """Scores of words with regions, and of pairs where they are ranked; see `parallel.Devices`."""
    vectors, rows = np.ones((2, 3, 4), np.float32), np.ones((4, 8), np.float32)
    sets = Encoding(vectors, np.ones((2, 3), bool), vectors[:, 0])
    score = Partial(lambda images, captions: images @ captions.T)
    programs = (
        jax.make_jaxpr(alignment.pair_scores)(sets, sets),
        jax.make_jaxpr(functools.partial(blocks._score, width=2))(score, rows, rows, np.int32(0)),
    )
    for program in programs:
        told = str(program)
        products = told.count("dot_general[")
        assert products
        assert told.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products, told
