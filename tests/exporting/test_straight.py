"""A function written straight does what it did, for batches of any size too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.exporting.straight import straightened


def arguments(*shapes, kind=jnp.float32):
    scope = jax.export.SymbolicScope()
    return [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), kind)
        for shape in shapes
    ]


def run(straight, shapes, *arrays):
    """Results for arrays of one of the sizes that the symbols stand for."""
    return jax.export.export(jax.jit(straight))(*shapes).call(*arrays)


def names_in(jaxpr):
    return {equation.primitive.name for equation in jaxpr.eqns}


def running_sums(x, *, reverse):
    def step(total, given):
        number, row = given
        total = total + number * row
        return total, (total, row)

    given = jnp.arange(x.shape[1]), x.swapaxes(0, 1)
    return jax.lax.scan(step, jnp.zeros(x.shape[::2]), given, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_loops_are_written_out(reverse):
    shape = arguments("b, 5, 3")

    def call(x):
        last, (totals, rows) = running_sums(x, reverse=reverse)
        return last, totals, rows

    straight = straightened(call, shape)
    found = jax.make_jaxpr(straight)(*shape)
    assert "scan" not in names_in(found.jaxpr)
    x = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
    last, totals, rows = run(straight, shape, x)
    order = range(5)[::-1] if reverse else range(5)
    total, by_hand = np.zeros((4, 3), np.float32), {}
    for number in order:
        by_hand[number] = total = total + number * x[:, number]
    np.testing.assert_allclose(last, total, rtol=1e-6)
    np.testing.assert_allclose(totals, np.stack([by_hand[n] for n in range(5)]), rtol=1e-6)
    np.testing.assert_array_equal(rows, x.swapaxes(0, 1))


def test_a_loop_without_a_known_end_is_refused():
    shape = arguments("b, r, 3")
    straight = straightened(lambda x: running_sums(x, reverse=False)[:1], shape)
    with pytest.raises(NotImplementedError, match="a loop of r steps has no end that is known"):
        jax.make_jaxpr(straight)(*shape)


def test_padding_is_concatenation():
    shape = arguments("b, 4")
    straight = straightened(
        lambda x: [jnp.pad(x, ((0, 0), (1, 2)), constant_values=7), jax.nn.relu(x)], shape
    )
    found = jax.make_jaxpr(straight)(*shape)
    assert not {"pad", "jit", "custom_jvp_call"} & names_in(found.jaxpr)
    x = np.array([[-1.0, 2.0, -3.0, 4.0]], np.float32)
    padded, rectified = run(straight, shape, x)
    np.testing.assert_array_equal(padded, [[7, -1, 2, -3, 4, 7, 7]])
    np.testing.assert_array_equal(rectified, [[0, 2, 0, 4]])


def test_products_in_which_nothing_is_summed():
    shape = arguments("b, r, 3", "b, r, 2")
    straight = straightened(lambda a, b: [jnp.einsum("bri,brj->brij", a, b)], shape)
    assert "dot_general" not in names_in(jax.make_jaxpr(straight)(*shape).jaxpr)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((4, 5, width)).astype(np.float32) for width in (3, 2))
    [found] = run(straight, shape, a, b)
    np.testing.assert_allclose(found, a[..., :, None] * b[..., None, :], rtol=1e-6)


def test_a_result_that_is_an_argument_is_a_copy():
    shape = arguments("b, 4", kind=jnp.bool_)
    found = jax.make_jaxpr(straightened(lambda x: [x], shape))(*shape)
    assert found.jaxpr.outvars[0] is not found.jaxpr.invars[0]
