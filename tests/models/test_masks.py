"""Of every network: padding changes nothing, nor does the order of regions, but in VSRN's GRU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.models import networks
from vse_jax.models.image import ImageEncoder
from vse_jax.models.model import VisualSemanticModel
from vse_jax.models.pairwise import Tile
from vse_jax.models.text import GRUReader, TextEncoder

# What writes captions or tells classes compares nothing; see test_multimodal_rnn.py, test_cam.py.
NAMES = sorted(set(networks.__all__) - {"none", "cam", "multimodal_rnn"})
WIDTH, WORDS, REGIONS = 64, 9, 6


CASES = [(name, "mean") for name in NAMES]
CASES += [(name, pooling) for name in ("residual", "vsepp") for pooling in ("max", "mean_max")]


def made(name, pooling):
    network = getattr(networks, name)(
        networks.Options(
            dimension=WIDTH,
            normalize=True,
            image_pooling=pooling,
            # A GRU's words are of the space's width, not twice that.
            text_pooling="max" if pooling == "mean_max" and name == "vsepp" else pooling,
            project_text=False,
            scaled_over="regions",
            drop_parts=0.2,
            hidden=32,
            tile=Tile(3, 2),
            vocabulary=20,
            words=8,
            cell="rnn",
            drop_words=0.0,
            classes=3,
            dtype=jnp.float32,
            axis_name="data",
        )
    )
    reader = GRUReader(vocabulary=20, width=8, hidden=WIDTH, bidirectional=name != "vsrn")
    parts = "pooled" if name == "vsrn" else "words"
    return VisualSemanticModel(
        ImageEncoder(network.image, None),
        TextEncoder(reader, network.text, parts, network.words_only),
        network.pairwise,
    )


def batch(regions=REGIONS, words=WORDS):
    rng = np.random.default_rng(0)
    counts, lengths = np.asarray([3, 1, 6]), np.asarray([9, 2, 4])
    features = rng.normal(size=(3, REGIONS, 10)).astype(np.float32)
    tokens = rng.integers(0, 20, (3, WORDS)).astype(np.int32)
    return {
        "features": features[:, :regions],
        "feature_mask": (np.arange(REGIONS)[None] < counts[:, None])[:, :regions],
        "tokens": tokens[:, :words],
        "token_mask": (np.arange(WORDS)[None] < lengths[:, None])[:, :words],
    }


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def scored(request):
    """Name of the network, and batch -> scores of all its pairs."""
    model = made(*request.param)

    @jax.jit
    def scores(variables, some):
        images, texts = (
            model.apply(variables, some, train=False, method=method)
            for method in (model.encode_image, model.encode_text)
        )
        if model.pairwise is not None:
            return model.apply(variables, images, texts, method=model.compare)
        return images.pooled @ texts.pooled.T

    def placed(some):
        return jax.tree.map(jnp.asarray, some)

    start = jax.jit(partial(model.init, train=False))(jax.random.key(0), placed(batch()))
    # Random where the model's own start has zeros or ones, so that everything matters.
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: (
            leaf + 0.05 * np.abs(rng.normal(size=leaf.shape).astype(np.float32))
            if leaf.ndim < 2
            else leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32)
        ),
        start,
    )
    return request.param[0], lambda some: np.asarray(scores(variables, placed(some)))


def test_a_pair_alone_is_what_it_is_in_a_padded_batch(scored):
    _, scores = scored
    expected = scores(batch())
    assert np.std(expected) > 1e-4
    for number, (regions, words) in ((1, (1, 2)), (2, (6, 4))):
        own = {key: rows[number : number + 1] for key, rows in batch(regions, words).items()}
        assert own["feature_mask"].all()
        assert own["token_mask"].all()
        np.testing.assert_allclose(scores(own)[0, 0], expected[number, number], atol=1e-6)


def test_what_is_masked_is_never_read(scored):
    _, scores = scored
    given = batch()
    other = dict(given)
    other["features"] = np.where(given["feature_mask"][..., None], given["features"], 1e3)
    other["features"] = other["features"].astype(np.float32)
    other["tokens"] = np.where(given["token_mask"], given["tokens"], 7).astype(np.int32)
    np.testing.assert_array_equal(scores(other), scores(given))


def test_the_order_of_regions_matters_to_a_gru_alone(scored):
    name, scores = scored
    given = batch()
    order = np.asarray([[2, 0, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]])
    turned = given | {"features": np.take_along_axis(given["features"], order[..., None], 1)}
    difference = np.abs(scores(turned) - scores(given)).max()
    assert (difference < 1e-6) == (name != "vsrn")
