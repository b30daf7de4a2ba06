from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from vse_jax.models.backbones.small_resnet import SmallResNet

tiny = partial(SmallResNet, stem=4, widths=(6, 8), blocks=(1, 1), head=8)


def pictures(count=4, side=24):
    image = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return jnp.asarray(image)


def filled(shapes):
    """Variables of those shapes: random kernels, the rest as batch norm starts.

    Flax's own initialisers take longer to compile than the network.
    """
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            deviation = np.prod(leaf.shape[:-1]) ** -0.5
            return jnp.asarray(rng.normal(0.0, deviation, leaf.shape), leaf.dtype)
        return jnp.full(leaf.shape, 1.0 if name in ("scale", "var") else 0.0, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@cache
def start(net):
    init = partial(net.init, train=False)
    return filled(jax.eval_shape(init, jax.random.key(0), pictures(1, 16)))


def forward(net, variables, image):
    return jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, image)


@cache
def trainer(net):
    return jax.jit(lambda v, x: net.apply(v, x, train=True, mutable=["batch_stats"]))


def train(net, variables, image):
    return trainer(net)(variables, image)


def test_the_default_grid_is_six_by_six_for_about_thirty_million_multiply_adds():
    net, image = SmallResNet(), pictures(1, 96)
    variables = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), image)
    lowered = jax.jit(lambda v, x: net.apply(v, x, train=False)).lower(variables, image)
    assert 20e6 < lowered.cost_analysis()["flops"] / 2 < 40e6
    assert lowered.out_info.grid.shape == (1, 6, 6, 512)
    assert lowered.out_info.pooled.shape == (1, 512)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("coordinates", [True, False])
def test_gradients_are_finite_on_a_constant_picture(coordinates):
    net = tiny(coordinates=coordinates)
    variables = start(net)

    @jax.jit
    @jax.value_and_grad
    def loss(params, image):
        batch = {"params": params, "batch_stats": variables["batch_stats"]}
        found, new = net.apply(batch, image, train=True, mutable=["batch_stats"])
        return (found.pooled**2).sum() + 0.0 * sum(map(jnp.sum, jax.tree.leaves(new)))

    for value in (0, 255):
        image = jnp.full((2, 16, 16, 3), value, jnp.uint8)
        for leaf in jax.tree.leaves(loss(variables["params"], image)):
            assert np.isfinite(leaf).all()


def test_training_moves_the_running_statistics_towards_those_of_the_batch():
    net, image = tiny(momentum=0.9), pictures()
    variables = start(tiny())
    kernel = np.asarray(variables["params"]["conv"]["kernel"]).reshape(3, 3, 2, 2, 3, 4)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(6, 6, 3, 4)
    padded = np.pad(
        (np.asarray(image, np.float32) - 127.5) / 127.5, ((0, 0), (0, 2), (0, 2), (0, 0))
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, (6, 6), (1, 2))[:, ::4, ::4]
    output = np.einsum("bhwcyx,yxco->bhwo", windows, kernel)
    _, new = train(net, variables, image)
    moved = new["batch_stats"]["norm"]
    np.testing.assert_allclose(moved["mean"], 0.1 * output.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * output.var((0, 1, 2)), atol=1e-5)


def test_an_average_over_the_grid_tells_left_from_right_only_with_coordinates():
    # The same four-pixel square, away from the border, at two places of the same phase.
    image = np.zeros((2, 64, 192, 3), np.uint8)
    image[0, 32:36, 80:84] = image[1, 32:36, 112:116] = 255
    image = jnp.asarray(image)
    gaps = {}
    for coordinates in (True, False):
        net = tiny(coordinates=coordinates)
        variables = jax.tree.map(jnp.copy, start(net))
        scales = variables["params"]["stage1_block0"]["norm2"]
        scales["scale"] = jnp.ones_like(scales["scale"])
        pooled = forward(net, variables, image).pooled
        gaps[coordinates] = np.abs(pooled[0] - pooled[1]).max()
    assert gaps[False] < 1e-6 < 1e-4 < gaps[True]


def test_with_an_axis_name_four_devices_share_the_statistics_of_the_whole_batch():
    image = pictures()
    alone, shared = tiny(), tiny(axis_name="data")
    variables = start(alone)
    found, new = train(alone, variables, image)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.jit(
        jax.shard_map(
            lambda v, x: shared.apply(v, x, train=True, mutable=["batch_stats"]),
            mesh=mesh,
            in_specs=(whole, split),
            out_specs=(split, whole),
            check_vma=False,
        )
    )
    shared_found, shared_new = mapped(variables, image)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), shared_found, found)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), shared_new, new)


def test_bfloat16_is_close_and_keeps_float32_statistics():
    net, half, image = tiny(), tiny(dtype=jnp.bfloat16), pictures()
    variables = start(tiny())
    found, _ = train(net, variables, image)
    half_found, new = train(half, variables, image)
    assert half_found.grid.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new))
    difference = np.abs(np.asarray(half_found.grid, np.float32) - found.grid)
    assert difference.mean() < 0.02 * np.abs(found.grid).mean()
    # The mean adds up in float32 what the grid has in bfloat16.
    mean = np.asarray(half_found.grid, np.float64).mean((1, 2))
    np.testing.assert_allclose(half_found.pooled, mean, rtol=1e-5, atol=1e-6)


def test_a_side_that_is_odd_is_padded_by_a_pixel():
    """A grid of 23 x 24 pixels is that of 24 x 24 but for the cells that see the last row."""
    net = tiny(widths=(6,), blocks=(0,), coordinates=False)
    image = pictures()
    cut, whole = (net.apply(start(net), x, train=False).grid for x in (image[:, :-1], image))
    assert cut.shape == whole.shape
    np.testing.assert_allclose(cut[:, :-1], whole[:, :-1], rtol=1e-5, atol=1e-5)
    assert not np.allclose(cut[:, -1], whole[:, -1])
