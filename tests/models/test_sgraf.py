from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from vse_jax.encoding import Encoding
from vse_jax.models.pairwise import Tile
from vse_jax.models.sgraf import SAF, SGR, SGRAFHead

WIDTH, NODE = 12, 5
NETWORKS = {"saf": SAF, "sgr": SGR}


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def encodings(seed=0, images=7, texts=6, regions=4, words=6):
    """Pictures and captions of different sizes; one region and one word are zero."""
    rng = np.random.default_rng(seed)
    found = []
    for count, parts in ((images, regions), (texts, words)):
        sizes = rng.integers(1, parts + 1, count)
        sizes[0] = parts
        mask = np.arange(parts)[None] < sizes[:, None]
        local = unit(rng.standard_normal((count, parts, WIDTH))) * mask[..., None]
        local[0, 1] = 0.0
        pooled = unit(rng.standard_normal((count, WIDTH)))
        found.append(Encoding(*map(jnp.asarray, (local.astype("f4"), mask, pooled.astype("f4")))))
    return found


def started(name, images, texts, **options):
    """The network and variables of which none is as at the start."""
    network = NETWORKS[name](width=NODE, tile=Tile(3, 2), **options)
    variables = network.init(jax.random.key(0), images, texts, train=False)
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    leaves = [x + 0.3 * rng.standard_normal(x.shape).astype("f4") for x in leaves]
    variables = jax.tree.unflatten(tree, leaves)
    if name == "saf":
        variables["batch_stats"]["var"] = jnp.asarray(0.7)
    return network, variables


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


def test_scores_do_not_depend_on_tiles(name):
    images, texts = encodings()
    network, variables = started(name, images, texts)
    for train in (False, True):
        found = [
            network.clone(tile=Tile(*tile)).apply(
                variables, images, texts, train=train, mutable=["batch_stats"]
            )
            for tile in ((1, 1), (3, 4), (32, 32))
        ]
        for scores, state in found[1:]:
            np.testing.assert_allclose(scores, found[0][0], atol=1e-6)
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), state, found[0][1]
            )


def temporary(name, train, tile, count):
    """Bytes held on the way to the scores of count x count pairs, or to their gradients."""
    options = {"sgr": {"steps": 2}}.get(name, {})
    network = NETWORKS[name](width=32, tile=Tile(tile, tile), **options)
    masks = [jnp.ones((count, parts), bool) for parts in (3, 7)]
    vectors = [(jnp.zeros((*mask.shape, 8)), jnp.zeros((count, 8))) for mask in masks]

    def encodings(vectors, masks):
        pairs = zip(vectors, masks, strict=True)
        return [Encoding(local, mask, pooled) for (local, pooled), mask in pairs]

    def scores(variables, vectors, masks):
        given = encodings(vectors, masks)
        return network.apply(variables, *given, train=train, mutable=["batch_stats"])[0]

    def loss(variables, vectors, masks):
        return jnp.sum(scores(variables, vectors, masks) ** 2)

    init = partial(network.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), *encodings(vectors, masks))
    function = jax.grad(loss, (0, 1)) if train else scores
    # What is held is the same without the optimizations that take most of the time.
    quick = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(function).lower(variables, vectors, masks).compile(compiler_options=quick)
    return compiled.memory_analysis().temp_size_in_bytes


# Numbers held of a pair: its score; in training its gradient and its place in their order too, and
# a share of what is known of all pictures with a tile's captions.
@pytest.mark.parametrize(
    ("train", "numbers"), [(False, 2), pytest.param(True, 10, marks=pytest.mark.slow)]
)
def test_memory_grows_with_the_tile_not_with_the_pairs(name, train, numbers):
    """A few numbers are held of each further pair, not the 256 of its nodes."""
    some, more = (temporary(name, train, tile=4, count=count) for count in (128, 256))
    assert more - some < 4 * numbers * (256**2 - 128**2)
    assert temporary(name, train, tile=16, count=128) > 2 * some


def test_a_pair_alone_scores_as_in_a_padded_batch(name):
    images, texts = encodings()
    network, variables = started(name, images, texts)
    scores = network.apply(variables, images, texts, train=False)
    run = jax.jit(partial(network.apply, train=False))
    for i, j in ((0, 0), (1, 0), (2, 3), (6, 5)):
        one, other = (
                Encoding(x.local[k, : x.mask[k].sum()][None], x.mask[k, : x.mask[k].sum()][None],
                         x.pooled[k][None])
                for x, k in ((images, i), (texts, j))
            )  # fmt: skip
        alone = run(variables, one, other)
        np.testing.assert_allclose(alone[0, 0], scores[i, j], atol=1e-6)


