import json

import huggingface_hub
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from vse_jax.models.backbones import catalogue, weights
from vse_jax.models.backbones.weights import WeightsError

RULES = [(r"^block_(\d+)/", r"blocks/\1/"), (r"^", "net.")]
TEMPLATE = {
    "params": {
        "block_0": {
            "conv": {"kernel": jnp.zeros((3, 2, 4, 5)), "bias": jnp.zeros(5)},
            "depthwise": {"kernel": jnp.zeros((3, 2, 1, 5))},
            "norm": {"scale": jnp.zeros(5)},
        },
        "words": {"embedding": jnp.zeros((7, 4))},
        "linear": {"kernel": jnp.zeros((4, 6))},
        "token": jnp.zeros((1, 1, 4)),
    },
    "batch_stats": {"block_0": {"norm": {"mean": jnp.zeros(5), "var": jnp.zeros(5)}}},
}
SHAPES = {
    "net.blocks.0.conv.weight": (5, 4, 3, 2),
    "net.blocks.0.conv.bias": (5,),
    "net.blocks.0.depthwise.weight": (5, 1, 3, 2),
    "net.blocks.0.norm.weight": (5,),
    "net.blocks.0.norm.running_mean": (5,),
    "net.blocks.0.norm.running_var": (5,),
    "net.words.weight": (7, 4),
    "net.linear.weight": (6, 4),
    "net.token": (1, 1, 4),
}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_every_kind_of_tensor_finds_its_place_and_its_axes(tensors):
    tensors["net.blocks.0.norm.num_batches_tracked"] = np.zeros((), np.int64)
    variables = weights.convert(tensors, TEMPLATE, RULES)
    block = variables["params"]["block_0"]
    conv = tensors["net.blocks.0.conv.weight"]
    depthwise = tensors["net.blocks.0.depthwise.weight"]
    for y in range(3):
        for x in range(2):
            np.testing.assert_array_equal(block["conv"]["kernel"][y, x], conv[:, :, y, x].T)
            np.testing.assert_array_equal(
                block["depthwise"]["kernel"][y, x, 0], depthwise[:, 0, y, x]
            )
    linear = tensors["net.linear.weight"]
    np.testing.assert_array_equal(variables["params"]["linear"]["kernel"], linear.T)
    words = tensors["net.words.weight"]
    np.testing.assert_array_equal(variables["params"]["words"]["embedding"], words)
    variance = tensors["net.blocks.0.norm.running_var"]
    np.testing.assert_array_equal(variables["batch_stats"]["block_0"]["norm"]["var"], variance)


def test_revert_undoes_convert(tensors):
    back = weights.revert(weights.convert(tensors, TEMPLATE, RULES), RULES)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_every_misfit_is_named_with_the_shapes_met_and_expected(tensors):
    del tensors["net.blocks.0.norm.running_var"]
    tensors["net.linear.weight"] = np.zeros((4, 6), np.float32)
    tensors["net.extra"] = np.zeros((2, 9), np.float32)
    tensors["classifier.weight"] = np.zeros(1, np.float32)
    with pytest.raises(WeightsError) as caught:
        weights.convert(tensors, TEMPLATE, RULES, ignore=["^classifier"], source="here.safetensors")
    message = str(caught.value)
    assert "here.safetensors" in message
    assert "net.blocks.0.norm.running_var is missing (expected shape (5,))" in message
    assert "net.linear.weight has shape (4, 6), expected (6, 4)" in message
    assert "net.extra of shape (2, 9) has no place in the model" in message
    assert "classifier" not in message


def test_a_long_list_of_misfits_is_cut_short(tensors):
    extra = {f"extra.{i}": np.zeros(1, np.float32) for i in range(25)}
    with pytest.raises(WeightsError, match=r"extra\.0 .*; and 15 more"):
        weights.convert(tensors | extra, TEMPLATE, RULES)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_half_precision_files_load_as_float32(tmp_path, dtype):
    values = np.array([0.5, -3.0, 256.0])
    safetensors.numpy.save_file({"a": values.astype(dtype)}, tmp_path / "model.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        loaded = weights.load_safetensors(source)["a"]
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, values)


