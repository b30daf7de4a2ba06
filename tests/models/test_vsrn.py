from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from jax.sharding import AxisType, PartitionSpec

from vse_jax.models.vsrn import CaptionGenerator, VSRNImage

BATCH, SIZE, WIDTH, DIMENSION = 8, 5, 7, 6
LAYERS = 2


def parts(*, holes=True):
    rng = np.random.default_rng(0)
    mask = rng.random((BATCH, SIZE)) < 0.7 if holes else np.ones((BATCH, SIZE), bool)
    if holes:
        mask[0], mask[1], mask[2] = False, True, np.arange(SIZE) == 3
    x = rng.normal(size=(BATCH, SIZE, WIDTH))
    return jnp.asarray(x, jnp.float32), jnp.asarray(mask)


def filled(shapes):
    """Random variables of those shapes; variances are positive."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        value = rng.uniform(-0.6, 0.6, leaf.shape)
        return jnp.asarray(np.abs(value) + 0.5 if path[-1].key == "var" else value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


head = partial(VSRNImage, DIMENSION, LAYERS)


@cache
def start(model):
    return filled(jax.eval_shape(partial(model.init, train=False), jax.random.key(0), *parts()))


@cache
def trainer(model):
    return jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))


@cache
def evaluator(model):
    return jax.jit(partial(model.apply, train=False))


def encode(model, x, mask, train=False):
    """The encoding and, in training, the new statistics."""
    if train:
        return trainer(model)(start(model), x, mask)
    return evaluator(model)(start(model), x, mask), {}


def tensor(torch, value):
    return torch.tensor(np.asarray(value))


def torch_linear(torch, params):
    layer = torch.nn.Linear(*params["kernel"].shape)
    with torch.no_grad():
        layer.weight.copy_(tensor(torch, params["kernel"].T))
        layer.bias.copy_(tensor(torch, params["bias"]))
    return layer


def torch_gru(torch, params):
    hidden, inputs = params["weight_hh"].shape[1], params["weight_ih"].shape[1]
    layer = torch.nn.GRU(inputs, hidden, batch_first=True)
    with torch.no_grad():
        for name, value in params.items():
            getattr(layer, f"{name}_l0").copy_(tensor(torch, value))
    return layer


def torch_head(torch, variables, x, train, axis):
    """The formulas on sets without padding: (pooled, regions)."""
    scaled = partial(torch.nn.functional.normalize, dim=axis)
    params = variables["params"]
    v = scaled(torch_linear(torch, params["project"])(x))
    for layer in range(LAYERS):
        weights = params[f"graph{layer}"]
        stats = variables["batch_stats"][f"graph{layer}"]["norm"]
        theta, phi, g, out = (torch_linear(torch, weights[n]) for n in ("theta", "phi", "g", "out"))
        relations = theta(v) @ phi(v).transpose(1, 2) / v.shape[1]
        y = out(relations @ g(v)).reshape(-1, v.shape[-1])
        y = torch.nn.functional.batch_norm(
            y,
            tensor(torch, stats["mean"]).clone(),
            tensor(torch, stats["var"]).clone(),
            tensor(torch, weights["norm"]["scale"]),
            tensor(torch, weights["norm"]["bias"]),
            training=train,
        )
        v = v + y.reshape(v.shape)
    v = scaled(v)
    last = torch_gru(torch, params["gru"])(v)[1][0]
    return torch.nn.functional.normalize(last, dim=-1), v


@pytest.mark.torch
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("over", "axis"), [("regions", 1), ("channels", 2)])
def test_the_head_equals_pytorch(train, over, axis):
    torch = parity.torch()
    model, (x, mask) = head(over=over), parts(holes=False)
    features = tensor(torch, x).requires_grad_()
    expected, regions = torch_head(torch, start(model), features, train, axis)
    weight = np.random.default_rng(1).normal(size=(BATCH, DIMENSION)).astype(np.float32)
    (expected * torch.tensor(weight)).sum().backward()

    def total(x):
        encoding, _ = model.apply(start(model), x, mask, train=train, mutable=["batch_stats"])
        return jnp.sum(encoding.pooled * weight), encoding

    gradient, encoding = jax.jit(jax.grad(total, has_aux=True))(x)
    np.testing.assert_allclose(encoding.pooled, expected.detach(), atol=1e-4)
    np.testing.assert_allclose(encoding.local, regions.detach(), atol=1e-4)
    np.testing.assert_allclose(gradient, features.grad, atol=1e-4)


@pytest.mark.torch
def test_a_picture_with_holes_equals_pytorch_on_its_regions_alone():
    torch = parity.torch()
    model, (x, mask) = head(), parts()
    encoding, _ = encode(model, x, mask)
    for i in range(1, BATCH):
        kept = np.asarray(mask[i])
        alone = torch.tensor(np.asarray(x[i])[kept][None])
        expected, regions = torch_head(torch, start(model), alone, False, 1)
        np.testing.assert_allclose(encoding.pooled[i], expected[0].detach(), atol=1e-4)
        np.testing.assert_allclose(encoding.local[i][kept], regions[0].detach(), atol=1e-4)
    np.testing.assert_array_equal(encoding.local[~mask], 0)
    np.testing.assert_array_equal(encoding.pooled[0], 0)


@pytest.mark.parametrize("train", [True, False])
def test_padding_changes_nothing(train):
    model, (x, mask) = head(), parts()
    whole, stats = encode(model, x, mask, train)
    padded = jnp.concatenate([jnp.full_like(x[:, :2], 9.0), x], axis=1)
    wide = jnp.concatenate([jnp.zeros_like(mask[:, :2]), mask], axis=1)
    other, other_stats = encode(model, padded, wide, train)
    np.testing.assert_allclose(other.pooled, whole.pooled, atol=1e-6)
    np.testing.assert_allclose(other.local[:, 2:], whole.local, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), other_stats, stats)


def test_order_moves_the_regions_and_changes_the_whole():
    model, (x, mask) = head(), parts()
    whole, _ = encode(model, x, mask)
    order = np.random.default_rng(2).permutation(SIZE)
    other, _ = encode(model, x[:, order], mask[:, order])
    np.testing.assert_allclose(other.local, whole.local[:, order], atol=1e-6)
    assert np.abs(other.pooled - whole.pooled)[1].max() > 1e-3


def test_the_graph_starts_as_nothing_at_all():
    x, mask = parts()
    model = head(over="channels")
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x, mask)
    plain = VSRNImage(DIMENSION, 0, over="channels")
    bare = {"params": {k: v for k, v in variables["params"].items() if "graph" not in k}}
    encoding, expected = evaluator(model)(variables, x, mask), evaluator(plain)(bare, x, mask)
    np.testing.assert_allclose(encoding.pooled, expected.pooled, atol=1e-6)


def test_gradients_are_finite_on_zero_vectors_and_without_regions():
    model, (x, mask) = head(), parts()
    variables = start(model)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1), has_aux=True)
    def total(params, x, mask):
        run = {**variables, "params": params}
        encoding, new = model.apply(run, x, mask, train=True, mutable=["batch_stats"])
        return jnp.sum(encoding.pooled**3) + jnp.sum(encoding.local), (encoding.pooled, new)

    dead = jax.tree.map(jnp.zeros_like, variables["params"])
    for params, values, kept in (
        (variables["params"], jnp.zeros_like(x), mask),
        (dead, x, mask),
        (variables["params"], x, jnp.zeros_like(mask)),
    ):
        result = total(params, values, kept)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    np.testing.assert_array_equal(result[1][0], 0)


def test_four_devices_share_the_statistics_of_the_whole_batch():
    alone, shared = head(), head(axis_name="data")
    x, mask = parts()
    encoding, new = encode(alone, x, mask, train=True)
    rows, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        partial(shared.apply, train=True, mutable=["batch_stats"]),
        mesh=jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=(whole, rows, rows),
        out_specs=(rows, whole),
        check_vma=False,
    )
    four, four_new = jax.jit(mapped)(start(alone), x, mask)
    np.testing.assert_allclose(four.pooled, encoding.pooled, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), four_new, new)


WORDS, VOCABULARY, LENGTH = 4, 11, 7
LENGTHS = [0, 1, 2, 3, 4, 5, 6, 6]


def captions():
    rng = np.random.default_rng(3)
    mask = np.arange(LENGTH)[None] < np.asarray(LENGTHS)[:, None]
    tokens = np.where(mask, rng.integers(1, VOCABULARY, mask.shape), 0)
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)


generator = partial(CaptionGenerator, VOCABULARY, DIMENSION, WORDS)


@cache
def start_generator():
    shapes = jax.eval_shape(
        partial(generator().init, train=False), jax.random.key(0), *parts(), *captions()
    )
    return filled(shapes)


@cache
def likelihood():
    return jax.jit(partial(generator().apply, train=False))


def torch_costs(torch, params, regions, tokens):
    """The released captioner's loss of one caption, token by token."""
    encoder = torch_gru(torch, params["encoder"])
    project = torch_linear(torch, params["project"])
    states, h = encoder(project(regions)[None])
    weights = params["decoder"]
    attend, bias, score, out, out_bias = (
        tensor(torch, weights[n]) for n in ("attend", "attend_bias", "score", "out", "out_bias")
    )
    decoder = torch_gru(torch, weights["gru"])
    table, total = tensor(torch, params["words"]), torch.zeros(())
    for given, target in pairwise(tokens):
        pair = torch.cat([states[0], h[0].expand(len(states[0]), -1)], dim=1)
        alpha = torch.softmax(torch.tanh(pair @ attend + bias) @ score, dim=0)
        given = torch.cat([table[given], alpha @ states[0]])
        output, h = decoder(given[None, None], h)
        total = total - torch.log_softmax(output[0, 0] @ out + out_bias, dim=0)[target]
    return total


