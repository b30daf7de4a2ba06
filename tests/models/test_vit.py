import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy
from random_twins import randomize

from vse_jax.models.backbones import catalogue, vit, weights
from vse_jax.models.backbones.weights import WeightsError

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
# timm's own names for much the same.
TIMM_TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def noise(height, width, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def ours(folder, image, dtype=jnp.float32):
    module = catalogue.vit.make(weights.load_config(folder), dtype, "data")
    variables = catalogue.vit.load(str(folder), module)
    return jax.jit(partial(module.apply, train=False))(variables, jnp.asarray(image))


def save(model, folder):
    """A file with the weights of a model of timm's."""
    file = folder / "model.safetensors"
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    safetensors.numpy.save_file(tensors, file)
    return file


def pixels(image, mean, std):
    scaled = (image.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return parity.torch().from_numpy(scaled).permute(0, 3, 1, 2)


def compare(found, tokens, cells):
    """With all tokens after the final norm, the class token first."""
    tokens = tokens.detach().numpy()
    assert tokens.std() > 0.1
    grid = tokens[:, 1:].reshape(len(tokens), *cells, -1)
    np.testing.assert_allclose(found.grid, grid, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found.pooled, tokens[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("head", "config", "height", "width"),
    [
        ("ViTModel", {}, 32, 32),
        ("ViTModel", {"qkv_bias": False, "hidden_act": "quick_gelu"}, 40, 59),
        ("ViTForImageClassification", {"layer_norm_eps": 0.1}, 16, 24),
        ("ViTForMaskedImageModeling", {"hidden_act": "gelu_new"}, 35, 32),
    ],
)
def test_random_weights_give_the_tokens_of_transformers(tmp_path, head, config, height, width):
    library = parity.transformers()
    model = getattr(library, head)(library.ViTConfig(**TINY | {"encoder_stride": 8} | config))
    parity.saved(parity.randomize(model), tmp_path)
    image = noise(height, width)
    tower = getattr(model, "vit", model)
    expected = tower(pixels(image, [0.5] * 3, [0.5] * 3), interpolate_pos_encoding=True)
    cells = (height // 8, width // 8)
    compare(ours(tmp_path, image), expected.last_hidden_state, cells)


@pytest.mark.torch
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 64), (16, 24)])
def test_random_weights_give_the_tokens_of_timm(tmp_path, height, width):
    timm, mean, std = parity.timm(), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    model = timm.create_model("vit_base_patch16_224", **TIMM_TINY, dynamic_img_size=True)
    save(parity.randomize(model), tmp_path)
    config = {
        "architecture": "vit_base_patch16_224",
        "num_classes": 1000,
        "global_pool": "token",
        "model_args": TIMM_TINY | {"img_size": [32, 32]},
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": mean, "std": std},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    image = noise(height, width)
    expected = model.forward_features(pixels(image, mean, std))
    compare(ours(tmp_path, image), expected, (height // 8, width // 8))


@pytest.mark.torch
def test_vit_b_16_gives_the_tokens_of_timm(tmp_path):
    """At its size, on a small picture, for which its places are interpolated."""
    model = parity.timm().create_model(
        "vit_base_patch16_224", dynamic_img_size=True, weight_init="skip"
    )
    with parity.torch().no_grad():
        for value in (model.cls_token, model.pos_embed):
            value.normal_(0, 0.5)
    file = save(randomize(parity.torch(), model), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_224"}))
    image = noise(48, 32, count=1)
    expected = model.forward_features(pixels(image, [0.5] * 3, [0.5] * 3))
    compare(ours(tmp_path, image), expected, (3, 2))
    file.unlink()  # 340 MB


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({}, 85_798_656),
        ({"architecture": "vit_base_patch16_224"}, 85_798_656),
        ({"architecture": "vit_tiny_patch16_224"}, 5_524_416),
    ],
)
def test_the_published_models_have_their_size(config, parameters):
    """Counts of ViT-B/16 and ViT-Ti/16 without their heads."""
    module = vit.make(config)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.uint8)
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_timm_gives_the_size_of_pictures_in_two_places():
    config = {
        "architecture": "vit_small_patch32_384",
        "pretrained_cfg": {"input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3]},
    }
    module = vit.make(config)
    assert (module.image_size, module.patch_size, module.hidden_size) == (96, 32, 384)
    assert (module.mean, module.layer_norm_eps) == ((0.1, 0.2, 0.3), 1e-6)
    assert vit.make(config | {"model_args": {"img_size": 64}}).image_size == 64


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "deit"}, "model_type is 'deit', expected 'vit'"),
        ({"architecture": "vit_base_patch16_clip_224"}, "architecture is 'vit_base_patch16_clip"),
        ({"architecture": "vit_base_patch16_224", "global_pool": "avg"}, "global_pool is 'avg'"),
        (
            {"architecture": "vit_base_patch16_224", "model_args": {"class_token": False}},
            r"model_args has \['class_token'\]",
        ),
        (
            {"architecture": "vit_base_patch16_224", "model_args": {"img_size": [2, 3]}},
            r"image_size is \[2, 3\]",
        ),
    ],
)
def test_a_foreign_configuration_is_refused(config, message):
    with pytest.raises(WeightsError, match=message):
        vit.make(config)


