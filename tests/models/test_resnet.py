import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec
from random_twins import channels_last, pictures, pixels, randomize, torch_shapes

from vse_jax.models.backbones import catalogue, weights
from vse_jax.models.backbones.resnet import (
    DEPTHS,
    TIMM_RULES,
    ResNet,
    hugging_face_rules,
    make,
)
from vse_jax.models.backbones.weights import WeightsError

FAINT = (".bn3", ".layer.2.normalization")
TINY = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1]}
tiny = partial(ResNet, embedding_size=4, hidden_sizes=(8, 12), depths=(2, 1))


@pytest.fixture(scope="module")
def torch():
    return parity.torch()


@pytest.fixture(scope="module")
def transformers():
    return parity.transformers()


@pytest.fixture(scope="module")
def timm():
    return parity.timm()


def ours(folder, image, dtype=jnp.float32):
    """What the public path makes of a folder of weights, and of these pictures with them."""
    module = catalogue.resnet.make(weights.load_config(folder), jnp.dtype(dtype), "data")
    variables = catalogue.resnet.load(str(folder), module)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    found = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, jnp.asarray(image))
    assert found.pooled.dtype == jnp.float32
    return found


def assert_close(found, grid, pooled):
    assert np.std(grid) > 0.1
    np.testing.assert_allclose(found.grid, grid, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-4, rtol=1e-4)


def template(module):
    picture = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    return jax.eval_shape(partial(module.init, train=False), jax.random.key(0), picture)


def drawn(module):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32), template(module)
    )


@pytest.mark.torch
@pytest.mark.parametrize(
    ("size", "config"),
    [
        ((64, 64), TINY),
        ((75, 50), TINY | {"downsample_in_bottleneck": True}),
        ((33, 70), TINY | {"downsample_in_first_stage": True, "hidden_sizes": [8, 12, 16, 20]}),
    ],
)
def test_hugging_face_weights_give_the_maps_of_transformers(
    torch, transformers, tmp_path, size, config
):
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**config))
    randomize(torch, model, FAINT).save_pretrained(tmp_path)
    image = pictures(*size)
    with torch.no_grad():
        expected = model.resnet(pixels(torch, image))
    found = ours(tmp_path, image)
    grid = channels_last(expected.last_hidden_state)
    assert_close(found, grid, expected.pooler_output[:, :, 0, 0].numpy())

    # The headless class saves the same tensors without the prefix.
    model.resnet.save_pretrained(tmp_path / "headless")
    headless = ours(tmp_path / "headless", image)
    jax.tree.map(np.testing.assert_array_equal, headless, found)

    half = ours(tmp_path, image, jnp.bfloat16)
    assert half.grid.dtype == jnp.bfloat16
    assert np.corrcoef(half.pooled.ravel(), found.pooled.ravel())[0, 1] > 0.99


@pytest.mark.torch
def test_timm_weights_give_the_maps_of_timm_with_their_own_pixel_statistics(torch, timm, tmp_path):
    given = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}
    model = timm.create_model("resnet152", pretrained_cfg_overlay=given)
    randomize(torch, model, FAINT)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    image = pictures(48, 81, count=1)
    with torch.no_grad():
        grid = model.forward_features(pixels(torch, image, **given))
        pooled = model.forward_head(grid, pre_logits=True).numpy()
    found = ours(tmp_path, image)
    assert found.grid.shape == (1, 2, 3, 2048)
    assert_close(found, channels_last(grid), pooled)


@pytest.mark.torch
@pytest.mark.parametrize("name", DEPTHS)
def test_every_tensor_of_timm_has_its_place(torch, timm, name):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    theirs = {key: tuple(value.shape) for key, value in state.items() if key[:3] != "fc."}
    theirs = {k: v for k, v in theirs.items() if not k.endswith("num_batches_tracked")}
    module = make({"architecture": name})
    rename = partial(weights.torch_name, rules=TIMM_RULES)
    assert torch_shapes(template(module), rename) == theirs


@pytest.mark.torch
def test_every_tensor_of_transformers_has_its_place(torch, transformers):
    config = transformers.ResNetConfig(depths=list(DEPTHS["resnet101"]))
    with torch.device("meta"):
        state = transformers.ResNetModel(config).state_dict()
    theirs = {key: tuple(value.shape) for key, value in state.items()}
    theirs = {k: v for k, v in theirs.items() if not k.endswith("num_batches_tracked")}
    module = make(config.to_dict())
    assert module == make({"architecture": "resnet101"})
    rename = partial(weights.torch_name, rules=hugging_face_rules(4))
    assert torch_shapes(template(module), rename) == theirs