@pytest.mark.torch
def test_captions_cost_what_pytorch_says_and_so_do_their_gradients():
    torch = parity.torch()
    (x, mask), (tokens, real) = parts(), captions()
    mask = mask.at[0, 1].set(True)
    features = tensor(torch, x).requires_grad_()
    costs = [
        torch_costs(
            torch,
            start_generator()["params"],
            features[i][torch.tensor(np.asarray(mask[i]))],
            np.asarray(tokens[i])[: LENGTHS[i]].tolist(),
        )
        for i in range(2, BATCH)
    ]
    sum(costs).backward()
    ours = likelihood()(start_generator(), x, mask, tokens, real)
    np.testing.assert_allclose(ours[2:], [float(c.detach()) for c in costs], atol=1e-4)
    np.testing.assert_array_equal(ours[:2], 0)

    def total(x):
        return jnp.sum(generator().apply(start_generator(), x, mask, tokens, real, train=False))

    np.testing.assert_allclose(jax.jit(jax.grad(total))(x), features.grad, atol=1e-4)


def test_padded_regions_and_tokens_change_nothing():
    (x, mask), (tokens, real) = parts(), captions()
    whole = likelihood()(start_generator(), x, mask, tokens, real)
    wide = jnp.concatenate([jnp.full_like(x[:, :2], jnp.nan), x], axis=1)
    wide_mask = jnp.concatenate([jnp.zeros_like(mask[:, :2]), mask], axis=1)
    longer = jnp.concatenate([jnp.where(real, tokens, 5), jnp.full((BATCH, 3), 5)], axis=1)
    longer_mask = jnp.concatenate([real, jnp.zeros((BATCH, 3), bool)], axis=1)
    other = likelihood()(start_generator(), wide, wide_mask, longer, longer_mask)
    np.testing.assert_allclose(other, whole, atol=1e-5)


