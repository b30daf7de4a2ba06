import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from vse_jax.models.backbones import transformer
from vse_jax.models.backbones.weights import WeightsError

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_attention_is_the_formula_head_by_head():
    queries, keys = normal(2, 3, 8), normal(2, 5, 8)
    mask = RNG.random((2, 1, 3, 5)) < 0.6
    mask[0, 0, 1] = False
    module = transformer.Attention(heads=2)
    arrays = jnp.asarray(queries), jnp.asarray(keys)
    variables = module.init(jax.random.key(0), *arrays, None, train=False)
    variables = jax.tree.map(lambda leaf: normal(*leaf.shape), variables)
    found = module.apply(variables, *arrays, jnp.asarray(mask), train=False)
    w = variables["params"]
    project = {n: w[n]["kernel"].astype(np.float64) for n in ("query", "key", "value", "out")}
    for b in range(2):
        for q in range(3):
            taken = []
            for head in (slice(0, 4), slice(4, 8)):
                query = (queries[b, q] @ project["query"] + w["query"]["bias"])[head]
                key = (keys[b] @ project["key"] + w["key"]["bias"])[:, head]
                value = (keys[b] @ project["value"] + w["value"]["bias"])[:, head]
                seen = mask[b, 0, q] if mask[b, 0, q].any() else np.ones(5, bool)
                share = np.exp(key @ query / 2.0) * seen
                if not mask[b, 0, q].any():
                    share = np.ones(5)
                taken.append(share @ value / share.sum())
            expected = np.concatenate(taken) @ project["out"] + w["out"]["bias"]
            np.testing.assert_allclose(found[b, q], expected, atol=1e-4)


def test_the_layer_norm_is_the_formula_and_its_gradient_finite_at_zero():
    x = normal(2, 3, 7) * 5 + 100
    x[0, 0] = 0.0
    module = transformer.LayerNorm(1e-5)
    scale, bias = normal(7), normal(7)

    def apply(x):
        return module.apply({"params": {"scale": scale, "bias": bias}}, jnp.asarray(x))

    wide = x.astype(np.float64)
    mean, var = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    expected = (wide - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(apply(x), expected, atol=1e-4)
    assert np.isfinite(jax.grad(lambda x: apply(x)[..., 0].sum())(jnp.asarray(x))).all()


def test_a_layer_norm_of_bfloat16_computes_in_float32():
    x = jnp.asarray(normal(1, 4, 16) + 3, jnp.bfloat16)
    halves, floats = (transformer.LayerNorm(1e-6, d) for d in (jnp.bfloat16, jnp.float32))
    variables = halves.init(jax.random.key(0), x)
    assert variables["params"]["scale"].dtype == jnp.float32
    expected = floats.apply(variables, x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(halves.apply(variables, x), expected)


@pytest.mark.torch
@pytest.mark.parametrize("size", [(4, 4), (7, 9), (3, 2), (8, 4), (1, 1)])
@pytest.mark.parametrize("antialias", [False, True])
def test_positions_are_interpolated_as_by_pytorch(size, antialias):
    torch = parity.torch()
    grid = normal(4, 4, 3)
    found = transformer.resize(jnp.asarray(grid), size, antialias)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grid).permute(2, 0, 1)[None],
        size=size,
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    np.testing.assert_allclose(found, expected[0].permute(1, 2, 0), atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("name", transformer.ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    torch, library = parity.torch(), parity.transformers()
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = library.activations.ACT2FN[name](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(transformer.ACTIVATIONS[name](jnp.asarray(x)), expected, atol=1e-5)


def test_fused_projections_come_apart():
    weight, bias = normal(6, 2), normal(6)
    other = normal(3)
    parts = transformer.unfuse(
        {"a.qkv.weight": weight, "a.qkv.bias": bias, "qkv.other": other},
        r"(?<=a\.)qkv\.(weight|bias)$",
    )
    assert parts.keys() == {
        *(f"a.{part}.{leaf}" for part in ("query", "key", "value") for leaf in ("weight", "bias")),
        "qkv.other",
    }
    np.testing.assert_array_equal(parts["a.query.weight"], weight[:2])
    np.testing.assert_array_equal(parts["a.key.weight"], weight[2:4])
    np.testing.assert_array_equal(parts["a.value.bias"], bias[4:])


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"model_type": "deit"}, "model_type is 'deit', expected 'vit' or 'wit'"),
        ({"num_channels": 1}, "num_channels is 1, expected 3"),
        ({"hidden_act": "snake"}, r"hidden_act is 'snake', expected one of .*quick_gelu"),
        ({"hidden_size": 30}, "hidden_size is 30, expected a multiple of .*, 12"),
        ({"image_size": [224, 224]}, r"image_size is \[224, 224\], expected a value such as 224"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small', expected"),
    ],
)
def test_a_foreign_configuration_is_refused(configuration, message):
    with pytest.raises(WeightsError, match=message):
        transformer.make(transformer.ImageTower, configuration, ["vit", "wit"], jnp.float32)


def test_a_half_of_a_configuration():
    both = {
        "text_config": {"hidden_size": 3, "vocab_size": 5, "attention_dropout": 0.1},
        "text_config_dict": {"hidden_size": 4},
        "vision_config": None,
    }
    expected = {"hidden_size": 4, "vocab_size": 5, "attention_probs_dropout_prob": 0.1}
    assert transformer.half(both, "text") == expected
    assert transformer.half(both, "vision") == {"attention_probs_dropout_prob": 0.0}
    alone = {"hidden_size": 3, "attention_dropout": 0.2}
    assert transformer.half(alone, "vision")["hidden_size"] == 3
    with pytest.raises(WeightsError, match="text_config is 3, expected a JSON object"):
        transformer.half({"text_config": 3}, "text")
