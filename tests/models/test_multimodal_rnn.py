from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from scipy.special import log_softmax

from vse_jax.captioning.beam_search import beam_search
from vse_jax.captioning.captions import SpecialTokens
from vse_jax.models import multimodal_rnn
from vse_jax.models.multimodal_rnn import MultimodalRNN, with_word_frequencies

VOCABULARY, HIDDEN, WORDS, FEATURES = 11, 6, 5, 7
START, END = 1, 2
# With <end>, without, <start> alone, none at all.
CAPTIONS = ([START, 3, 4, 10, END], [START, 5, 6, 7, 8, 9], [START, END], [START], [])
CELLS = ("rnn", "lstm")

network = partial(MultimodalRNN, VOCABULARY, HIDDEN, WORDS)


@cache
def params(cell):
    """Random ones under which every weight matters."""
    shapes = jax.eval_shape(partial(network(cell).init, train=False), jax.random.key(0), *batch())
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-0.8, 0.8, leaf.shape), leaf.dtype), shapes["params"]
    )


def batch(captions=CAPTIONS, padding=0, width=8):
    features = np.random.default_rng(1).normal(size=(len(CAPTIONS), FEATURES))[: len(captions)]
    tokens = np.full((len(captions), width), padding, np.int32)
    mask = np.zeros((len(captions), width), bool)
    for row, caption in enumerate(captions):
        tokens[row, : len(caption)], mask[row, : len(caption)] = caption, True
    return jnp.asarray(features, jnp.float32), jnp.asarray(tokens), jnp.asarray(mask)