def test_without_weights_it_is_resnet_50_of_seven_by_seven_cells():
    module = catalogue.resnet.make({}, jnp.dtype("float32"), "data")
    assert tuple(module.depths) == (3, 4, 6, 3)
    picture = jax.ShapeDtypeStruct((3, 224, 224, 3), jnp.uint8)
    init = partial(module.init_with_output, train=False)
    found, variables = jax.eval_shape(init, jax.random.key(0), picture)
    assert found.grid.shape == (3, 7, 7, 2048)
    assert found.pooled.shape == (3, 2048)
    # 25,557,032 of the public network without the 2,049,000 of its classifier.
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 23_508_032


def test_training_moves_the_statistics_and_gradients_are_finite_on_a_black_picture():
    module, image = tiny(), jnp.zeros((2, 33, 32, 3), jnp.uint8)
    variables = drawn(module)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params):
        batch = {"params": params, "batch_stats": variables["batch_stats"]}
        found, new = module.apply(batch, image, train=True, mutable=["batch_stats"])
        return found.grid.sum() + found.pooled.sum(), new["batch_stats"]

    gradients, new = gradient(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    old, new = flatten_dict(variables["batch_stats"]), flatten_dict(new)
    assert all(not np.allclose(old[name], new[name]) for name in old)


def test_with_an_axis_name_four_devices_share_the_statistics_of_the_whole_batch():
    image = jnp.asarray(pictures(32, count=4))
    alone, shared = tiny(), tiny(axis_name="data")
    variables = drawn(alone)

    def train(module):
        return lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"])

    expected = jax.jit(train(alone))(variables, image)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        train(shared), mesh=mesh, in_specs=(whole, split), out_specs=(split, whole), check_vma=False
    )
    found = jax.jit(mapped)(variables, image)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4), found, expected)


@pytest.mark.parametrize("naming", ["timm", "transformers"])
def test_misfits_are_named_as_the_file_names_them(tmp_path, naming):
    rules = {"timm": TIMM_RULES, "transformers": [*hugging_face_rules(2), ("^", "resnet.")]}[naming]
    lost, short = {
        "timm": ("layer2.0.downsample.1.running_var", "layer1.1.conv2.weight"),
        "transformers": (
            "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var",
            "resnet.encoder.stages.0.layers.1.layer.1.convolution.weight",
        ),
    }[naming]
    module = tiny()
    variables = drawn(module)
    tensors = weights.revert(variables, rules)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    found = catalogue.resnet.load(str(tmp_path), module)
    jax.tree.map(np.testing.assert_array_equal, found, variables)

    del tensors[lost]
    tensors[short] = tensors[short][:, :1].copy()
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        catalogue.resnet.load(str(tmp_path), module)
    assert f"{lost} is missing (expected shape (12,))" in str(caught.value)
    assert f"{short} has shape (2, 1, 3, 3), expected (2, 2, 3, 3)" in str(caught.value)


def test_weights_of_another_depth_are_refused(tmp_path):
    tensors = weights.revert(drawn(tiny()), TIMM_RULES)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"layer1\.1\.bn1\.bias .* has no place in the model"):
        catalogue.resnet.load(str(tmp_path), tiny(depths=(1, 1)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit"}, "model_type is 'vit', expected 'resnet', or .*'resnet50'"),
        ({"depths": [3, 4, 6, 3]}, "model_type is None, expected 'resnet'"),
        (
            {"architecture": "resnet18"},
            r"architecture is 'resnet18', expected one of \['resnet101'",
        ),
        (
            {"architecture": "resnet50", "model_args": {"num_classes": 5, "output_stride": 8}},
            r"model_args changes \['output_stride'\] of resnet50",
        ),
        ({"model_type": "resnet", "layer_type": "basic"}, "layer_type is 'basic', expected 'bottl"),
        ({"model_type": "resnet", "hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'relu'"),
        ({"model_type": "resnet", "num_channels": 1}, "num_channels is 1, expected 3"),
        ({"model_type": "resnet", "depths": [3, 4]}, "hidden_sizes has 4 stages, depths has 2"),
        (
            {"architecture": "resnet50", "pretrained_cfg": {"mean": [0.5]}},
            r"mean is \[0.5\], expected three numbers",
        ),
        ({"architecture": "resnet50", "std": [0.5, 0, 0.5]}, r"std is .* expected positive"),
    ],
)
def test_a_foreign_configuration_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=f"config.json of the weights: {message}"):
        make(weights.load_config(tmp_path))