def shards(folder):
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, folder / "model-1.safetensors")
    safetensors.numpy.save_file({"b": np.zeros(3, np.float32)}, folder / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_load_together(tmp_path):
    shards(tmp_path)
    assert weights.load_safetensors(tmp_path).keys() == {"a", "b"}


def test_a_missing_shard_is_named(tmp_path):
    shards(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"missing: \['model-2.safetensors'\]"):
        weights.load_safetensors(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"weight_map": {}}'])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match=r"index\.json"):
        weights.load_safetensors(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 60, -3])
def test_a_truncated_file_is_named(tmp_path, kept):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.ones(9, np.float32)}, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"model\.safetensors: not a readable safetensors file"):
        weights.load_safetensors(tmp_path)


def test_an_empty_folder_and_a_missing_path_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor"):
        weights.load_safetensors(tmp_path)
    with pytest.raises(WeightsError, match=r"none\.safetensors': no such file or folder"):
        weights.load_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match=r"no config\.json"):
        weights.load_config(tmp_path)


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(WeightsError, match=r"config\.json: not JSON"):
        weights.load_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "usual"), [("vit", (0.5,) * 3), ("resnet", (0.485, 0.456, 0.406))]
)
def test_pixels_are_normalized_as_the_preprocessor_says(tmp_path, name, usual):
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_resize": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    file, backbone = tmp_path / "preprocessor_config.json", getattr(catalogue, name)

    def made():
        return backbone.make(weights.load_config(tmp_path), jnp.float32, "data")

    assert tuple(made().mean) == usual
    file.write_text(json.dumps(said))
    assert (tuple(made().mean), tuple(made().std)) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    for wrong, told in (("grey", "expected three numbers"), ([1, 0, 1], "expected positive")):
        file.write_text(json.dumps(said | {"image_std": wrong}))
        with pytest.raises(WeightsError, match=rf"preprocessor_config\.json .*{told}"):
            made()


def test_offline_the_hub_is_named_and_a_local_path_asked_for(monkeypatch):
    def refuse(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Got: ConnectError\nand a long tale")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(WeightsError) as caught:
        weights.load_safetensors("google/mobilenet_v2_1.0_224")
    assert "'google/mobilenet_v2_1.0_224'" in str(caught.value)
    assert "failed (Got: ConnectError); give the path of a local folder" in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_hub_name_is_fetched_as_one_folder(monkeypatch, tmp_path):
    safetensors.numpy.save_file({"a": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, allow_patterns, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert weights.load_safetensors("somebody/net").keys() == {"a"}
    assert asked[0][0] == "somebody/net"
    assert {"config.json", "model.safetensors"} <= set(asked[0][1])
    assert weights.load_safetensors("somebody/net@refs/pr/15").keys() == {"a"}
    assert [(name, revision) for name, _, revision in asked] == [
        ("somebody/net", None), ("somebody/net", "refs/pr/15")
    ]  # fmt: skip


def test_a_hub_name_without_safetensors_is_told_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    told = r"somebody/net has none on the hub; give a revision that has them \(NAME@REVISION"
    with pytest.raises(WeightsError, match=told):
        weights.load_safetensors("somebody/net")
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor [a-z.]*$"):
        weights.load_safetensors(tmp_path)


def test_the_digest_changes_with_weights_and_configuration_only(tmp_path):
    shards(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    first = weights.digest(tmp_path)
    assert len(first) == 64
    (tmp_path / "README.md").write_text("x")
    assert weights.digest(tmp_path) == first
    (tmp_path / "config.json").write_text('{"a": 1}')
    second = weights.digest(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert weights.digest(tmp_path) != second
    (tmp_path / "preprocessor_config.json").unlink()
    safetensors.numpy.save_file({"b": np.ones(3, np.float32)}, tmp_path / "model-2.safetensors")
    assert len({first, second, weights.digest(tmp_path)}) == 3