def test_the_costs_of_all_next_words_are_a_distribution():
    (x, mask), (tokens, _) = parts(), captions()
    prefix, total = tokens[7:, :3], 0.0
    for last in range(VOCABULARY):
        row = jnp.concatenate([prefix, jnp.full((1, 1), last, jnp.int32)], axis=1)
        costs = [
            likelihood()(start_generator(), x[7:], mask[7:], row, jnp.arange(4)[None] < n)[0]
            for n in (4, 3)
        ]
        total += float(jnp.exp(costs[1] - costs[0]))
    assert abs(total - 1) < 1e-5


@pytest.mark.parametrize("regions", [True, False])
def test_gradients_of_captions_are_finite_with_and_without_regions(regions):
    (x, mask), (tokens, real) = parts(), captions()
    mask = mask if regions else jnp.zeros_like(mask)
    rngs = {"dropout": jax.random.key(0)}

    def total(variables, x):
        return jnp.sum(generator().apply(variables, x, mask, tokens, real, train=True, rngs=rngs))

    gradients = jax.jit(jax.grad(total, (0, 1)))(start_generator(), x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(gradients[1][~mask], 0)


def test_dropout_acts_only_in_training():
    inputs = (start_generator(), *parts(), *captions())
    train = jax.jit(partial(generator().apply, train=True))
    first, again, other = (train(*inputs, rngs={"dropout": jax.random.key(k)}) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other)[2:].min() > 0
    assert np.abs(first - likelihood()(*inputs))[2:].min() > 0


def test_bfloat16_is_close_and_gives_float32():
    half, full = head(dtype=jnp.bfloat16), head()
    x, mask = parts()
    rough, exact = evaluator(half)(start(full), x, mask), evaluator(full)(start(full), x, mask)
    assert rough.pooled.dtype == rough.local.dtype == jnp.float32
    np.testing.assert_allclose(rough.pooled, exact.pooled, atol=0.1)
    costs = generator(dtype=jnp.bfloat16).apply(
        start_generator(), x, mask, *captions(), train=False
    )
    assert costs.dtype == jnp.float32
    np.testing.assert_allclose(
        costs, likelihood()(start_generator(), x, mask, *captions()), rtol=0.05
    )