@cache
def coster(cell, dtype=jnp.float32):
    return jax.jit(
        lambda params, *batch: network(cell, dtype=dtype).apply(
            {"params": params}, *batch, train=False
        )
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cost_by_the_formula(cell, p, feature, caption):
    """A loop over the words in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    picture = feature @ p["image"]["kernel"] + p["image"]["bias"]
    h, c, cost = np.zeros(HIDDEN), np.zeros(HIDDEN), 0.0
    for t, (word, target) in enumerate(pairwise(caption)):
        x, added = p["words"][word], np.zeros(HIDDEN)
        if t == 0 and cell == "rnn":
            added = picture
        elif t == 0:
            x = x + picture
        argument = x @ p["weight_hx"] + h @ p["weight_hh"] + p["bias_h"]
        if cell == "rnn":
            h = np.maximum(argument + added, 0)
        else:
            i, f, g, o = np.split(argument, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        cost -= log_softmax(h @ p["weight_oh"] + p["bias_o"])[target]
    return cost


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("rows", [512, 7])
def test_captions_cost_what_the_formula_says(cell, rows, monkeypatch):
    monkeypatch.setattr(multimodal_rnn, "_ROWS", rows)
    features, tokens, mask = batch()
    found = network(cell).apply({"params": params(cell)}, features, tokens, mask, train=False)
    wanted = [
        cost_by_the_formula(cell, params(cell), np.asarray(feature, np.float64), caption)
        for feature, caption in zip(features, CAPTIONS, strict=True)
    ]
    assert wanted[-2:] == [0, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_nothing(cell):
    """A caption alone as in a batch; another token or number of tokens behind its end."""
    run = coster(cell)
    features, tokens, mask = batch()
    together = run(params(cell), features, tokens, mask)
    for row, caption in enumerate(CAPTIONS):
        if row not in (0, 2):
            continue
        _, one, its_mask = batch([caption], width=len(caption))
        alone = run(params(cell), features[row : row + 1], one, its_mask)
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-6)
    for other in (batch(padding=5), batch(padding=99), batch(width=13)):
        np.testing.assert_allclose(run(params(cell), *other), together, rtol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_steps_add_up_to_the_cost_of_the_caption(cell):
    model, variables = network(cell), {"params": params(cell)}
    features, tokens, mask = batch()
    state, total = model.apply(variables, features, method="start"), 0.0
    for t in range(tokens.shape[1] - 1):
        state, logits = model.apply(variables, state, tokens[:, t], method="step")
        log_p = jax.nn.log_softmax(logits)[jnp.arange(len(tokens)), tokens[:, t + 1]]
        total -= jnp.where(mask[:, t + 1], log_p, 0)
    np.testing.assert_allclose(total, coster(cell)(variables["params"], *batch()), rtol=1e-5)


def torch_costs(torch, cell, p, features, tokens, mask):
    """Costs by PyTorch's cells, of leaves that take gradients."""
    vectors = p["words"][tokens]
    picture = features @ p["image"]["kernel"] + p["image"]["bias"]
    h = c = torch.zeros(len(tokens), HIDDEN)
    lstm = torch.nn.LSTMCell(WORDS, HIDDEN)
    weights = {
        "weight_ih": p["weight_hx"].T,
        "weight_hh": p["weight_hh"].T,
        "bias_ih": p["bias_h"],
        "bias_hh": torch.zeros_like(p["bias_h"]),
    }
    costs = torch.zeros(len(tokens))
    for t in range(tokens.shape[1] - 1):
        x = vectors[:, t]
        if cell == "lstm":
            x = x + picture if t == 0 else x
            h, c = torch.func.functional_call(lstm, weights, (x, (h, c)))
        else:
            argument = x @ p["weight_hx"] + h @ p["weight_hh"] + p["bias_h"]
            h = torch.relu(argument + picture if t == 0 else argument)
        cost = torch.nn.functional.cross_entropy(
            h @ p["weight_oh"] + p["bias_o"], tokens[:, t + 1], reduction="none"
        )
        costs = costs + torch.where(mask[:, t + 1], cost, 0.0)
    return costs


@pytest.mark.torch
@pytest.mark.parametrize("cell", CELLS)
def test_costs_and_gradients_are_those_of_pytorch(cell):
    torch = parity.torch()
    share = np.random.default_rng(2).normal(size=len(CAPTIONS)).astype(np.float32)
    features, tokens, mask = batch()

    def loss(params, features):
        return jnp.sum(share * coster(cell)(params, features, tokens, mask))

    found = jax.grad(loss, (0, 1))(params(cell), features)
    leaf = partial(torch.tensor, requires_grad=True)
    given = jax.tree.map(lambda x: leaf(np.asarray(x)), (params(cell), features))
    theirs = torch_costs(
        torch, cell, *given, torch.tensor(np.asarray(tokens)).long(), torch.tensor(np.asarray(mask))
    )
    np.testing.assert_allclose(
        coster(cell)(params(cell), features, tokens, mask), theirs.detach().numpy(), rtol=1e-5
    )
    (theirs * torch.tensor(share)).sum().backward()
    jax.tree.map(
        lambda ours, other: np.testing.assert_allclose(ours, other.grad.numpy(), atol=1e-5),
        found,
        given,
    )


@pytest.mark.parametrize("cell", CELLS)
def test_captions_found_are_as_likely_as_their_cost_says(cell):
    model, variables = network(cell), {"params": params(cell)}
    features, _, _ = batch()
    special = SpecialTokens(START, END, 0, (0, START))

    @jax.jit
    def search(features):
        state = model.apply(variables, features, method="start")
        step = partial(model.apply, variables, method="step")
        return beam_search(step, state, special, 6, beams=4, n_best=4)

    found = search(features)
    lengths = np.asarray(found.lengths)
    assert len(set(lengths.reshape(-1).tolist())) > 1
    for k in range(4):
        captions = [[START, *row[:n]] for row, n in
                    zip(found.tokens[:, k], lengths[:, k], strict=True)]  # fmt: skip
        costs = coster(cell)(variables["params"], features, *batch(captions)[1:])
        np.testing.assert_allclose(-costs, found.log_probabilities[:, k], rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_acts_in_training_alone_and_not_in_the_recurrence(cell):
    variables = {"params": params(cell)}
    dropped = network(cell, dropout=0.5)

    @partial(jax.jit, static_argnums=2)
    def run(variables, key, train):
        return dropped.apply(variables, *batch(), train=train, rngs={"dropout": key})

    still = coster(cell)(variables["params"], *batch())
    np.testing.assert_array_equal(run(variables, jax.random.key(0), False), still)
    first, second = (run(variables, jax.random.key(seed), True) for seed in (0, 1))
    assert (first[:3] != second[:3]).all()
    # Of three places of dropout none is left: words, picture, output.
    silent = jax.tree.map(jnp.zeros_like, variables["params"])
    silent |= {
        "bias_h": variables["params"]["bias_h"],
        "weight_hh": variables["params"]["weight_hh"],
    }
    np.testing.assert_allclose(run({"params": silent}, jax.random.key(0), True)[0],
                               4 * np.log(VOCABULARY), rtol=1e-6)  # fmt: skip
    for left in (("words", "weight_hx"), ("image", "weight_hx")):
        kept = silent | {name: variables["params"][name] for name in (*left, "weight_oh")}
        assert len({float(run({"params": kept}, jax.random.key(s), True)[0]) for s in range(9)}) > 2


def test_only_the_output_layer_reads_dropped_states():
    """With an identity for the output, log odds of words tell the states: 2 h or 0, never less."""
    model = MultimodalRNN(4, 4, 4, dropout=0.5)
    eye = jnp.eye(4)
    variables = {
        "image": {"kernel": 0 * eye, "bias": jnp.zeros(4)},
        "words": jnp.zeros((4, 4)),
        "weight_hx": eye,
        "weight_hh": eye,
        "bias_h": jnp.ones(4),
        "weight_oh": jnp.zeros((4, 4)).at[0, 3].set(1.0),
        "bias_o": jnp.zeros(4),
    }

    @jax.jit
    def run(mask):
        given = jnp.zeros((300, 4)), jnp.full((300, 4), 3), mask
        return model.apply(
            {"params": variables}, *given, train=True, rngs={"dropout": jax.random.key(0)}
        )

    costs = [run(jnp.arange(4)[None].repeat(300, 0) < n) for n in (2, 3, 4)]
    # h_t = t, as its own dropped copies are not fed back.
    possible = [0.0]
    for t, cost in zip((1, 2, 3), costs, strict=True):
        each = [np.log(3 + np.exp(kept * t)) - kept * t for kept in (0, 2)]
        possible = [so_far + one for so_far in possible for one in each]
        distance = np.abs(np.asarray(cost)[:, None] - np.asarray(possible)[None]).min(axis=1)
        assert distance.max() < 1e-5
        assert len(set(np.asarray(cost).round(4).tolist())) == len(possible)


def test_word_frequencies_are_what_an_untrained_network_believes():
    model = network()
    variables = model.init(jax.random.key(0), *batch(), train=False)
    counts = np.arange(1, VOCABULARY + 1, dtype=np.float32)
    wanted = np.log(counts / counts.sum())
    told = with_word_frequencies(variables["params"], wanted)
    assert jax.tree.structure(told) == jax.tree.structure(variables["params"])
    quiet = told | {"weight_oh": jnp.zeros((HIDDEN, VOCABULARY))}
    cost = model.apply({"params": quiet}, *batch(), train=False)
    np.testing.assert_allclose(cost[0], -wanted[[3, 4, 10, END]].sum(), rtol=1e-5)
    assert not np.any(variables["params"]["bias_o"])


@pytest.mark.parametrize(
    ("frequencies", "words"),
    [
        (np.zeros(3, np.float32), "of 3 words; the network's vocabulary is 11"),
        (np.array([0] * 4 + [-np.inf] * 7, np.float32), "of token 4 is -inf; it must be finite"),
    ],
)
def test_frequencies_of_other_or_unseen_words_are_refused(frequencies, words):
    with pytest.raises(ValueError, match=words):
        with_word_frequencies(params("rnn"), frequencies)


@pytest.mark.parametrize("cell", CELLS)
def test_a_network_starts_as_the_released_code_does(cell):
    model = MultimodalRNN(200, 30, 20, cell)
    p = jax.jit(partial(model.init, train=False))(jax.random.key(0), *batch())["params"]
    for name, bound in (
        ("words", 0.1),
        ("weight_hx", 0.1),
        ("weight_hh", 0.1),
        ("weight_oh", 0.01),
    ):
        assert 0.9 * bound < np.abs(p[name]).max() <= bound
    assert 0.09 < np.abs(p["image"]["kernel"]).max() <= 0.1
    assert not np.any(p["bias_o"])
    assert not np.any(p["image"]["bias"])
    wanted = np.zeros(30) if cell == "rnn" else np.repeat([0, 1, 0, 0], 30)
    np.testing.assert_array_equal(p["bias_h"], wanted)


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_is_close_and_gives_float32(cell):
    exact, rough = coster(cell), coster(cell, jnp.bfloat16)
    costs = rough(params(cell), *batch())
    assert costs.dtype == jnp.float32
    np.testing.assert_allclose(costs, exact(params(cell), *batch()), rtol=0.03)
    assert (costs[:3] != exact(params(cell), *batch())[:3]).all()
    gradient = jax.jit(jax.grad(lambda p: rough(p, *batch()).sum()))(params(cell))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))


def test_the_state_of_a_finished_caption_does_not_overflow():
    """A recurrence that grows tenfold a step would be beyond float32 after 60 of padding."""
    grown = params("rnn") | {"weight_hh": 10 * jnp.eye(HIDDEN)}
    # The other caption goes on; its own state is soon zero.
    grown["weight_hx"] = jnp.abs(grown["weight_hx"])
    grown["words"] = grown["words"].at[3].set(-999.0)
    given = batch([[START, END], [START] + [3] * 59], width=60)

    @jax.jit
    def run(p):
        return jax.value_and_grad(lambda p: coster("rnn")(p, *given)[0])(p)

    value, gradient = run(grown)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.any(gradient["image"]["kernel"])