@pytest.fixture
def tiny():
    module = vit.make(TINY)
    init = jax.jit(partial(module.init, train=False))
    variables = init(jax.random.key(0), jnp.asarray(noise(32, 32)))
    return module, variables


def test_what_is_missing_or_of_another_shape_is_named(tmp_path, tiny):
    module, variables = tiny
    tensors = weights.revert(variables, vit.RULES)
    tensors["embeddings.position_embeddings"] = np.zeros((1, 5, 32), np.float32)
    del tensors["encoder.layer.1.output.dense.bias"]
    tensors["encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        vit.load(tmp_path, module)
    message = str(caught.value)
    assert "encoder.layer.1.output.dense.bias is missing (expected shape (32,))" in message
    assert "embeddings.position_embeddings has shape (5, 32), expected (17, 32)" in message
    assert "encoder.layer.2.output.dense.bias of shape (32,) has no place" in message


def test_gradients_are_finite_on_a_black_picture(tiny):
    module, variables = tiny

    @jax.jit
    @jax.grad
    def gradient(params):
        found = module.apply({"params": params}, jnp.zeros((1, 32, 32, 3), jnp.uint8), train=True)
        return found.grid.sum() + found.pooled[:, 0].sum()

    leaves = jax.tree.leaves(gradient(variables["params"]))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert max(abs(leaf).max() for leaf in leaves) > 0


def test_bfloat16_is_close_and_parameters_stay_float32(tiny):
    module, variables = tiny
    image = jnp.asarray(noise(32, 32))
    full = module.apply(variables, image, train=False)
    half = vit.make(TINY, dtype=jnp.bfloat16)
    found = half.apply(variables, image, train=False)
    assert found.grid.dtype == found.pooled.dtype == jnp.bfloat16
    drawn = half.init(jax.random.key(0), image, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype("float32")}
    close = np.corrcoef(full.pooled[0], found.pooled[0].astype(jnp.float32))[0, 1]
    assert 0.99 < close < 1.0


def test_dropout_is_the_configurations_and_only_for_training(tiny):
    module, variables = tiny
    image = jnp.asarray(noise(32, 32))
    without = module.apply(variables, image, train=False).pooled
    np.testing.assert_array_equal(module.apply(variables, image, train=True).pooled, without)
    for rate in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        dropping = vit.make(TINY | {rate: 0.5})
        np.testing.assert_array_equal(dropping.apply(variables, image, train=False).pooled, without)
        rngs = {"dropout": jax.random.key(1)}
        dropped = dropping.apply(variables, image, train=True, rngs=rngs).pooled
        assert not np.allclose(dropped, without, atol=1e-3)