def test_what_is_masked_and_the_order_of_regions_do_not_matter(name):
    images, texts = encodings()
    network, variables = started(name, images, texts)
    scores = network.apply(variables, images, texts, train=False)
    order = np.array([2, 0, 3, 1])
    noise = jnp.asarray(np.random.default_rng(2).standard_normal(images.local.shape), jnp.float32)
    other = images.replace(
        local=jnp.where(images.mask[..., None], images.local, noise)[:, order],
        mask=images.mask[:, order],
    )
    np.testing.assert_allclose(
        network.apply(variables, other, texts, train=False), scores, atol=1e-6
    )


def sparse(shape, pairs):
    weights = np.zeros(shape, np.float32)
    for number, pair in enumerate(pairs, 1):
        weights[pair] += number
    return jnp.asarray(weights)


def test_gradients_of_few_pairs_and_of_all_agree(name):
    """A weight on few pairs takes them one by one; the same beside tiny ones goes by tiles."""
    images, texts = encodings()
    network, variables = started(name, images, texts)
    few = sparse((7, 6), [(0, 0), (3, 2), (6, 5), (0, 5)])
    assert (np.asarray(few) != 0).sum() < few.size / 4

    def gradient(weights):
        def loss(params, vectors):
            one, other = (
                x.replace(local=local, pooled=pooled)
                for x, (local, pooled) in zip((images, texts), vectors, strict=True)
            )
            scores, _ = network.apply(
                variables | {"params": params}, one, other, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(scores * weights)

        vectors = [(x.local, x.pooled) for x in (images, texts)]
        return jax.jit(jax.grad(loss, (0, 1)))(variables["params"], vectors)

    pairs, tiles = gradient(few), gradient(jnp.where(few == 0, 1e-12, few))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), pairs, tiles)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(pairs))
    nothing = gradient(jnp.zeros_like(few))
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(nothing))


def test_zero_regions_and_pictures_without_any_have_finite_gradients(name):
    images, texts = encodings()
    images = images.replace(
        local=images.local.at[1].set(0.0), mask=images.mask.at[2].set(False),
        pooled=images.pooled.at[1:3].set(0.0),
    )  # fmt: skip
    network, variables = started(name, images, texts)

    def loss(params, local, words):
        scores, _ = network.apply(
            variables | {"params": params}, images.replace(local=local), texts.replace(local=words),
            train=True, mutable=["batch_stats"],
        )  # fmt: skip
        return jnp.sum(scores**2)

    value, gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(
        variables["params"], images.local, texts.local
    )
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def looped(name, variables, images, texts, *, train, held=True):
    """(scores, what of PyTorch their gradient goes to: parameters, regions, words).

    Caption by caption, unpadded, of pictures that have all their regions. `held`: the statistics
    have no gradient by the nodes.
    """
    torch = parity.torch()
    statistics = jax.tree.map(lambda x: torch.tensor(float(x)), variables.get("batch_stats", {}))
    p = jax.tree.map(lambda x: torch.tensor(np.array(x), requires_grad=True), variables["params"])
    regions = torch.tensor(np.array(images.local), requires_grad=True)
    words = torch.tensor(np.array(texts.local), requires_grad=True)
    wholes, sentences = (torch.tensor(np.array(x.pooled)) for x in (images, texts))
    lengths = np.asarray(texts.mask.sum(1))
    norm, columns = torch.nn.functional.normalize, []
    for j, length in enumerate(lengths):
        word = words[j, :length][None].expand(len(regions), -1, -1)
        attention = torch.nn.functional.leaky_relu(regions @ word.transpose(1, 2), 0.1)
        attention = norm(attention, dim=2).transpose(1, 2)
        context = norm(torch.softmax(9 * attention, dim=2) @ regions, dim=-1)
        nodes = norm((context - word) ** 2 @ p["local_kernel"] + p["local_bias"], dim=-1)
        whole = (wholes - sentences[j]) ** 2 @ p["whole_kernel"] + p["whole_bias"]
        nodes = torch.cat([norm(whole, dim=-1)[:, None], nodes], 1)
        if name == "saf":
            logit = (nodes @ p["weight_kernel"] + p["weight_bias"])[..., 0]
            mean, var = statistics["mean"], statistics["var"]
            if train:
                measured = nodes.detach() if held else nodes
                own = (measured @ p["weight_kernel"] + p["weight_bias"])[..., 0]
                mean, var = own.mean(), own.var(unbiased=False)
            normed = (logit - mean) / (var + 1e-5).sqrt()
            if train:
                layer = torch.nn.BatchNorm1d(1)(logit[:, None])[:, 0]
                np.testing.assert_allclose(layer.detach(), normed.detach(), atol=1e-5)
            weight = torch.sigmoid(normed * p["norm_scale"] + p["norm_bias"])
            weight = weight / weight.sum(1, keepdim=True)
            vector = norm((weight[..., None] * nodes).sum(1), dim=-1)
        else:
            for step in range(3):
                query = nodes @ p[f"step{step}_query_kernel"] + p[f"step{step}_query_bias"]
                key = nodes @ p[f"step{step}_key_kernel"]
                edges = torch.softmax(query @ key.transpose(1, 2), dim=-1)
                out = edges @ nodes @ p[f"step{step}_out_kernel"] + p[f"step{step}_out_bias"]
                nodes = torch.relu(out)
            vector = nodes[:, 0]
        columns.append(torch.sigmoid(vector @ p["score_kernel"] + p["score_bias"])[:, 0])
    return torch.stack(columns, 1), (p, regions, words)


