"""The ImageNet classifiers in public weights, against the logits of the PyTorch models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy
from PIL import Image
from random_twins import pictures, pixels, randomize

from vse_jax.models.backbones import catalogue, weights
from vse_jax.models.backbones.classifier import Classifier
from vse_jax.models.backbones.weights import WeightsError
from vse_jax.models.regions import box_features

WEIGHTS = "weights/mobilenet_v2_1.0_224"
TINY = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def torch():
    return parity.torch()


def whole_logits(backbone, folder, image):
    """The classifier, and its logits of what `box_features` makes of whole pictures."""
    module = backbone.make(weights.load_config(folder), jnp.dtype(jnp.float32), "data")
    variables = backbone.load(str(folder), module)
    classifier = backbone.classifier(str(folder))
    grid = jax.jit(lambda v, x: module.apply(v, x, train=False).grid)(variables, image)
    whole = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0, 1.0]), (len(image), 1, 4))
    found = box_features(grid, whole, jnp.ones((len(image), 1), bool))[:, 0]
    return classifier, np.asarray(found @ classifier.kernel + classifier.bias[None])


@pytest.mark.torch
def test_hugging_face_resnet(torch, tmp_path):
    transformers = parity.transformers()
    config = transformers.ResNetConfig(**TINY, num_labels=7)
    model = randomize(torch, transformers.ResNetForImageClassification(config))
    model.save_pretrained(tmp_path)
    image = pictures(64, 64)
    classifier, logits = whole_logits(catalogue.resnet, tmp_path, image)
    with torch.no_grad():
        expected = model(pixels(torch, image)).logits.numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)
    assert not classifier.background

    model.resnet.save_pretrained(tmp_path / "headless")
    assert catalogue.resnet.classifier(str(tmp_path / "headless")) is None


@pytest.mark.torch
def test_timm_resnet(torch, tmp_path):
    timm = parity.timm()
    model = randomize(torch, timm.create_model("resnet50", num_classes=5))
    timm.models.save_for_hf(model, tmp_path, safe_serialization="both")
    image = pictures(64, 64)
    with torch.no_grad():
        expected = model(pixels(torch, image)).numpy()
    assert expected.std() > 0.1
    classifier, logits = whole_logits(catalogue.resnet, tmp_path, image)
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=1e-4)
    assert not classifier.background


@pytest.mark.torch
@pytest.mark.flickr8k
def test_the_real_mobilenet(torch, real_data):
    folder = real_data(WEIGHTS)
    photos = sorted(real_data("flickr8k/Flicker8k_Dataset").glob("*.jpg"))[:2]
    image = np.stack(
        [np.asarray(Image.open(photo).convert("RGB").resize((224, 224))) for photo in photos]
    )
    model = parity.transformers().MobileNetV2ForImageClassification.from_pretrained(
        folder, ignore_mismatched_sizes=True
    )
    half = pixels(torch, image, mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.no_grad():
        expected = model.eval()(half).logits
    classifier, logits = whole_logits(catalogue.mobilenet_v2, folder, image)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4, rtol=0)
    assert classifier.background
    np.testing.assert_allclose(
        classifier.confidence(jnp.asarray(logits)),
        torch.softmax(expected, 1)[:, 1:].amax(1).numpy(),
        atol=1e-5,
    )


@pytest.mark.parametrize("background", [False, True])
def test_confidence_is_the_largest_probability_and_never_the_background_s(background):
    logits = np.array([[[4.0, 1.0, 2.0], [0.0, -3.0, -1.0]], [[-9.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    classifier = Classifier(jnp.zeros((2, 3)), jnp.zeros(3), background)
    exponentials = np.exp(logits)
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    expected = expected[..., 1:] if background else expected
    np.testing.assert_allclose(
        classifier.confidence(jnp.asarray(logits)), expected.max(-1), rtol=1e-6
    )


def test_a_classifier_of_another_width_is_refused(tmp_path):
    tensors = {"fc.weight": np.ones((3, 9), np.float32), "fc.bias": np.ones(3, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50"}))
    with pytest.raises(WeightsError, match=r"fc\.weight has shape \(3, 9\), expected \(3, 2048\)"):
        catalogue.resnet.classifier(str(tmp_path))
    del tensors["fc.bias"]
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"fc\.bias is missing"):
        catalogue.resnet.classifier(str(tmp_path))
