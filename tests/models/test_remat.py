"""Backbones whose blocks are computed again in the backward pass: the same, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax import assembly
from vse_jax.config import default_config
from vse_jax.models.backbones.bert import BERT
from vse_jax.models.backbones.mobilenet_v2 import MobileNetV2
from vse_jax.models.backbones.resnet import ResNet
from vse_jax.models.backbones.small_resnet import SmallResNet
from vse_jax.models.backbones.vgg19 import VGG19
from vse_jax.models.backbones.vit import ViT

TOWER = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64}
BACKBONES = {
    "vit": ViT(**TOWER, num_hidden_layers=6, image_size=32, patch_size=8, hidden_dropout_prob=0.2),
    "bert": BERT(**TOWER, num_hidden_layers=6, vocab_size=20, max_position_embeddings=16),
    "resnet": ResNet(8, (16, 32), (3, 3)),
    "small_resnet": SmallResNet(8, (8, 16), (3, 3), 8),
    "mobilenet_v2": MobileNetV2(depth_multiplier=0.1, finegrained_output=True),
    "vgg19": VGG19(widths=(4, 4, 8, 8, 8), hidden=(8, 8)),
}


def given(name):
    rng = np.random.default_rng(0)
    if name == "bert":
        return jnp.asarray(rng.integers(5, 20, (4, 12))), jnp.arange(12)[None] < jnp.array(
            [[12], [3], [7], [1]]
        )
    return (jnp.asarray(rng.integers(0, 256, (4, 32, 32, 3), np.uint8)),)


def loss_of(module, name):
    """(parameters, statistics) -> (loss, statistics after it)."""
    rows, shown = given(name), {"dropout": jax.random.key(1)}

    def loss(params, statistics):
        found, updated = module.apply(
            {"params": params, **statistics},
            *rows, train=True, rngs=shown, mutable=["batch_stats"],
        )  # fmt: skip
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(found)), updated

    return loss


def shapes_of(module, name):
    return jax.eval_shape(
        lambda key: module.init(key, *given(name), train=False), jax.random.key(0)
    )


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_gradient_and_statistics_are_the_same(name):
    short = {"vit": {"num_hidden_layers": 2}, "resnet": {"depths": (1, 1)}}[name]
    module = BACKBONES[name].clone(**short)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.05, 0.3, leaf.shape), leaf.dtype),
        shapes_of(module, name),
    )
    params = variables.pop("params")
    found, expected = (
        jax.jit(jax.value_and_grad(loss_of(m, name), has_aux=True))(params, variables)
        for m in (module.clone(remat=True), module)
    )
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(expected[1])))
    assert norm > 0.1
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * norm)


@pytest.mark.parametrize("name", BACKBONES)
def test_less_is_kept_for_the_backward_pass(name):
    """Of the same parameters, by what JAX traces."""
    module = BACKBONES[name]
    variables = shapes_of(module, name)
    again = module.clone(remat=True)
    assert shapes_of(again, name) == variables
    params = variables.pop("params")
    own = sum(leaf.size for leaf in jax.tree.leaves(params))

    def kept(module):
        def back(params, variables):
            return jax.vjp(lambda p: loss_of(module, name)(p, variables)[0], params)[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(back, params, variables)))

    assert kept(again) - own < 0.6 * (kept(module) - own)


def test_a_config_asks_for_it():
    config = default_config()
    config.data.dataset = "shapes"
    for asked in (False, True):
        config.train.remat = asked
        model = assembly.make_model(config, assembly.Words(9, 3, ()), assembly.Sources(None, None))
        assert model.image.backbone.remat is asked
