from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from jax.sharding import AxisType, PartitionSpec

from vse_jax.models.vse_infinity import (
    VSEInfinityImage,
    VSEInfinityText,
    altered_tokens,
    dropped,
)

BATCH, SIZE, WIDTH, DIMENSION = 8, 5, 7, 6


def parts(batch=BATCH, *, holes=True):
    rng = np.random.default_rng(0)
    mask = rng.random((batch, SIZE)) < 0.7 if holes else np.ones((batch, SIZE), bool)
    if holes:
        mask[0], mask[1] = False, True
    x = rng.normal(size=(batch, SIZE, WIDTH))
    return jnp.asarray(x, jnp.float32), jnp.asarray(mask)


image = partial(VSEInfinityImage, DIMENSION)


@cache
def start(model):
    """Random variables; the statistics of a batch norm stay positive."""
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), *parts())
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 0.7, leaf.shape) * rng.choice([-1, 1]), "f4"),
        shapes,
    ) | (
        {"batch_stats": {"norm": {"mean": jnp.full(3, 0.1), "var": jnp.full(3, 2.0)}}}
        if "batch_stats" in shapes
        else {}
    )


@cache
def trainer(model):
    return jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))


@cache
def evaluator(model):
    return jax.jit(partial(model.apply, train=False))


def torch_pool(torch, params, embedded):
    """The released pooling of sets that all have the same size."""
    gru = torch.nn.GRU(32, 32, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name, suffix in (("gru", "_l0"), ("gru_reverse", "_l0_reverse")):
            for leaf, value in params[name].items():
                getattr(gru, leaf + suffix).copy_(torch.tensor(np.asarray(value)))
    size = embedded.shape[1]
    angle = torch.arange(size)[:, None] * torch.exp(torch.arange(0, 32, 2) * -(np.log(1e4) / 32))
    code = torch.stack([torch.sin(angle), torch.cos(angle)], -1).reshape(size, 32)
    states = gru(code[None])[0][0]
    states = (states[:, :32] + states[:, 32:]) / 2
    theta = torch.softmax(states @ torch.tensor(np.asarray(params["score"])) / 0.1, 0)
    ranked = embedded.sort(dim=1, descending=True)[0]
    return torch.nn.functional.normalize((ranked * theta[:, None]).sum(1), dim=-1)


def torch_linear(torch, params):
    layer = torch.nn.Linear(*params["kernel"].shape)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.asarray(params["kernel"].T)))
        layer.bias.copy_(torch.tensor(np.asarray(params["bias"])))
    return layer


@pytest.mark.torch
@pytest.mark.parametrize("train", [True, False])
def test_the_image_head_equals_pytorch(train):
    torch = parity.torch()
    model, (x, mask) = image(drop=0.0), parts(holes=False)
    variables = start(model)
    params = variables["params"]
    project, hidden, out = (torch_linear(torch, params[n]) for n in ("project", "hidden", "out"))
    norm = torch.nn.BatchNorm1d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(np.asarray(params["norm"]["scale"])))
        norm.bias.copy_(torch.tensor(np.asarray(params["norm"]["bias"])))
        norm.running_mean.fill_(0.1)
        norm.running_var.fill_(2.0)
    norm.train(train)
    features = torch.tensor(np.asarray(x))
    flat = features.reshape(-1, WIDTH)
    embedded = project(flat) + out(torch.relu(norm(hidden(flat))))
    expected = torch_pool(torch, params["pool"], embedded.reshape(BATCH, SIZE, DIMENSION))
    weight = np.random.default_rng(1).normal(size=(BATCH, DIMENSION)).astype(np.float32)
    (expected * torch.tensor(weight)).sum().backward()

    def total(params):
        run = {**variables, "params": params}
        encoding, _ = model.apply(run, x, mask, train=train, mutable=["batch_stats"])
        return jnp.sum(encoding.pooled * weight), encoding.pooled

    gradient, pooled = jax.jit(jax.grad(total, has_aux=True))(params)
    np.testing.assert_allclose(pooled, expected.detach(), atol=1e-5)
    for name, layer in (("project", project), ("hidden", hidden), ("out", out)):
        np.testing.assert_allclose(gradient[name]["kernel"], layer.weight.grad.T, atol=1e-4)
    np.testing.assert_allclose(gradient["norm"]["scale"], norm.weight.grad, atol=1e-4)


