from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from vse_jax.models.heads import LinearHead
from vse_jax.models.text import GRUReader, TextEncoder

TOKENS = jnp.asarray([[1, 4, 2, 0], [3, 0, 0, 0], [0, 0, 0, 0], [5, 6, 7, 8]], jnp.int32)
MASK = jnp.arange(4)[None] < jnp.asarray([3, 1, 0, 4])[:, None]


def encoder(parts="words", pooling="mean", alter=None, **options):
    reader = GRUReader(vocabulary=9, width=5, hidden=6, **options)
    return TextEncoder(reader, LinearHead(None, pooling), parts, alter=alter)


@cache
def start(model):
    """Random parameters; Flax's own start takes longer to compile than the encoder."""
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), TOKENS, MASK)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-0.4, 0.4, leaf.shape), leaf.dtype), shapes
    )


@cache
def encode(model):
    return jax.jit(partial(model.apply, train=False))(start(model), TOKENS, MASK)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_words_and_wholes_are_unit_or_zero(bidirectional):
    model = encoder(bidirectional=bidirectional)
    encoding = encode(model)
    assert encoding.local.shape == (4, 4, 6)
    np.testing.assert_allclose(jnp.linalg.norm(encoding.local, axis=-1), MASK, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(encoding.pooled, axis=-1), [1, 1, 0, 1], atol=1e-6)


def test_pooled_is_the_last_word_of_one_direction():
    whole, words = encode(encoder("pooled")), encode(encoder("words")).local
    np.testing.assert_allclose(whole.pooled[0], words[0, 2], atol=1e-6)
    np.testing.assert_allclose(whole.pooled[3], words[3, 3], atol=1e-6)
    np.testing.assert_array_equal(whole.local[:, 0], whole.pooled)


def test_parameters_have_the_promised_names_shapes_and_ranges():
    init = jax.jit(partial(encoder(bidirectional=True).init, train=False))
    params = init(jax.random.key(0), TOKENS, MASK)["params"]["reader"]
    assert set(params) == {"words", "gru", "gru_reverse"}
    assert params["words"].shape == (9, 5)
    assert float(jnp.max(jnp.abs(params["words"]))) <= 0.1
    shapes = {"weight_ih": (18, 5), "weight_hh": (18, 6), "bias_ih": (18,), "bias_hh": (18,)}
    for direction in ("gru", "gru_reverse"):
        assert {name: leaf.shape for name, leaf in params[direction].items()} == shapes
        for leaf in params[direction].values():
            assert 0.8 * 6**-0.5 < float(jnp.max(jnp.abs(leaf))) <= 6**-0.5


@pytest.mark.parametrize("bidirectional", [False, True])
def test_masked_tokens_change_nothing_and_get_no_gradient(bidirectional):
    model = encoder(bidirectional=bidirectional)
    variables = start(model)

    def total(variables, tokens):
        encoding = model.apply(variables, tokens, MASK, train=False)
        return jnp.sum(encoding.pooled) + jnp.sum(encoding.local**3)

    step = jax.jit(jax.value_and_grad(total))
    value, gradient = step(variables, TOKENS)
    np.testing.assert_array_equal(value, step(variables, jnp.where(MASK, TOKENS, 7))[0])
    words = gradient["params"]["reader"]["words"]
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(jnp.any(words != 0, axis=1), [i in range(1, 9) for i in range(9)])


def test_batch_without_any_token_is_zero_with_finite_gradient():
    model = encoder()
    nothing = jnp.zeros_like(MASK)

    def total(variables):
        encoding = model.apply(variables, TOKENS, nothing, train=False)
        return jnp.sum(encoding.pooled) + jnp.sum(encoding.local)

    value, gradient = jax.jit(jax.value_and_grad(total))(start(model))
    assert float(value) == 0
    assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(gradient))


def test_dropout_acts_only_in_training():
    model = encoder(dropout=0.5)
    variables = start(model)
    plain = encode(model)
    train = jax.jit(partial(model.apply, train=True))
    dropped = train(variables, TOKENS, MASK, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(plain.pooled, dropped.pooled)
    again = encode(encoder())
    np.testing.assert_array_equal(plain.pooled, again.pooled)


def test_one_vector_comes_of_the_words_as_asked_for():
    words = GRUReader(9, 5, 6).apply({"params": start(encoder())["params"]["reader"]}, TOKENS, MASK,
                                     train=False).words  # fmt: skip
    words = np.asarray(words)
    for pooling, of in (("mean", np.mean), ("max", np.max)):
        found = encode(encoder("words", pooling)).pooled
        for row, length in enumerate([3, 1, 0, 4]):
            expected = of(words[row, :length], axis=0) if length else np.zeros(6)
            expected = expected / max(np.linalg.norm(expected), 1e-12)
            np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_features_take_the_place_of_tokens():
    model = encoder()
    variables = start(model)
    features, mask = model.apply(variables, TOKENS, MASK, method=model.features)
    found = model.apply(variables, None, None, features, mask, train=False)
    # One program against one of its like: what is compiled whole rounds otherwise.
    whole = model.apply(variables, TOKENS, MASK, train=False)
    np.testing.assert_array_equal(found.pooled, whole.pooled)
    with pytest.raises(ValueError, match="neither tokens nor features"):
        model.apply(variables, None, None, train=False)


def test_tokens_are_altered_in_training_alone():
    def alter(key, tokens, mask):
        del key
        return jnp.flip(tokens, 1), jnp.flip(mask, 1) | True

    model, variables = encoder(alter=alter), start(encoder())
    plain = encoder().apply(variables, TOKENS, MASK, train=False)
    same = model.apply(variables, TOKENS, MASK, train=False)
    np.testing.assert_array_equal(same.pooled, plain.pooled)
    other = model.apply(variables, TOKENS, MASK, train=True, rngs={"dropout": jax.random.key(0)})
    expected = encoder().apply(variables, jnp.flip(TOKENS, 1), jnp.ones_like(MASK), train=False)
    np.testing.assert_allclose(other.pooled, expected.pooled, atol=1e-6)


@pytest.mark.torch
def test_pooled_equals_the_vsepp_text_encoder_of_pytorch():
    torch = parity.torch()
    model = encoder("pooled")
    variables = start(model)
    layer = torch.nn.GRU(5, 6, batch_first=True)
    with torch.no_grad():
        for name, value in variables["params"]["reader"]["gru"].items():
            getattr(layer, f"{name}_l0").copy_(torch.tensor(np.asarray(value)))
    keep = [0, 1, 3]
    words = np.asarray(variables["params"]["reader"]["words"])[np.asarray(TOKENS)[keep]]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(words), torch.tensor([3, 1, 4]), batch_first=True, enforce_sorted=False
    )
    expected = torch.nn.functional.normalize(layer(packed)[1][0], dim=-1)
    encoding = encode(model)
    np.testing.assert_allclose(encoding.pooled[jnp.asarray(keep)], expected.detach(), atol=1e-5)
