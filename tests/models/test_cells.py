"""The cells over real tokens alone do what PyTorch's, or a loop, does over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.models import cells
from vse_jax.models.cells import CellParams

WORDS, HIDDEN, LENGTH = 5, 6, 9


def drawn(lstm, batch, seed=0):
    rng = np.random.default_rng(seed)
    gates = (4 if lstm else 1) * HIDDEN

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    params = CellParams(normal(WORDS, gates), 0.5 * normal(HIDDEN, gates), normal(gates))
    lengths = rng.integers(0, LENGTH + 1, batch).astype(np.int32)
    lengths[:2] = LENGTH, 0
    given = params, normal(batch, gates), normal(batch, LENGTH, WORDS), lengths
    return jax.tree.map(jnp.asarray, given)


def by_loop(params, shown, words, lengths, lstm, reverse=False):
    """A caption at a time, a word at a time, as the formula says; with a gradient of JAX's own."""
    if reverse:
        back = jnp.maximum(lengths[:, None] - 1 - jnp.arange(LENGTH)[None], 0)[..., None]
        forward = by_loop(params, shown, jnp.take_along_axis(words, back, 1), lengths, lstm)
        real = jnp.arange(LENGTH)[None] < lengths[:, None]
        return jnp.where(real[..., None], jnp.take_along_axis(forward, back, 1), 0)
    sigmoid, found = jax.nn.sigmoid, []
    for caption, length in enumerate(lengths):
        h, c, states = jnp.zeros(HIDDEN), jnp.zeros(HIDDEN), []
        for t in range(LENGTH):
            if t >= length:
                states.append(jnp.zeros(HIDDEN))
                continue
            x = words[caption, t]
            x = x if params.weight_hx is None else x @ params.weight_hx
            a = x + h @ params.weight_hh + params.bias
            a = a + shown[caption] if t == 0 else a
            if lstm:
                i, f, g, o = a[:6], a[6:12], a[12:18], a[18:]
                c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
                h = sigmoid(o) * jnp.tanh(c)
            else:
                h = jnp.maximum(a, 0)
            states.append(h)
        found.append(jnp.stack(states))
    return jnp.stack(found)


@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize("batch", [2, 13])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_states_and_gradients_are_those_of_a_loop(lstm, batch, reverse, direct):
    """In both directions; of words that are multiplied, or added as they are."""
    params, shown, words, lengths = drawn(lstm, batch)
    if direct:
        params = params._replace(weight_hx=None)
        rng = np.random.default_rng(5)
        words = jnp.asarray(rng.normal(size=(*words.shape[:2], len(params.bias))), jnp.float32)
    weights = np.random.default_rng(9).normal(size=(batch, LENGTH, HIDDEN)).astype(np.float32)

    def ours(*given):
        states = cells.states(*given, lengths, lstm=lstm, reverse=reverse)
        return jnp.sum(states * weights), states

    def loop(*given):
        states = by_loop(*given, lengths, lstm, reverse)
        return jnp.sum(states * weights), states

    given = params, shown, words
    found = jax.value_and_grad(ours, (0, 1, 2), has_aux=True)(*given)
    expected = jax.value_and_grad(loop, (0, 1, 2), has_aux=True)(*given)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lstm", [False, True])
def test_what_lies_behind_a_caption_changes_nothing(lstm):
    params, shown, words, lengths = drawn(lstm, 13)
    behind = jnp.arange(LENGTH)[None] >= lengths[:, None]

    def run(words):
        def total(params, shown):
            return jnp.sum(cells.states(params, shown, words, lengths, lstm=lstm) ** 2)

        return jax.value_and_grad(total, (0, 1))(params, shown)

    for other in (np.nan, 1e30):
        found = run(jnp.where(behind[..., None], other, words))
        for one, same in zip(jax.tree.leaves(found), jax.tree.leaves(run(words)), strict=True):
            np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("lstm", [False, True])
def test_in_bfloat16_it_is_close_and_float32(lstm):
    params, shown, words, lengths = drawn(lstm, 40)
    exact = cells.states(params, shown, words, lengths, lstm=lstm)
    rough = cells.states(params, shown, words, lengths, lstm=lstm, dtype=jnp.bfloat16)
    assert rough.dtype == jnp.float32
    difference = np.abs(np.asarray(rough - exact)).max() / np.abs(np.asarray(exact)).max()
    assert 0 < difference < 0.05
