import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from vse_jax.models.packed import pack
from vse_jax.models.recurrent import GRUParams, GRUResult, average, gru

WORDS, HIDDEN, LENGTH = 5, 6, 9
LENGTHS = {5: [0, 1, 9, 3, 9], 37: [(7 * i) % 10 for i in range(37)], 2: [0, 0]}
LENGTHS[130] = [(3 * i) % 10 for i in range(130)]


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def problem(batch, lengths=None, *, length=LENGTH, hidden=HIDDEN, seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) * 0.5, jnp.float32)

    params = GRUParams(
        draw(3 * hidden, WORDS), draw(3 * hidden, hidden), draw(3 * hidden), draw(3 * hidden)
    )
    lengths = jnp.asarray(LENGTHS[batch] if lengths is None else lengths, jnp.int32)
    return params, draw(batch, length, WORDS), lengths


def weights(batch, *, length=LENGTH, hidden=HIDDEN):
    """Fixed random weights that make one number of everything a GRU returns."""
    rng = np.random.default_rng(1)
    shapes = (batch, length, hidden), (batch, hidden)
    return GRUResult(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))


def loss(params, inputs, lengths, weight, **options):
    result = gru(params, inputs, lengths, **options)
    return jnp.sum(result.outputs * weight.outputs) + jnp.sum(result.last * weight.last)


# Compiled once for each shape: most of these tests' time is the compiler's.
run = jax.jit(gru, static_argnames=("reverse", "dtype"))
gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnames=("reverse", "dtype"))


def numpy_gru(params, inputs, lengths, reverse):
    """The formula, one caption and one token at a time, in float64."""
    w_ih, w_hh, b_ih, b_hh = (np.asarray(leaf, np.float64) for leaf in params)
    hidden = w_hh.shape[1]
    outputs = np.zeros((*inputs.shape[:2], hidden))
    last = np.zeros((inputs.shape[0], hidden))
    for i, count in enumerate(np.asarray(lengths)):
        for t in reversed(range(count)) if reverse else range(count):
            x_r, x_z, x_n = np.split(w_ih @ np.asarray(inputs[i, t], np.float64) + b_ih, 3)
            h_r, h_z, h_n = np.split(w_hh @ last[i] + b_hh, 3)
            r, z = 1 / (1 + np.exp(-x_r - h_r)), 1 / (1 + np.exp(-x_z - h_z))
            last[i] = (1 - z) * np.tanh(x_n + r * h_n) + z * last[i]
            outputs[i, t] = last[i]
    return outputs, last


@pytest.mark.parametrize(
    ("batch", "reverse"),
    [(2, True), (5, False), (37, True), (130, False)],
)
def test_equals_the_formula(batch, reverse):
    params, inputs, lengths = problem(batch)
    result = run(params, inputs, lengths, reverse=reverse)
    outputs, last = numpy_gru(params, inputs, lengths, reverse)
    np.testing.assert_allclose(result.outputs, outputs, atol=1e-5)
    np.testing.assert_allclose(result.last, last, atol=1e-5)


def test_pack_rounds_rows_up_and_reads_every_token_once():
    lengths = jnp.asarray([2, 0, 3, 1, 3] + [1] * 15, jnp.int32)
    packing = pack(lengths, 4)
    np.testing.assert_array_equal(packing.active, [19, 3, 2, 0])
    np.testing.assert_array_equal(packing.rows, [24, 8, 8, 0])
    assert (int(packing.steps), int(packing.total)) == (3, 40)
    read = np.sort(np.asarray(packing.source))
    np.testing.assert_array_equal(
        read[read < 80], [4 * i + t for i, count in enumerate(lengths) for t in range(count)]
    )


def torch_reference(torch, params, inputs, lengths, weight, reverse):
    """Values and gradients of nn.GRU on packed sequences; lengths must be positive."""
    layer = torch.nn.GRU(WORDS, params.weight_hh.shape[1], batch_first=True, bidirectional=reverse)
    suffix = "_l0_reverse" if reverse else "_l0"
    leaves = [getattr(layer, name + suffix) for name in GRUParams._fields]
    with torch.no_grad():
        for leaf, value in zip(leaves, params, strict=True):
            leaf.copy_(torch.tensor(np.asarray(value)))
    x = torch.tensor(np.asarray(inputs), requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, torch.tensor(np.asarray(lengths)), batch_first=True, enforce_sorted=False
    )
    states, last = layer(packed)
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(
        states, batch_first=True, total_length=inputs.shape[1]
    )
    outputs, last = outputs[..., -params.weight_hh.shape[1] :], last[-1]
    total = (outputs * torch.tensor(np.asarray(weight.outputs))).sum()
    total = total + (last * torch.tensor(np.asarray(weight.last))).sum()
    total.backward()
    gradients = [leaf.grad.numpy() for leaf in leaves]
    return outputs.detach().numpy(), last.detach().numpy(), gradients, x.grad.numpy()


