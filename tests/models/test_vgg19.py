import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy
from random_twins import channels_last, pictures, pixels, randomize, torch_shapes

from vse_jax.models.backbones import catalogue, weights
from vse_jax.models.backbones.vgg19 import (
    VGG19,
    adaptive_average,
    make,
    timm_rules,
    torchvision_rules,
)
from vse_jax.models.backbones.weights import WeightsError

WIDTHS, HIDDEN = (3, 4, 6, 8, 8), (32, 4096)
tiny = partial(VGG19, widths=WIDTHS, hidden=HIDDEN)


@pytest.fixture(scope="module")
def torch():
    return parity.torch()


@pytest.fixture(scope="module")
def timm():
    return parity.timm()


def features(torch, batch_norm):
    """The convolutions of table 1, column E, with torchvision's layers and their numbers."""
    layers, width = [], 3
    for after, depth in zip(WIDTHS, (2, 2, 4, 4, 4), strict=True):
        for _ in range(depth):
            layers.append(torch.nn.Conv2d(width, after, 3, padding=1))
            layers += [torch.nn.BatchNorm2d(after)] if batch_norm else []
            layers.append(torch.nn.ReLU())
            width = after
        layers.append(torch.nn.MaxPool2d(2, 2))
    return torch.nn.Sequential(*layers)


def torchvision_twin(torch, batch_norm):
    """Small, in torchvision's layout: features, average to 7 x 7, classifier."""
    model = torch.nn.Module()
    model.features = features(torch, batch_norm)
    model.avgpool = torch.nn.AdaptiveAvgPool2d(7)
    six, seven = HIDDEN
    model.classifier = torch.nn.Sequential(
        torch.nn.Linear(WIDTHS[-1] * 49, six),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(six, seven),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(seven, 5),
    )
    return randomize(torch, model)


def save(model, folder):
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def ours(folder, module, image):
    variables = catalogue.vgg19.load(str(folder), module)
    found = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, jnp.asarray(image))
    assert found.pooled.dtype == jnp.float32
    return found


def assert_close(found, grid, pooled):
    assert min(np.std(grid), np.std(pooled)) > 0.1
    np.testing.assert_allclose(found.grid, grid, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-4, rtol=1e-4)


def template(module):
    picture = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    return jax.eval_shape(partial(module.init, train=False), jax.random.key(0), picture)


@pytest.mark.torch
@pytest.mark.parametrize(("size", "batch_norm"), [((224, 224), False), ((97, 330), True)])
def test_torchvision_weights_give_the_features_of_pytorch(torch, tmp_path, size, batch_norm):
    model = torchvision_twin(torch, batch_norm)
    save(model, tmp_path)
    image = pictures(*size)
    with torch.no_grad():
        grid = model.features(pixels(torch, image))
        pooled = model.classifier[:5](model.avgpool(grid).flatten(1)).numpy()
    found = ours(tmp_path, tiny(batch_norm=batch_norm), image)
    assert found.grid.shape == (2, size[0] // 32, size[1] // 32, 8)
    assert_close(found, channels_last(grid), pooled)


@pytest.mark.torch
@pytest.mark.parametrize(("size", "batch_norm"), [((224, 224), True), ((70, 40), False)])
def test_timm_weights_give_the_features_of_timm(torch, timm, tmp_path, size, batch_norm):
    plan = [
        part
        for width, depth in zip(WIDTHS, (2, 2, 4, 4, 4), strict=True)
        for part in [*[width] * depth, "M"]
    ]
    norm = torch.nn.BatchNorm2d if batch_norm else None
    model = timm.models.vgg.VGG(plan, mlp_ratio=HIDDEN[0] / HIDDEN[1], norm_layer=norm)
    save(randomize(torch, model), tmp_path)
    image = pictures(*size)
    with torch.no_grad():
        grid = model.forward_features(pixels(torch, image))
        pooled = model.forward_head(grid, pre_logits=True).numpy()
    found = ours(tmp_path, tiny(batch_norm=batch_norm), image)
    assert_close(found, channels_last(grid), pooled)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["vgg19", "vgg19_bn"])
def test_every_tensor_of_timm_and_torchvision_has_its_place(torch, timm, name):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    theirs = {key: tuple(value.shape) for key, value in state.items() if "head.fc" not in key}
    theirs = {k: v for k, v in theirs.items() if not k.endswith("num_batches_tracked")}
    # A convolution of one cell in timm's file, a matrix here.
    theirs["pre_logits.fc2.weight"] = theirs["pre_logits.fc2.weight"][:2]
    module = make({"architecture": name})
    rename = partial(weights.torch_name, rules=timm_rules(module.batch_norm))
    assert torch_shapes(template(module), rename) == theirs
    rename = partial(weights.torch_name, rules=torchvision_rules(module.batch_norm))
    found = torch_shapes(template(module), rename)
    convolutions = [key for key in theirs if key.startswith("features.")]
    assert {key for key in found if key.startswith("features.")} == set(convolutions)
    assert found["classifier.0.weight"] == (4096, 512, 7, 7)
    assert found["classifier.3.weight"] == (4096, 4096)