def full_pictures(**sizes):
    """`encodings` whose pictures have all their regions, as in the released code."""
    images, texts = encodings(**sizes)
    regions = unit(np.random.default_rng(5).standard_normal(images.local.shape)).astype("f4")
    mask = jnp.ones_like(images.mask)
    return images.replace(mask=mask, local=jnp.asarray(regions)), texts


@pytest.mark.torch
@pytest.mark.parametrize("train", [False, True])
def test_saf_and_sgr_equal_loops_over_captions(name, train):
    """By PyTorch; the statistics have no gradient by the nodes."""
    torch = parity.torch()
    images, texts = full_pictures()
    network, variables = started(name, images, texts)
    expected, (p, regions, words) = looped(name, variables, images, texts, train=train)
    weights = np.random.default_rng(3).standard_normal(expected.shape).astype("f4")
    (expected * torch.tensor(weights)).sum().backward()

    def loss(params, local, own):
        scores, _ = network.apply(
            variables | {"params": params}, images.replace(local=local), texts.replace(local=own),
            train=train, mutable=["batch_stats"],
        )  # fmt: skip
        return jnp.sum(scores * weights), scores

    (_, scores), found = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        variables["params"], images.local, texts.local
    )
    np.testing.assert_allclose(scores, expected.detach(), atol=1e-5)
    for key, value in p.items():
        np.testing.assert_allclose(found[0][key], value.grad, atol=1e-4, err_msg=key)
    np.testing.assert_allclose(found[1], regions.grad, atol=1e-4)
    np.testing.assert_allclose(found[2], words.grad, atol=1e-4)


@pytest.mark.torch
def test_statistics_held_in_the_gradient_leave_nearly_the_whole_of_it():
    """That of SAF's hinge with the hardest negatives, beside PyTorch's, which goes through them."""
    torch, count = parity.torch(), 48
    images, texts = full_pictures(images=count, texts=count)
    network, variables = started("saf", images, texts)
    scores, (p, regions, words) = looped("saf", variables, images, texts, train=True, held=False)
    own = torch.diagonal(scores)
    others = scores.masked_fill(torch.eye(count, dtype=torch.bool), -1.0)
    costs = [0.2 + others.max(dim).values - own for dim in (0, 1)]
    sum(cost.clamp(min=0).sum() for cost in costs).backward()

    def loss(params, local, said):
        scores, _ = network.apply(
            variables | {"params": params}, images.replace(local=local), texts.replace(local=said),
            train=True, mutable=["batch_stats"],
        )  # fmt: skip
        others = jnp.where(jnp.eye(count, dtype=bool), -1.0, scores)
        costs = [0.2 + others.max(axis) - jnp.diagonal(scores) for axis in (0, 1)]
        return sum(jnp.maximum(cost, 0.0).sum() for cost in costs)

    found = jax.jit(jax.grad(loss, (0, 1, 2)))(variables["params"], images.local, texts.local)
    found = found[0] | {"regions": found[1], "words": found[2]}
    cosines = {}
    for key, value in {**p, "regions": regions, "words": words}.items():
        ours, theirs = np.asarray(found[key]).ravel(), value.grad.numpy().ravel()
        if key == "weight_bias":  # which the batch norm takes away again
            assert np.abs([ours, theirs]).max() < 1e-6
            continue
        cosines[key] = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert min(cosines.values()) > 0.98, cosines
    # It is another gradient all the same.
    assert cosines["local_kernel"] < 0.9999


