from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from jax.sharding import AxisType, PartitionSpec

from vse_jax.models.masked import MaskedBatchNorm, masked_softmax, to_front


def parts(batch=8, size=5, width=3):
    rng = np.random.default_rng(0)
    mask = rng.random((batch, size)) < 0.6
    mask[0], mask[1] = False, True
    return jnp.asarray(3 + 2 * rng.normal(size=(batch, size, width)), jnp.float32), jnp.asarray(
        mask
    )


def start(norm, x, mask):
    variables = norm.init(jax.random.key(0), x, mask, train=True)
    scale, bias = jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([0.0, 1.0, 2.0])
    return {**variables, "params": {"scale": scale, "bias": bias}}


def train(norm, variables, x, mask):
    return norm.apply(variables, x, mask, train=True, mutable=["batch_stats"])


def test_softmax_is_over_the_kept_entries():
    scores = jnp.asarray([[1.0, 2.0, 1e30, -3.0], [5.0, 6.0, 7.0, 8.0], [-1e30, 0.0, 0.0, 0.0]])
    mask = jnp.asarray([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    expected = np.exp([1.0, 2.0, -3.0]) / np.sum(np.exp([1.0, 2.0, -3.0]))
    weights, back = jax.vjp(lambda scores: masked_softmax(scores, mask), scores)
    np.testing.assert_allclose(weights[0], [*expected[:2], 0, expected[2]], atol=1e-6)
    np.testing.assert_array_equal(weights[1:], [[0, 0, 0, 0], [1, 0, 0, 0]])
    (gradient,) = back(jnp.arange(12.0).reshape(3, 4))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(jnp.where(mask, 0, gradient), 0)
    # A single entry weighs 1 whatever its score.
    np.testing.assert_array_equal(gradient[2], 0)
    mean = expected @ [0.0, 1.0, 3.0]
    np.testing.assert_allclose(gradient[0, [0, 1, 3]], expected * ([0, 1, 3] - mean), atol=1e-6)


def test_to_front_keeps_the_order():
    x, mask = parts()
    front, count = to_front(x, mask)
    for i in range(len(x)):
        np.testing.assert_array_equal(front[i, : int(count[i])], x[i][np.asarray(mask[i])])
    np.testing.assert_array_equal(count, jnp.sum(mask, axis=1))


@pytest.mark.torch
def test_batch_norm_equals_pytorch_on_the_kept_parts():
    torch = parity.torch()
    (x, mask), norm = parts(), MaskedBatchNorm()
    variables = start(norm, x, mask)
    layer = torch.nn.BatchNorm1d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.asarray(variables["params"]["scale"])))
        layer.bias.copy_(torch.tensor(np.asarray(variables["params"]["bias"])))
    weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    flat = torch.tensor(np.asarray(x)[np.asarray(mask)], requires_grad=True)
    expected = layer(flat)
    (expected * torch.tensor(weight[np.asarray(mask)])).sum().backward()

    def total(params, x):
        y, new = train(norm, {**variables, "params": params}, x, mask)
        return jnp.sum(jnp.where(mask[..., None], y * weight, 0.0)), (y, new["batch_stats"])

    grad = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (d_params, d_x), (y, stats) = grad(variables["params"], x)
    np.testing.assert_allclose(y[mask], expected.detach(), atol=1e-5)
    np.testing.assert_allclose(d_x[mask], flat.grad, atol=1e-5)
    np.testing.assert_array_equal(d_x[~mask], 0)
    np.testing.assert_allclose(d_params["scale"], layer.weight.grad, atol=1e-4)
    np.testing.assert_allclose(d_params["bias"], layer.bias.grad, atol=1e-4)
    np.testing.assert_allclose(stats["mean"], layer.running_mean, atol=1e-5)
    # PyTorch's running variance is the unbiased estimate.
    count = int(jnp.sum(mask))
    unbiased = (np.asarray(stats["var"]) - 0.9) * count / (count - 1) + 0.9
    np.testing.assert_allclose(unbiased, layer.running_var, atol=1e-5)
    with torch.no_grad():
        layer.running_var.copy_(torch.tensor(np.asarray(stats["var"])))
    evaluated = norm.apply({**variables, "batch_stats": stats}, x, mask, train=False)
    np.testing.assert_allclose(evaluated[mask], layer.eval()(flat.detach()).detach(), atol=1e-5)


def test_a_constant_channel_and_no_parts_have_finite_gradients():
    x, mask = parts()
    norm = MaskedBatchNorm()
    variables = start(norm, x, mask)

    def total(x, mask):
        y, new = train(norm, variables, x, mask)
        return jnp.sum(jnp.where(mask[..., None], y, 0.0)), new["batch_stats"]

    grad = jax.jit(jax.grad(total, has_aux=True))
    for values, kept in ((x.at[..., 0].set(2.0), mask), (x, jnp.zeros_like(mask))):
        gradient, stats = grad(values, kept)
        assert np.isfinite(gradient).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stats))
    np.testing.assert_array_equal(stats["mean"], 0)
    np.testing.assert_array_equal(stats["var"], 1)


def test_four_devices_with_unequal_numbers_of_parts_equal_one():
    x, mask = parts()
    assert len(set(np.asarray(jnp.sum(mask.reshape(4, -1), axis=1)).tolist())) > 1
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    alone, shared = MaskedBatchNorm(), MaskedBatchNorm(axis_name="data")
    variables = start(alone, x, mask)

    def total(norm, x, mask, weight):
        y, new = train(norm, variables, x, mask)
        return jnp.sum(jnp.where(mask[..., None], y * weight, 0.0)), new["batch_stats"]

    one = jax.jit(jax.grad(partial(total, alone), has_aux=True))(x, mask, weight)
    rows, whole = PartitionSpec("data"), PartitionSpec()
    four = jax.jit(
        jax.shard_map(
            jax.grad(partial(total, shared), has_aux=True),
            mesh=jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)),
            in_specs=(rows, rows, rows),
            out_specs=(rows, whole),
            check_vma=False,
        )
    )(x, mask, weight)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), four, one)