@pytest.mark.torch
@pytest.mark.parametrize("size", [(1, 2), (7, 7), (8, 5), (20, 13)])
def test_adaptive_averages_are_those_of_pytorch(torch, size):
    grid = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(grid), 7)
    found = adaptive_average(jnp.asarray(grid.transpose(0, 2, 3, 1)), 7)
    np.testing.assert_allclose(found, channels_last(expected), rtol=1e-5, atol=1e-6)


def test_without_weights_it_is_the_plain_network_of_the_paper():
    module = catalogue.vgg19.make({}, jnp.dtype("float32"), "data")
    picture = jax.ShapeDtypeStruct((3, 224, 224, 3), jnp.uint8)
    init = partial(module.init_with_output, train=False)
    found, variables = jax.eval_shape(init, jax.random.key(0), picture)
    assert found.grid.shape == (3, 7, 7, 512)
    assert found.pooled.shape == (3, 4096)
    # 143,667,240 of the public network without the 4,097,000 of its classifier.
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 139_570_240


def test_gradients_are_finite_on_a_black_picture_and_dropout_acts_only_in_training():
    module, image = tiny(hidden=(16, 8)), jnp.zeros((2, 33, 64, 3), jnp.uint8)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0.2, 0.2, leaf.shape).astype(np.float32), template(module)
    )

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def whole(params, key):
        found = module.apply({"params": params}, image, train=True, rngs={"dropout": key})
        return found.grid.sum() + found.pooled.sum(), found

    (_, one), gradients = whole(variables["params"], jax.random.key(0))
    (_, other), _ = whole(variables["params"], jax.random.key(1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(one.grid, other.grid)
    assert not np.allclose(one.pooled, other.pooled)
    still = [module.apply(variables, image, train=False).pooled for _ in range(2)]
    np.testing.assert_array_equal(*still)


def test_half_precision_is_close():
    full, half = tiny(), tiny(dtype=jnp.bfloat16)
    rng = np.random.default_rng(0)

    def draw(leaf):
        deviation = (2.0 / max(np.prod(leaf.shape[:-1]), 1)) ** 0.5 if leaf.ndim > 1 else 0.1
        return rng.normal(0.0, deviation, leaf.shape).astype(np.float32)

    variables = jax.tree.map(draw, template(full))
    image = jnp.asarray(pictures(96))
    expected, found = (net.apply(variables, image, train=False) for net in (full, half))
    assert found.grid.dtype == jnp.bfloat16
    assert found.pooled.dtype == jnp.float32
    assert np.corrcoef(found.pooled.ravel(), expected.pooled.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("naming", ["timm", "torchvision"])
def test_misfits_are_named_as_the_file_names_them(tmp_path, naming):
    module = tiny(hidden=(16, 8))
    rules = {"timm": timm_rules, "torchvision": torchvision_rules}[naming](False)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), template(module))
    tensors = weights.revert(variables, rules)
    lost, short = {
        "timm": ("features.34.bias", "pre_logits.fc1.weight"),
        "torchvision": ("features.34.bias", "classifier.0.weight"),
    }[naming]
    del tensors[lost]
    tensors[short] = tensors[short][:, :5].reshape(16, 5, 7, 7)
    if naming == "torchvision":
        tensors[short] = tensors[short].reshape(16, -1)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        catalogue.vgg19.load(str(tmp_path), module)
    assert f"{lost} is missing (expected shape (8,))" in str(caught.value)
    assert f"{short} has shape (16, 5, 7, 7), expected (16, 8, 7, 7)" in str(caught.value)


def test_weights_with_batch_norm_do_not_fit_the_plain_network(tmp_path):
    shapes = template(tiny(hidden=(16, 8), batch_norm=True))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    tensors = weights.revert(variables, timm_rules(True))
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"features\.2\.weight is missing"):
        catalogue.vgg19.load(str(tmp_path), tiny(hidden=(16, 8)))


def test_a_picture_without_a_cell_is_refused():
    with pytest.raises(ValueError, match="pictures of 40 x 31 pixels, expected at least 32"):
        tiny().init(jax.random.key(0), jnp.zeros((1, 40, 31, 3), jnp.uint8), train=False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "vgg16"}, r"architecture is 'vgg16', expected one of \['vgg19'"),
        ({"model_type": "resnet"}, "architecture is None, expected one of"),
        (
            {"architecture": "vgg19", "model_args": {"mlp_ratio": 2.0}},
            r"model_args changes \['mlp_ratio'\] of vgg19, expected no changes",
        ),
    ],
)
def test_a_foreign_configuration_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=f"config.json of the weights: {message}"):
        make(weights.load_config(tmp_path))