@pytest.mark.torch
def test_the_text_head_equals_pytorch_for_each_caption_alone():
    torch = parity.torch()
    model = VSEInfinityText(DIMENSION, project=True)
    x, _ = parts()
    lengths = np.asarray([1, 2, 5, 3, 4, 5, 1, 2])
    mask = jnp.arange(SIZE)[None] < lengths[:, None]
    variables = start(model)
    encoding = evaluator(model)(variables, x, mask)
    project = torch_linear(torch, variables["params"]["project"])
    for i, length in enumerate(lengths):
        words = project(torch.tensor(np.asarray(x[i : i + 1, :length])))
        expected = torch_pool(torch, variables["params"]["pool"], words)
        np.testing.assert_allclose(encoding.pooled[i], expected[0].detach(), atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_padding_and_order_change_nothing(train):
    model, (x, mask) = image(drop=0.0), parts()
    variables = start(model)
    run = trainer(model) if train else evaluator(model)

    def pooled(x, mask):
        result = run(variables, x, mask)
        return (result[0].pooled, result[1]) if train else (result.pooled, {})

    whole = pooled(x, mask)
    order = np.random.default_rng(2).permutation(SIZE)
    padded = jnp.concatenate([jnp.full_like(x[:, :2], 9.0), x], axis=1)
    wide = jnp.concatenate([jnp.zeros_like(mask[:, :2]), mask], axis=1)
    for other in (pooled(x[:, order], mask[:, order]), pooled(padded, wide)):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), other, whole)


def test_parts_and_wholes_are_unit_or_zero():
    model, (x, mask) = image(), parts()
    encoding = evaluator(model)(start(model), x, mask)
    np.testing.assert_array_equal(encoding.mask, mask)
    np.testing.assert_allclose(jnp.linalg.norm(encoding.local, axis=-1), mask, atol=1e-6)
    real = jnp.any(mask, axis=1)
    np.testing.assert_allclose(jnp.linalg.norm(encoding.pooled, axis=-1), real, atol=1e-6)
    plain = image(normalize=False)
    raw = evaluator(plain)(start(plain), x, mask)
    length = jnp.linalg.norm(raw.pooled, axis=-1, keepdims=True)
    np.testing.assert_allclose(raw.pooled, encoding.pooled * length, atol=1e-5)
    assert not np.allclose(length[1:], 1.0)


def test_gradients_are_finite_on_zero_vectors_and_without_parts():
    model, (x, mask) = image(), parts()
    variables = start(model)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1), has_aux=True)
    def total(params, x, mask):
        run, rngs = {**variables, "params": params}, {"dropout": jax.random.key(1)}
        encoding, new = model.apply(run, x, mask, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.sum(encoding.pooled**3) + jnp.sum(encoding.local), (encoding.pooled, new)

    zeros, nothing = x.at[:, :2].set(0.0), jnp.zeros_like(mask)
    for values, kept in ((zeros, mask), (jnp.zeros_like(x), mask), (x, nothing)):
        result = total(variables["params"], values, kept)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    np.testing.assert_array_equal(result[1][0], 0)


def test_four_devices_share_the_statistics_of_the_whole_batch():
    alone, shared = image(drop=0.0), image(drop=0.0, axis_name="data")
    x, mask = parts()
    encoding, new = trainer(alone)(start(alone), x, mask)
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


def test_start_has_the_promised_ranges():
    model, (x, mask) = VSEInfinityImage(64), parts()
    params = jax.jit(partial(model.init, train=False))(jax.random.key(0), x, mask)["params"]
    bounds = {
        ("project", "kernel"): (6 / (WIDTH + 64)) ** 0.5,
        ("hidden", "kernel"): WIDTH**-0.5,
        ("hidden", "bias"): WIDTH**-0.5,
        ("out", "kernel"): 32**-0.5,
    }
    for (layer, name), bound in bounds.items():
        assert 0.8 * bound < np.abs(params[layer][name]).max() <= bound
    np.testing.assert_array_equal(params["project"]["bias"], 0)


def test_dropped_parts_are_a_fifth_and_never_all():
    mask = jnp.asarray(np.random.default_rng(0).random((4000, 6)) < 0.5)
    kept = dropped(jax.random.key(0), mask, 0.2)
    assert not np.any(kept & ~mask)
    np.testing.assert_array_equal(jnp.any(kept, axis=1), jnp.any(mask, axis=1))
    many = jnp.sum(mask, axis=1) > 3
    assert abs(float(jnp.sum(kept[many]) / jnp.sum(mask[many])) - 0.8) < 0.02
    np.testing.assert_array_equal(dropped(jax.random.key(0), mask, 0.2), kept)
    assert np.any(dropped(jax.random.key(1), mask, 0.2) != kept)
    np.testing.assert_array_equal(
        jnp.sum(dropped(jax.random.key(0), mask, 1.0), axis=1) == 1, jnp.any(mask, axis=1)
    )


def test_training_drops_parts_and_evaluation_does_not():
    model, (x, mask) = image(drop=0.5), parts(holes=False)
    train = partial(trainer(model), start(model), x, mask)
    encoding, _ = train(rngs={"dropout": jax.random.key(0)})
    share = float(jnp.mean(encoding.mask))
    assert 0.3 < share < 0.8
    again, _ = train(rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(again.pooled, encoding.pooled)
    # What was dropped counts for nothing: the same as the kept parts alone, without dropping.
    kept, _ = trainer(image(drop=0.0))(start(model), x, encoding.mask)
    np.testing.assert_allclose(kept.pooled, encoding.pooled, atol=1e-6)
    assert np.all(evaluator(model)(start(model), x, mask).mask)


def test_words_of_another_width_need_the_projection():
    x, mask = parts()
    with pytest.raises(ValueError, match=r"width 7 do not fit a space of 6: set project=True"):
        VSEInfinityText(DIMENSION).init(jax.random.key(0), x, mask, train=False)


def test_unprojected_words_are_pooled_as_they_are():
    model = VSEInfinityText(WIDTH, normalize=False)
    x, mask = parts()
    encoding = evaluator(model)(start(model), x, mask)
    np.testing.assert_array_equal(encoding.local, jnp.where(mask[..., None], x, 0.0))
    assert set(start(model)["params"]) == {"pool"}


MASKED, VOCABULARY = 999, 50


def captions(batch=4000, length=12):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, length + 1, batch)
    mask = np.arange(length)[None] < lengths[:, None]
    # Every token of a caption is unlike its others and beyond the random ones: the trace it left.
    tokens = np.where(mask, 100 + np.arange(length)[None], 0)
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)


