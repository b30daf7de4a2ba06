from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from vse_jax.models.backbones import mobilenet_v2, weights
from vse_jax.models.backbones.mobilenet_v2 import (
    RULES,
    MobileNetV2,
    from_pretrained,
    load_classifier,
    make_divisible,
)
from vse_jax.models.backbones.weights import WeightsError

WEIGHTS = "weights/mobilenet_v2_1.0_224"


@pytest.fixture(scope="module")
def torch():
    return parity.torch()


@pytest.fixture(scope="module")
def transformers():
    return parity.transformers()


def noise(side, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def ours(folder, image, dtype=jnp.float32):
    net, variables = from_pretrained(folder, dtype=dtype)
    head = load_classifier(folder)
    grid, pooled = jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, jnp.asarray(image))
    assert pooled.dtype == jnp.float32
    return np.asarray(grid), np.asarray(pooled @ head.kernel + head.bias[None])


def theirs(torch, model, image):
    pixels = torch.from_numpy((image.astype(np.float32) - 127.5) / 127.5).permute(0, 3, 1, 2)
    with torch.no_grad():
        grid = model.mobilenet_v2(pixels).last_hidden_state
        return grid.permute(0, 2, 3, 1).numpy(), model(pixels).logits.numpy()


def random_model(torch, transformers, **config):
    """A model whose activations neither vanish nor saturate, so that every layer matters."""
    torch.manual_seed(0)
    config = transformers.MobileNetV2Config(num_labels=11, **config)
    model = transformers.MobileNetV2ForImageClassification(config).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            low, high = (0.1, 0.3) if "reduce_1x1" in name else (0.5, 1.0)
            torch.nn.init.uniform_(module.weight, low, high)
            torch.nn.init.normal_(module.bias, 0.0, 0.3)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, 0.0, 0.02)
            torch.nn.init.normal_(module.bias, 0.0, 0.02)
    return model


@pytest.mark.torch
@pytest.mark.parametrize(
    ("side", "config"),
    [
        (33, {"depth_multiplier": 1.4}),
        (48, {"depth_multiplier": 0.35, "first_layer_is_expansion": False, "output_stride": 8}),
        (
            49,
            {
                "depth_multiplier": 0.35,
                "output_stride": 16,
                "tf_padding": False,
                "finegrained_output": False,
                "expand_ratio": 3.7,
                "layer_norm_eps": 0.1,
                "hidden_act": "silu",
            },
        ),
    ],
)
def test_random_weights_give_the_logits_of_transformers(
    torch, transformers, tmp_path, side, config
):
    model = random_model(torch, transformers, **config)
    model.save_pretrained(tmp_path)
    image = noise(side)
    grid, logits = ours(tmp_path, image)
    expected_grid, expected_logits = theirs(torch, model, image)
    assert expected_logits.std() > 0.01
    np.testing.assert_allclose(grid, expected_grid, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4, rtol=0)


@pytest.mark.torch
@pytest.mark.flickr8k
def test_the_real_weights_give_the_logits_of_transformers(torch, transformers, real_data):
    folder = real_data(WEIGHTS)
    photo = min(real_data("flickr8k/Flicker8k_Dataset").glob("*.jpg"))
    pixels = np.asarray(Image.open(photo).convert("RGB").resize((224, 224)))
    image = np.concatenate([noise(224, 1), pixels[None]])
    # The file's num_batches_tracked has one axis, PyTorch's none; nothing reads it here.
    model, loading = transformers.MobileNetV2ForImageClassification.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert all(key.endswith("num_batches_tracked") for key, *_ in loading["mismatched_keys"])
    model.eval()
    grid, logits = ours(folder, image)
    expected_grid, expected_logits = theirs(torch, model, image)
    assert grid.shape == (len(image), 7, 7, 1280)
    np.testing.assert_allclose(grid, expected_grid, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4, rtol=0)


@pytest.mark.flickr8k
def test_bfloat16_is_close(real_data):
    folder, image = real_data(WEIGHTS), noise(96, 1)
    _, full = ours(folder, image)
    grid, half = ours(folder, image, jnp.bfloat16)
    assert grid.dtype == jnp.bfloat16
    assert np.corrcoef(full[0], half[0].astype(np.float32))[0, 1] > 0.99


@pytest.mark.torch
def test_the_headless_class_loads_too_and_has_no_classifier(torch, transformers, tmp_path):
    model = random_model(torch, transformers, depth_multiplier=0.35)
    model.mobilenet_v2.save_pretrained(tmp_path)
    net, variables = from_pretrained(tmp_path)
    image = noise(64)
    found = jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, jnp.asarray(image))
    np.testing.assert_allclose(found.grid, theirs(torch, model, image)[0], atol=1e-4, rtol=1e-4)
    assert load_classifier(tmp_path) is None


def test_weights_survive_the_way_to_pytorch_and_back():
    net = MobileNetV2()
    shapes = jax.eval_shape(
        partial(net.init, train=False), jax.random.key(0), jnp.asarray(noise(32))
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
    tensors = weights.revert(variables, RULES)
    assert tensors["layer.3.conv_3x3.convolution.weight"].shape == (192, 1, 3, 3)
    jax.tree.map(np.testing.assert_array_equal, weights.convert(tensors, shapes, RULES), variables)
    assert net.channels == 1280


def test_training_updates_statistics_and_gradients_are_finite_on_a_black_picture(monkeypatch):
    # Three blocks, one of them residual: the gradient of sixteen takes long to compile.
    monkeypatch.setattr(mobilenet_v2, "_CHANNELS", (16, 24, 24, 32))
    monkeypatch.setattr(mobilenet_v2, "_STRIDES", (2, 1, 2))
    net = MobileNetV2(depth_multiplier=0.1, finegrained_output=False)
    image = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    shapes = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), image)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params):
        batch = {"params": params, "batch_stats": variables["batch_stats"]}
        found, new = net.apply(batch, image, train=True, mutable=["batch_stats"])
        return found.grid.sum(), new["batch_stats"]

    gradients, new = gradient(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    first = ("conv_stem", "first_conv", "normalization", "mean")
    old_mean, new_mean = (flatten_dict(stats)[first] for stats in (variables["batch_stats"], new))
    assert not np.allclose(old_mean, new_mean)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "resnet"}', "model_type is 'resnet', expected 'mobilenet_v2'"),
        ('{"num_channels": 1}', "num_channels is 1, expected 3"),
        ('{"hidden_act": "snake"}', "hidden_act is 'snake', expected one of .*relu6"),
    ],
)
def test_a_foreign_configuration_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("channels", "expected"), [(11, 16), (8, 8), (5, 8), (45, 48), (134, 136), (22, 24), (34, 32)]
)
def test_make_divisible(channels, expected):
    assert make_divisible(channels) == expected
