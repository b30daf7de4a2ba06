from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from jax.test_util import check_grads

from vse_jax.models import gpo
from vse_jax.models.gpo import GPO, position_code, sorted_pool


def numpy_pool(values, mask, theta):
    """The formula, one channel at a time."""
    result = np.zeros((values.shape[0], values.shape[2]))
    for i, j in np.ndindex(*result.shape):
        ranked = np.sort(values[i, mask[i], j])[::-1]
        result[i, j] = theta[i, : len(ranked)] @ ranked
    return result


def problem(batch=6, size=7, width=5, *, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(batch, size, width)).astype(np.float32)
    if ties:
        values = np.round(values)
    mask = rng.random((batch, size)) < 0.7
    mask[0], mask[1] = True, False
    theta = rng.normal(size=(batch, size)).astype(np.float32)
    return jnp.asarray(values), jnp.asarray(mask), jnp.asarray(theta)


@pytest.fixture(params=[True, False], ids=["counted", "sorted"])
def way(request, monkeypatch):
    """Both ways of ranking; returns whether it is that of few parts."""
    if not request.param:
        monkeypatch.setattr(gpo, "_COUNTED", 0)
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("ties", [False, True])
def test_sorted_pool_equals_the_formula(ties):
    values, mask, theta = problem(ties=ties)
    pooled = sorted_pool(values, mask, theta)
    expected = numpy_pool(np.asarray(values), np.asarray(mask), np.asarray(theta))
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    np.testing.assert_array_equal(pooled[1], 0)


@pytest.mark.usefixtures("way")
def test_its_gradient_agrees_with_finite_differences():
    values, mask, theta = problem(4, 4, 3)
    pool = jax.jit(lambda values, theta: sorted_pool(values, mask, theta))
    check_grads(pool, (values, theta), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.torch
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [1, 17, 49])
def test_sorted_pool_and_its_gradient_equal_pytorch(size):
    torch = parity.torch()
    values, _, theta = problem(3, size, 8)
    weight = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    x, t = (torch.tensor(np.asarray(a), requires_grad=True) for a in (values, theta))
    pooled = (x.sort(dim=1, descending=True)[0] * t[..., None]).sum(1)
    (pooled * torch.tensor(weight)).sum().backward()
    mask = jnp.ones((3, size), bool)
    ours, back = jax.vjp(lambda values, theta: sorted_pool(values, mask, theta), values, theta)
    d_values, d_theta = back(jnp.asarray(weight))
    np.testing.assert_allclose(ours, pooled.detach(), atol=1e-5)
    np.testing.assert_allclose(d_values, x.grad, atol=1e-5)
    np.testing.assert_allclose(d_theta, t.grad, atol=1e-5)


def test_equal_values_share_the_gradient_of_their_ranks(way):
    values, mask, theta = problem(3, 5, 2)
    values = values.at[0, :3].set(4.0).at[0, 3:].set(0.0)
    gradient = jax.grad(lambda values: jnp.sum(sorted_pool(values, mask, theta)))(values)[0]
    for channel in gradient.T:
        np.testing.assert_allclose(jnp.sum(channel[:3]), jnp.sum(theta[0, :3]), atol=1e-5)
        np.testing.assert_allclose(jnp.sum(channel[3:]), jnp.sum(theta[0, 3:]), atol=1e-5)
    if way:
        np.testing.assert_allclose(gradient[:3], jnp.full((3, 2), theta[0, :3].mean()), atol=1e-6)


@pytest.mark.usefixtures("way")
def test_masked_values_are_never_read():
    values, mask, theta = problem()
    real = jnp.arange(7)[None] < jnp.sum(mask, axis=1, keepdims=True)

    def run(values, theta):
        pooled, back = jax.vjp(lambda v, t: sorted_pool(v, mask, t), values, theta)
        return pooled, *back(jnp.ones_like(pooled))

    clean = run(jnp.where(mask[..., None], values, 0.0), jnp.where(real, theta, 0.0))
    dirty = run(jnp.where(mask[..., None], values, jnp.nan), jnp.where(real, theta, 9.0))
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(jnp.where(mask[..., None], 0.0, dirty[1]), 0.0)
    np.testing.assert_array_equal(jnp.where(real, 0.0, dirty[2]), 0.0)