@pytest.mark.torch
def test_equals_pytorch_in_values_and_gradients():
    torch = parity.torch()
    batch, reverse = 37, True
    params, inputs, lengths = problem(batch, [(5 * i) % 9 + 1 for i in range(batch)])
    weight = weights(batch)
    outputs, last, d_params, d_inputs = torch_reference(
        torch, params, inputs, lengths, weight, reverse
    )
    result = run(params, inputs, lengths, reverse=reverse)
    ours = gradient(params, inputs, lengths, weight, reverse=reverse)
    np.testing.assert_allclose(result.outputs, outputs, atol=1e-5)
    np.testing.assert_allclose(result.last, last, atol=1e-5)
    np.testing.assert_allclose(ours[1], d_inputs, atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(ours[0], d_params, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=1e-4)


def test_gradient_agrees_with_finite_differences_in_both_directions():
    params, inputs, lengths = problem(5, [0, 1, 3, 2, 3], length=3, hidden=3)
    weight = weights(5, length=3, hidden=3)

    @jax.jit
    def value(params, inputs):
        one, other = (loss(params, inputs, lengths, weight, reverse=r) for r in (False, True))
        return one + 2 * other

    check_grads(value, (params, inputs), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("part", ["outputs", "last"])
def test_gradient_of_one_part_alone(part):
    params, inputs, lengths = problem(5)
    weight = weights(5)
    zero = weight._replace(
        **{name: 0 * getattr(weight, name) for name in {*weight._fields} - {part}}
    )

    def alone(params):
        return jnp.sum(getattr(gru(params, inputs, lengths), part) * getattr(weight, part))

    both, _ = gradient(params, inputs, lengths, zero)
    for mine, theirs in zip(jax.jit(jax.grad(alone))(params), both, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_caption_alone_equals_the_same_in_a_batch():
    params, inputs, lengths = problem(130)
    whole = run(params, inputs, lengths)
    for i in (0, 1, 3, 6):
        alone = run(params, inputs[i : i + 1, :7], lengths[i : i + 1])
        count = min(int(lengths[i]), 7)
        np.testing.assert_allclose(alone.outputs[0, :count], whole.outputs[i, :count], atol=1e-6)
        if count == lengths[i]:
            np.testing.assert_allclose(alone.last[0], whole.last[i], atol=1e-6)


def test_padding_is_never_read():
    params, inputs, lengths = problem(5)
    real = jnp.arange(LENGTH)[None, :, None] < lengths[:, None, None]
    clean = gradient(params, jnp.where(real, inputs, 0.0), lengths, weights(5))
    dirty = gradient(params, jnp.where(real, inputs, jnp.nan), lengths, weights(5))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(jnp.where(real, 0.0, dirty[1]), 0.0)


def test_same_inputs_same_bits():
    params, inputs, lengths = problem(37)
    # The direction that other tests have compiled.
    first, second = (
        (
            run(params, inputs, lengths, reverse=True),
            gradient(params, inputs, lengths, weights(37), reverse=True),
        )
        for _ in range(2)
    )
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_four_devices_equal_one():
    params, inputs, lengths = problem(8, [(3 * i) % 10 for i in range(8)])
    weight = weights(8)
    one = gradient(params, inputs, lengths, weight)

    def local(params, inputs, lengths, weight):
        d_params, d_inputs = jax.grad(loss, (0, 1))(params, inputs, lengths, weight)
        return jax.lax.psum(d_params, "data"), d_inputs

    rows, whole = PartitionSpec("data"), PartitionSpec()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(whole, rows, rows, rows),
        out_specs=(whole, rows),
        check_vma=False,
    )
    four = jax.jit(mapped)(params, inputs, lengths, weight)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_bfloat16_products_keep_float32_states_and_gradients():
    params, inputs, lengths = problem(5)
    half = run(params, inputs, lengths, dtype=jnp.bfloat16)
    full = run(params, inputs, lengths)
    assert half.outputs.dtype == half.last.dtype == jnp.float32
    np.testing.assert_allclose(half.last, full.last, atol=0.05)
    rough, _ = gradient(params, inputs, lengths, weights(5), dtype=jnp.bfloat16)
    exact, _ = gradient(params, inputs, lengths, weights(5))
    for a, b in zip(rough, exact, strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def test_average_is_the_mean_of_both_directions():
    forward = weights(5)
    backward = GRUResult(*(leaf[::-1] for leaf in forward))
    mean = average(forward, backward)
    np.testing.assert_allclose(2 * mean.last, forward.last + backward.last, atol=1e-6)
    np.testing.assert_allclose(2 * mean.outputs, forward.outputs + backward.outputs, atol=1e-6)
