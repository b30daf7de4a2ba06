"""Each network from its config to a report, and back through the API.

Of pictures, and of SAF over the grids of a frozen backbone, which are cached.
"""

import json

import numpy as np
import pytest
from evaluators.test_retrieval import loop_metrics

import vse_jax
from vse_jax import evaluation, train
from vse_jax.config import ConfigError
from vse_jax.config_checks import validate

OBJECTIVES = {"saf": "lseh", "sgr": "lmh", "vse_infinity": "lseh", "vsrn": "lmh"}


@pytest.fixture(params=OBJECTIVES)
def name(request):
    return request.param


@pytest.fixture
def config(name, preset, tiny_shapes, trained):
    config = preset("shapes", f"{name},objective={OBJECTIVES[name]}")
    tiny_shapes = tiny_shapes.copy_and_resolve_references()
    config.data = tiny_shapes.data
    config.data.max_tokens = 12
    config.train, config.evaluate = tiny_shapes.train, tiny_shapes.evaluate
    config.train.steps = 2
    config.model.dimension, config.model.text.words = 16, 8
    if name == "saf":
        config.train.start_from, config.train.start_parts = str(trained), "image/backbone/.*"
        config.train.freeze = (("image/backbone/.*", None),)
    return config


@pytest.mark.slow
def test_a_network_trains_is_reported_and_loaded(name, config, tmp_path, opened):
    """Its metrics are those of a loop over its scores, which its API gives too."""
    config = config.copy_and_resolve_references()
    assert config.model.network == name
    assert train.train(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 0 < report["metrics"]["rsum"] < 600
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert ("generation/loss_per_pair" in rows[0]) == (name == "vsrn")
    run, state = opened(tmp_path / "run")
    split, cached = run.dataset.splits["test"], run.examples["test"].features
    if name == "saf":
        assert cached.shape == (16, 4, 512)
    else:
        assert cached is None
    embeddings = evaluation.encode(run, state, "test")
    assert evaluation.measure(split, embeddings) == pytest.approx(
        {key: report["metrics"][key] for key in evaluation.measure(split, embeddings)}
    )
    expected = loop_metrics(embeddings.scores(), split.caption_image)
    assert {key: report["metrics"][key] for key in expected} == pytest.approx(expected)
    model = vse_jax.load(tmp_path / "run")
    images = model.encode_images(split.read([3, 0]))
    texts = model.encode_texts([split.captions[7], split.captions[1], split.captions[4]])
    found = model.similarity(images, texts)
    # Pillow resizes for the API, TensorFlow in training: a pixel may be rounded otherwise.
    np.testing.assert_allclose(found, embeddings.scores()[[3, 0]][:, [7, 1, 4]], atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"similarity": "negative_euclidean"}, "has its own similarity"),
        ({"text.features": "pooled"}, "looks at words: set it to 'words'"),
        ({"tile": (0, 4)}, "'model.tile'"),
        ({"network": "vsepp", "text.pooling": "mean_max"}, "twice as wide as the common space"),
        ({"text.backbone": "bert"}, "'data.tokenizer' is 'vse', but 'model.text.backbone'"),
        ({"text.weights": "w"}, "which takes none: unset it"),
        ({"network": "sag"}, "did you mean"),
    ],
)
def test_fields_of_a_model_that_contradict_each_other_are_refused(preset, changes, message):
    config = preset("shapes", "saf")
    for field, value in changes.items():
        *parents, leaf = field.split(".")
        section = config.model
        for parent in parents:
            section = section[parent]
        section[leaf] = value
    with pytest.raises(ConfigError, match=message):
        validate(config)