@pytest.mark.usefixtures("way")
def test_infinite_values_and_both_zeros_are_ranked():
    values = jnp.asarray([[[-jnp.inf], [0.0], [-0.0], [jnp.inf], [-3e38]]])
    mask, pick = jnp.ones((1, 5), bool), jnp.eye(5)
    for k, expected in enumerate([jnp.inf, 0.0, 0.0, -3e38, -jnp.inf]):
        finite = jnp.clip(values, -3.2e38, 3.2e38)
        np.testing.assert_allclose(
            sorted_pool(finite, mask, pick[k : k + 1])[0, 0], np.clip(expected, -3.2e38, 3.2e38)
        )


def test_position_code_is_the_transformers():
    code = position_code(9, 6)
    for k, i in np.ndindex(9, 3):
        angle = k / 10000 ** (2 * i / 6)
        np.testing.assert_allclose(code[k, 2 * i], np.sin(angle), atol=1e-6)
        np.testing.assert_allclose(code[k, 2 * i + 1], np.cos(angle), atol=1e-6)


SIZE = 6


@cache
def start():
    model = GPO(code=8, hidden=4)
    parts, mask, _ = problem(2, SIZE)
    shapes = jax.eval_shape(model.init, jax.random.key(0), parts, mask)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-0.7, 0.7, leaf.shape), leaf.dtype), shapes
    )
    return model, variables


@cache
def pool():
    return jax.jit(start()[0].apply)


def torch_gpo(torch, params, counts):
    """The released operator's weights, one set at a time and without padding."""
    gru = torch.nn.GRU(8, 4, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name, suffix in (("gru", "_l0"), ("gru_reverse", "_l0_reverse")):
            for leaf, value in params[name].items():
                getattr(gru, leaf + suffix).copy_(torch.tensor(np.asarray(value)))
    score = torch.tensor(np.asarray(params["score"]))
    for count in counts:
        code = torch.zeros(count, 8)
        frequency = torch.exp(torch.arange(0, 8, 2) * -(np.log(10000.0) / 8))
        code[:, 0::2] = torch.sin(torch.arange(count)[:, None] * frequency)
        code[:, 1::2] = torch.cos(torch.arange(count)[:, None] * frequency)
        states = gru(code[None])[0][0]
        states = (states[:, :4] + states[:, 4:]) / 2
        yield torch.softmax(states @ score / 0.1, 0).detach().numpy()


@pytest.mark.torch
def test_weights_and_pooled_equal_pytorch():
    torch = parity.torch()
    model, variables = start()
    counts = range(1, SIZE + 1)
    expected = np.zeros((SIZE + 1, SIZE), np.float32)
    for count, theta in zip(counts, torch_gpo(torch, variables["params"], counts), strict=True):
        expected[count, :count] = theta
    ours = model.apply(variables, jnp.arange(SIZE + 1), SIZE, method="weights")
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    # More rows than counts, and fewer: the table, and the weights of each row.
    for batch in (9, 3):
        parts, mask, _ = problem(batch, SIZE)
        theta = expected[np.sum(mask, axis=1)]
        pooled = numpy_pool(np.asarray(parts), np.asarray(mask), theta)
        np.testing.assert_allclose(pool()(variables, parts, mask), pooled, atol=1e-5)


def test_more_rows_than_counts_change_nothing():
    model, variables = start()
    parts, mask, _ = problem(9, SIZE)

    def total(variables, rows):
        cut = [(parts[i : i + rows], mask[i : i + rows]) for i in range(0, 9, rows)]
        return sum(jnp.sum(model.apply(variables, *each) ** 2) for each in cut)

    table, direct = (jax.jit(jax.grad(partial(total, rows=rows)))(variables) for rows in (9, 3))
    for a, b in zip(jax.tree.leaves(table), jax.tree.leaves(direct), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_padding_and_order_change_nothing():
    _, variables = start()
    parts, mask, _ = problem(5, SIZE)
    whole = pool()(variables, parts, mask)
    order = np.random.default_rng(2).permutation(SIZE)
    np.testing.assert_array_equal(pool()(variables, parts[:, order], mask[:, order]), whole)
    padded = jnp.concatenate([jnp.full_like(parts, 7.0), parts], axis=1)
    wide = jnp.concatenate([jnp.zeros_like(mask), mask], axis=1)
    np.testing.assert_allclose(pool()(variables, padded, wide), whole, atol=1e-6)


@pytest.mark.parametrize("empty", [False, True])
def test_gradients_are_finite_on_equal_and_on_no_parts(empty):
    model, variables = start()
    parts, mask = jnp.zeros((4, SIZE, 5)), jnp.full((4, SIZE), not empty)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def total(variables, parts):
        return jnp.sum(model.apply(variables, parts, mask))

    value, gradients = total(variables, parts)
    assert float(value) == 0
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
    if empty:
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))