alter = jax.jit(
    partial(altered_tokens, vocabulary=VOCABULARY, mask_token=MASKED),
    static_argnames=("special", "rate"),
)


def test_altered_tokens_have_the_promised_shares():
    tokens, mask = captions()
    altered, kept = alter(jax.random.key(0), tokens, mask)
    long = np.asarray(jnp.sum(mask, axis=1)) > 4
    real, left = np.asarray(mask)[long].sum(), np.asarray(kept)[long]
    words = np.asarray(altered)[long][left]
    assert abs((words == MASKED).sum() / real - 0.1) < 0.01
    assert abs((words < VOCABULARY).sum() / real - 0.02) < 0.005
    assert abs(1 - left.sum() / real - 0.08) < 0.01
    random = words[words < VOCABULARY]
    assert random.min() == 0
    assert random.max() == VOCABULARY - 1


def test_altered_tokens_keep_their_order_and_the_mask_is_a_prefix():
    tokens, mask = captions()
    altered, kept = (np.asarray(x) for x in alter(jax.random.key(1), tokens, mask, rate=0.6))
    count = kept.sum(1)
    np.testing.assert_array_equal(kept, np.arange(12)[None] < count[:, None])
    np.testing.assert_array_equal(altered[~kept], 0)
    np.testing.assert_array_equal(count > 0, np.asarray(mask).any(1))
    for row, n, length in zip(altered, count, np.asarray(mask).sum(1), strict=True):
        places = [(i, t - 100) for i, t in enumerate(row[:n]) if 100 <= t < MASKED]
        original = [place for _, place in places]
        assert original == sorted(set(original))
        assert all(i <= place < length for i, place in places)


def test_special_tokens_stay_and_a_caption_never_vanishes():
    tokens, mask = captions()
    altered, kept = alter(jax.random.key(2), tokens, mask, special=(100, 103), rate=1.0)
    for token in (100, 103):
        np.testing.assert_array_equal(
            jnp.any((altered == token) & kept, axis=1), jnp.any((tokens == token) & mask, axis=1)
        )
    assert not np.any((altered > 103) & (altered < MASKED))
    single, one = tokens[:, :1], mask[:, :1]
    _, still = alter(jax.random.key(3), single, one, rate=1.0)
    np.testing.assert_array_equal(still, one)


def test_no_rate_alters_nothing_and_a_key_decides():
    tokens, mask = captions(200)
    altered, kept = alter(jax.random.key(0), tokens, mask, rate=1e-9)
    np.testing.assert_array_equal(altered, tokens)
    np.testing.assert_array_equal(kept, mask)
    first, again, other = (alter(jax.random.key(k), tokens, mask)[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