def test_running_statistics_follow_the_captions_own():
    images, texts = encodings()
    network, variables = started("saf", images, texts)
    _, state = network.apply(variables, images, texts, train=True, mutable=["batch_stats"])
    plain = network.clone(momentum=0.0)
    _, measured = plain.apply(variables, images, texts, train=True, mutable=["batch_stats"])
    for key in ("mean", "var"):
        before, new = variables["batch_stats"][key], measured["batch_stats"][key]
        assert not np.isclose(before, new)
        np.testing.assert_allclose(state["batch_stats"][key], 0.9 * before + 0.1 * new, rtol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("train", [False, True])
def test_the_self_attention_equals_torch(train):
    torch = parity.torch()
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((5, 4, 7)).astype("f4")
    head = SGRAFHead(WIDTH, dropout=0.0)
    mask = jnp.ones((5, 4), bool)
    variables = head.init(jax.random.key(0), jnp.asarray(parts), mask, train=False)
    variables = jax.tree.map(
        lambda x: x + 0.2 * np.abs(rng.standard_normal(x.shape)).astype("f4"), variables
    )
    p = jax.tree.map(lambda x: torch.tensor(np.array(x)), variables)
    linear = {k: v for k, v in p["params"].items() if "kernel" in v}

    def dense(name, x):
        return x @ linear[name]["kernel"] + linear[name]["bias"]

    def normed(name, x):
        layer = torch.nn.BatchNorm1d(WIDTH).train(train)
        with torch.no_grad():
            layer.weight.copy_(p["params"][f"{name}_norm"]["scale"])
            layer.bias.copy_(p["params"][f"{name}_norm"]["bias"])
            layer.running_mean.copy_(p["batch_stats"][f"{name}_norm"]["mean"])
            layer.running_var.copy_(p["batch_stats"][f"{name}_norm"]["var"])
        return layer(x.reshape(-1, WIDTH)).reshape(x.shape)

    local = torch.nn.functional.normalize(dense("project", torch.tensor(parts)), dim=-1)
    mean = local.mean(1)
    own = torch.tanh(normed("part", dense("part", local)))
    weight = dense("weight", own * torch.tanh(normed("mean", dense("mean", mean)))[:, None])
    whole = (torch.softmax(weight, 1) * local).sum(1)
    found, _ = head.apply(variables, jnp.asarray(parts), mask, train=train, mutable=["batch_stats"])
    np.testing.assert_allclose(found.local, local.detach(), atol=1e-5)
    np.testing.assert_allclose(
        found.pooled, torch.nn.functional.normalize(whole, dim=-1).detach(), atol=1e-5
    )


@pytest.mark.parametrize("train", [False, True])
def test_padding_does_not_reach_the_self_attention(train):
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((5, 6, 7)).astype("f4")
    mask = np.arange(6)[None] < np.array([6, 4, 1, 3, 0])[:, None]
    head = SGRAFHead(WIDTH, dropout=0.0)
    variables = head.init(jax.random.key(0), jnp.asarray(parts), jnp.asarray(mask), train=False)

    def run(parts, mask):
        arguments = variables, jnp.asarray(parts), jnp.asarray(mask)
        return head.apply(*arguments, train=train, mutable=["batch_stats"])

    noise = np.where(mask[..., None], parts, 100 * rng.standard_normal(parts.shape)).astype("f4")
    wider = np.concatenate([noise, noise[:, :2]], 1), np.pad(mask, ((0, 0), (0, 2)))
    for x, y in zip(jax.tree.leaves(run(parts, mask)), jax.tree.leaves(run(*wider)), strict=True):
        np.testing.assert_allclose(x, y[:, : x.shape[1]] if y.ndim > 1 else y, atol=1e-6)

    def loss(parts):
        found, _ = head.apply(
            variables, parts, jnp.asarray(mask), train=train, mutable=["batch_stats"]
        )
        return jnp.sum(found.pooled**3) + jnp.sum(found.local**3)

    gradient = jax.grad(loss)(jnp.asarray(parts) * mask[..., None])
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[~mask] == 0).all()


def test_shares_of_saf_stay_shares_where_every_sigmoid_is_zero():
    """There sigmoids are as their exponentials, so that another bias of all changes nothing."""
    images, texts = encodings()
    network, variables = started("saf", images, texts)

    def scores(params):
        return network.apply({**variables, "params": params}, images, texts, train=False)

    def biased(bias):
        return {**variables["params"], "norm_bias": jnp.full_like(norm_bias, bias)}

    norm_bias = variables["params"]["norm_bias"]
    found, gradient = jax.value_and_grad(lambda p: jnp.sum(scores(p)))(biased(-300.0))
    np.testing.assert_allclose(found, jnp.sum(scores(biased(-30.0))), rtol=1e-5)
    assert np.ptp(scores(biased(-300.0))) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
