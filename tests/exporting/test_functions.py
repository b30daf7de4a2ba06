"""The functions of a model do for a batch of any size what the model does for one of its own."""

import json
import logging

import jax
import numpy as np
import pytest
from test_two_towers import write_bert

import vse_jax.export as exports
from vse_jax import assembly
from vse_jax.data import tokenizer
from vse_jax.exporting import formats, functions
from vse_jax.exporting.folder import ExportError
from vse_jax.trained import Trained, model_of

FEATURES = 12


@pytest.fixture(scope="module")
def untrained(preset, tmp_path_factory):
    """System, fields and width of features -> a tiny model with parameters drawn at random."""

    def make(system, fields=(), features=None):
        config = preset("shapes", system)
        sizes = {
            "model.dimension": 8, "model.hidden": 8, "model.text.words": 8, "data.image_size": 16,
            "data.max_tokens": 6,
        }  # fmt: skip
        config.update_from_flattened_dict(sizes | dict(fields))
        if config.model.text.backbone == "bert":
            config.model.text.weights = str(write_bert(tmp_path_factory.mktemp("bert")))
            config.data.tokenizer = "pretrained"
            words = tokenizer.pretrained(config.model.text.weights, 6)
        else:
            captions = ["a red circle above a blue square"] * 5
            words = tokenizer.train(captions, config.data.tokenizer, 6)
        if features is not None:
            config.model.image.backbone = "none"
        known = assembly.Words.of(words, config, 3)
        built = assembly.build_model(config, known, assembly.Frozen(False, False), features)
        rng = np.random.default_rng(0)
        # Away from scales and statistics that start at zero or one, and would hide a mistake.
        variables = jax.tree.map(
            lambda x: (x + 0.1 * rng.random(x.shape)).astype(x.dtype), built.variables
        )
        origin = json.loads(
            json.dumps(
                {
                    "words": known._asdict(), "sources": built.sources._asdict(),
                    "features": features, "classes": ["a", "b", "c"],
                }
            )
        )  # fmt: skip
        model = model_of(config, origin)
        return Trained(config, origin, words.to_json(), words, model, variables, None, 1)

    return make


@pytest.fixture(scope="module")
def saf(untrained):
    return untrained("saf", features=FEATURES)


def test_what_a_function_says_of_itself(saf):
    image, text, compare = functions.functions(saf)
    assert image.inputs["features"].shape == ("b", "r", FEATURES)
    assert text.inputs["tokens"].shape == ("b", 6)
    assert compare.inputs["image_local"].shape == ("a", "r", 8)
    assert compare.inputs["text_mask"] == functions.Input("bool", ("b", 6))
    assert compare.results() == {"scores": functions.Input("float32", ("a", "b"))}
    fixed = functions.functions(saf, regions=4)
    assert fixed[2].inputs["image_local"].shape == ("a", 4, 8)


def test_what_does_not_agree_is_not_kept(saf, tmp_path, monkeypatch):
    text = functions.functions(saf)[1]
    load = formats.use.load_jax

    def wrong(file):
        function = load(file)
        return lambda *arrays: [found + (found.dtype == np.float32) for found in function(*arrays)]

    monkeypatch.setattr(formats.use, "load_jax", wrong)
    with pytest.raises(ExportError, match=r"text\.file: local is 1 off what the model itself"):
        formats.write_jax(text, tmp_path / "text.file", "float32")


def test_difference():
    a = np.array([1.0, 200.0], np.float32)
    assert formats.difference(a, a + np.float32([0, 0.5])) == pytest.approx(0.0025)
    assert formats.difference(a, a[:1]) == np.inf
    assert formats.difference(a, a.astype(np.float64)) == np.inf
    assert np.isnan(formats.difference(a, a * np.float32(np.nan)))


BOTH = [
    ("vsepp", {"precision": "bfloat16"}, None),
    ("vse_infinity", {}, FEATURES),
    ("vsrn", {}, FEATURES),
    ("multimodal_rnn", {"model.captioner.cell": "lstm"}, None),
]
# As StableHLO they are tested in test_export.py, and layer by layer in models/test_symbolic.py.
ONNX = [
    ("vsepp", {"model.text.bidirectional": True}, None),
    ("vsepp,text=bert", {"model.image.backbone": "mobilenet_v2", "data.image_size": 32}, None),
    ("saf", {}, FEATURES),
    ("sgr", {}, None),
    ("dvsa", {}, None),
    ("cam", {"model.captioner.cell": "rnn"}, None),
]
CASES = [("jax_export", *case) for case in BOTH] + [("onnx", *case) for case in BOTH + ONNX]


@pytest.mark.slow
@pytest.mark.parametrize(("format_", "system", "fields", "features"), CASES)
def test_every_network(untrained, tmp_path, format_, system, fields, features):
    """Each file is run and compared where it is written."""
    trained, write, regions = untrained(system, fields, features), formats.write_jax, None
    if format_ == "onnx":
        pytest.importorskip("jax2onnx", reason="needs the extra [export]")
        trained, write = exports.for_onnx(trained), formats.write_onnx
        assert trained.config.precision == "float32"
        regions = 3 if system in ("vse_infinity", "vsrn") else None
    for function in functions.functions(trained, regions):
        write(function, tmp_path / function.name, trained.config.precision)
        assert (tmp_path / function.name).stat().st_size > 0


@pytest.mark.slow
def test_a_number_of_regions_is_asked_for(untrained, tmp_path, caplog):
    pytest.importorskip("jax2onnx", reason="needs the extra [export]")
    image = functions.functions(untrained("vse_infinity", features=FEATURES))[0]
    with (
        caplog.at_level(logging.CRITICAL),
        pytest.raises(ExportError, match=r"'image' of this model cannot .*\(--regions\)"),
    ):
        formats.write_onnx(image, tmp_path / "image.onnx", "float32")
