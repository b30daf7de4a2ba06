"""For a batch of any size layers do what they do for one of a size that is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.encoding import Encoding
from vse_jax.models import cells, recurrent
from vse_jax.models.backbones.mobilenet_v2 import MobileNetV2
from vse_jax.models.dvsa import FragmentScore
from vse_jax.models.gpo import GPO
from vse_jax.models.sgraf import SAF
from vse_jax.models.symbolic import is_symbolic

RNG = np.random.default_rng(0)
LENGTHS = np.array([3, 0, 5, 1], np.int32)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def of_any_size(function, shapes, *arrays):
    """The function exported once for all sizes that letters stand for, called with arrays."""
    scope = jax.export.SymbolicScope()
    symbols = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), array.dtype)
        for shape, array in zip(shapes, arrays, strict=True)
    ]
    assert all(is_symbolic(*symbol.shape) for symbol in symbols)
    return jax.export.export(jax.jit(function))(*symbols).call(*arrays)


def same(function, shapes, *arrays, atol=1e-6):
    found, wanted = of_any_size(function, shapes, *arrays), jax.jit(function)(*arrays)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for own, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, own, atol=atol)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_gru(reverse):
    params = recurrent.GRUParams(floats(12, 3), floats(12, 4), floats(12), floats(12))

    def function(inputs, lengths):
        params_here = jax.tree.map(jnp.asarray, params)
        return tuple(recurrent.gru(params_here, inputs, lengths, reverse=reverse))

    same(function, ("b, 5, 3", "b"), floats(4, 5, 3), LENGTHS)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("lstm", "words"), [(False, None), (True, 3)])
def test_other_cells(reverse, lstm, words):
    width = 16 if lstm else 4
    params = cells.CellParams(
        None if words is None else floats(words, width), floats(4, width), floats(width)
    )

    def function(shown, inputs, lengths):
        here = jax.tree.map(jnp.asarray, params)
        return cells.states(here, shown, inputs, lengths, lstm=lstm, reverse=reverse)

    given = floats(4, width), floats(4, 5, words or width), LENGTHS
    same(function, (f"b, {width}", f"b, 5, {words or width}", "b"), *given)


@pytest.mark.parametrize("regions", ["5", "r"])
def test_generalized_pooling(regions):
    pool = GPO(code=4, hidden=3)
    values, mask = floats(4, 5, 2), (np.arange(5)[None] < LENGTHS[:, None])
    values[2, 1] = values[2, 3]  # equal ones
    params = pool.init(jax.random.key(0), jnp.asarray(values), jnp.asarray(mask))
    same(lambda *given: pool.apply(params, *given), (f"b, {regions}, 2", f"b, {regions}"), values,
         mask)  # fmt: skip


@pytest.mark.parametrize("network", [FragmentScore(), SAF(width=4)])
def test_scores_of_pairs(network):
    """Of more captions than a tile has, some pictures without a region."""
    images = floats(4, 5, 3), np.arange(5)[None] < LENGTHS[:, None], floats(4, 3)
    texts = floats(20, 6, 3), np.arange(6)[None] < RNG.integers(1, 7, 20)[:, None], floats(20, 3)

    def encodings(arrays):
        return (Encoding(*(jnp.asarray(x) for x in own)) for own in (arrays[:3], arrays[3:]))

    variables = network.init(jax.random.key(0), *encodings((*images, *texts)), train=False)

    def function(*arrays):
        return network.apply(variables, *encodings(arrays), train=False)

    shapes = ("a, r, 3", "a, r", "a, 3", "b, 6, 3", "b, 6", "b, 3")
    same(function, shapes, *images, *texts)


def test_mobilenet_by_grouped_convolutions():
    """Another way to the same numbers, with dilated blocks and those that halve the map."""
    image = jnp.asarray(RNG.integers(0, 256, (2, 32, 32, 3), np.uint8))
    own = MobileNetV2(depth_multiplier=0.35, output_stride=16)
    variables = jax.jit(partial(own.init, train=False))(jax.random.key(0), image)
    wanted, found = (
        jax.jit(partial(model.apply, train=False))(variables, image).grid
        for model in (own, own.clone(grouped=True))
    )
    largest = np.abs(wanted).max()
    assert largest > 1e-3
    np.testing.assert_allclose(found, wanted, atol=1e-5 * largest)
