from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.models.text import GRUTextEncoder

TOKENS = jnp.asarray([[1, 4, 2, 0], [3, 0, 0, 0], [0, 0, 0, 0], [5, 6, 7, 8]], jnp.int32)
MASK = jnp.arange(4)[None] < jnp.asarray([3, 1, 0, 4])[:, None]


def encoder(**options):
    return GRUTextEncoder(vocabulary=9, words=5, embedding=6, **options)


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
    model = encoder()
    encoding = encode(model)
    np.testing.assert_allclose(encoding.pooled[0], encoding.local[0, 2], atol=1e-6)
    np.testing.assert_allclose(encoding.pooled[3], encoding.local[3, 3], atol=1e-6)


def test_parameters_have_the_promised_names_shapes_and_ranges():
    init = jax.jit(partial(encoder(bidirectional=True).init, train=False))
    params = init(jax.random.key(0), TOKENS, MASK)["params"]
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
    words = gradient["params"]["words"]
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


def test_unknown_pooling_lists_the_known():
    with pytest.raises(ValueError, match=r"'mean' is unknown; known: last"):
        start(encoder(pooling="mean"))


@pytest.mark.torch
def test_pooled_equals_the_vsepp_text_encoder_of_pytorch():
    torch = pytest.importorskip("torch")
    model = encoder()
    variables = start(model)
    layer = torch.nn.GRU(5, 6, batch_first=True)
    with torch.no_grad():
        for name, value in variables["params"]["gru"].items():
            getattr(layer, f"{name}_l0").copy_(torch.tensor(np.asarray(value)))
    keep = [0, 1, 3]
    words = np.asarray(variables["params"]["words"])[np.asarray(TOKENS)[keep]]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(words), torch.tensor([3, 1, 4]), batch_first=True, enforce_sorted=False
    )
    expected = torch.nn.functional.normalize(layer(packed)[1][0], dim=-1)
    encoding = encode(model)
    np.testing.assert_allclose(encoding.pooled[jnp.asarray(keep)], expected.detach(), atol=1e-5)
