"""Which rules of `train.freeze` leave the backbone to run once, and what the model does then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax import assembly, training_objective
from vse_jax.config import ConfigError
from vse_jax.encoding import Encoding
from vse_jax.objectives.base import Spec
from vse_jax.optimizer import flatten
from vse_jax.parallel import Devices


@pytest.fixture
def config(preset):
    config = preset("flickr8k")
    config.data.image_size = 32
    config.model.dimension, config.model.text.words = 8, 4
    config.model.image.weights = None
    return config


@pytest.mark.parametrize(
    "rules",
    [
        (("image/backbone/conv_1x1/.*", 0.1), ("image/backbone/.*", None)),
        (("image/backbone/.*kernel", None),),
        (("image/backbone/.*", 0.1),),
        (("text/.*", None),),
        (),
    ],
)
def test_a_backbone_of_which_a_part_learns_is_not_frozen(config, rules):
    config.train.freeze = rules
    assert assembly.frozen_backbones(config) == (False, False)


def test_a_backbone_frozen_at_random_is_refused(config):
    config.train.freeze = (("image/.*", None),)
    with pytest.raises(ConfigError, match="freezes the backbone, which has no pretrained weights"):
        assembly.frozen_backbones(config)


def test_a_pattern_that_matches_nothing_is_refused_before_any_data(config):
    config.train.freeze = (("image/backbon/.*", None),)
    with pytest.raises(ConfigError, match="matches no parameter; names look like"):
        assembly.frozen_backbones(config)


def test_what_has_no_pretrained_weights(config):
    config.model.image.backbone, config.model.image.weights = "small_resnet", "w"
    with pytest.raises(ConfigError, match="'small_resnet' has no pretrained weights: unset"):
        assembly.backbone_of(config)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_gradient_reaches_the_backbone_unless_it_is_frozen(preset, frozen):
    config = preset("shapes")
    config.data.image_size = 16
    config.model.dimension, config.model.text.words = 4, 4
    words, parts = assembly.Words(6, 0, ()), assembly.Frozen(frozen, text=False)
    built = assembly.build_model(config, words, parts)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)),
        "tokens": jnp.ones((2, 3), jnp.int32),
        "token_mask": jnp.ones((2, 3), bool),
    }

    def loss(params):
        variables = {"params": params, "batch_stats": built.variables["batch_stats"]}
        outputs = built.model.apply(variables, batch, train=False)
        return jnp.sum(outputs["image"].pooled * jnp.arange(4.0)[None])

    gradient = flatten(jax.grad(loss)(built.variables["params"]))
    inside = [np.any(g) for name, g in gradient.items() if name.startswith("image/backbone/")]
    assert not any(inside) if frozen else all(inside[:3])


@pytest.mark.parametrize("over", ["regions", "channels"])
def test_what_vsrn_scales_is_as_the_config_says(preset, over):
    config = preset("shapes", "vsrn")
    assert config.model.image.scaled_over == "regions"
    config.model.image.scaled_over = over
    model = assembly.make_model(config, assembly.Words(6, 0, ()), assembly.Sources(None, None))
    assert model.image.head.over == over


@pytest.mark.parametrize("term", ["triplet", "infonce"])
def test_the_objectives_score_by_the_similarity_of_the_config(config, term):
    """By distances of vectors that are not of length 1, where products would rank otherwise."""
    config.model.similarity = "negative_euclidean"
    config.objective.triplet.weight = float(term == "triplet")
    config.objective.infonce.weight = float(term == "infonce")
    config.objective.triplet.warmup_epochs = 0.0
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 4)).astype(np.float32) * rng.uniform(0.2, 3.0, (2, 6, 1))
    objective = training_objective.build(config)
    state = objective.init(
        jax.random.key(0), Spec(dimension=4, images=6, steps_per_epoch=1, steps=2)
    )
    devices = Devices("shard_map", tuple(jax.devices()[:1]))

    def function(batch):
        outputs = {
            name: Encoding(batch[name][:, None], jnp.ones((6, 1), bool), batch[name])
            for name in ("image", "text")
        }
        return objective.apply(state, outputs, batch)[0]

    batch = {"image": x, "text": y, "image_id": np.arange(6), "weight": np.ones(6)}
    loss = devices.map(function, ("split",), "replicated")(
        devices.split({name: value.astype(np.float32) for name, value in batch.items()})
    )
    scores = -np.linalg.norm(x[:, None].astype(np.float64) - y[None], axis=2)
    expected = 0.0
    for rows in (scores, scores.T):
        for i, row in enumerate(rows):
            if term == "triplet":
                hardest = np.max(np.delete(row, i))
                expected += max(0.0, config.objective.triplet.margin + hardest - row[i])
            else:
                logits = row / config.objective.infonce.temperature
                top = np.max(logits)
                surprise = np.log(np.sum(np.exp(logits - top))) + top - logits[i]
                expected += surprise / (2 * 6)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
