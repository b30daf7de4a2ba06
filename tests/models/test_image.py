import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.models.backbones.feature_map import FeatureMap, averaged
from vse_jax.models.heads import LinearHead
from vse_jax.models.image import ImageEncoder, parts_of

MASK = np.asarray([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)


class Stripes(nn.Module):
    """A backbone with a parameter and a running mean, enough to see what is frozen."""

    @nn.compact
    def __call__(self, image, *, train):
        x = image.astype(jnp.float32) / 255.0
        x = nn.Conv(5, (2, 2), (2, 2), name="conv")(x)
        return averaged(nn.BatchNorm(use_running_average=not train, name="norm")(x))


def features(seed=0, d=5):
    return np.random.default_rng(seed).standard_normal((4, 4, d)).astype(np.float32)


def pictures():
    return np.random.default_rng(1).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)


def encoder_of(pooling="mean", **options):
    return ImageEncoder(LinearHead(3, pooling), **options)


def start(encoder, *inputs):
    return encoder.init(jax.random.key(0), *jax.tree.map(jnp.asarray, inputs), train=False)


def run(encoder, variables, *inputs, train=False, **options):
    return encoder.apply(variables, *jax.tree.map(jnp.asarray, inputs), train=train, **options)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def unit(rows):
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "mean_max"])
def test_features_are_pooled_and_projected_as_the_formula_says(normalize, pooling):
    encoder = encoder_of(pooling, normalize_features=normalize)
    given = features()
    variables = start(encoder, None, given, MASK)
    layer = variables["params"]["head"]["project"]
    kernel, bias = (np.array(layer[name]) for name in ("kernel", "bias"))
    bias = bias + 0.3
    variables = {"params": {"head": {"project": {"kernel": kernel, "bias": bias}}}}
    found = run(encoder, variables, None, given, MASK)

    parts = unit(given) if normalize else given
    for i in range(4):
        real = parts[i][MASK[i]]
        whole = real.mean(axis=0) if len(real) else np.zeros(5)
        if pooling == "mean_max":
            whole = np.concatenate([whole, real.max(axis=0) if len(real) else np.zeros(5)])
        np.testing.assert_allclose(found.pooled[i], unit(whole @ kernel + bias), atol=1e-5)
        for n in range(4):
            part = np.tile(parts[i, n], 2 if pooling == "mean_max" else 1)
            expected = unit(part @ kernel + bias) if MASK[i, n] else np.zeros(3)
            np.testing.assert_allclose(found.local[i, n], expected, atol=1e-5)
    np.testing.assert_array_equal(found.mask, MASK)


@pytest.mark.parametrize("pooling", ["mean", "mean_max"])
def test_masked_parts_change_nothing_and_get_no_gradient(pooling):
    encoder = encoder_of(pooling)
    given = features()
    variables = start(encoder, None, given, MASK)
    dirty = np.where(MASK[..., None], given, 1e3).astype(np.float32)
    clean, other = (run(encoder, variables, None, x, MASK) for x in (given, dirty))
    assert_same(clean, other)

    def total(x):
        found = run(encoder, variables, None, x, MASK)
        return jnp.sum(found.pooled**3) + jnp.sum(found.local**3)

    gradient = jax.grad(total)(jnp.asarray(dirty))
    np.testing.assert_array_equal(jnp.where(MASK[..., None], 0.0, gradient), 0.0)


@pytest.mark.parametrize("pooling", ["mean", "mean_max"])
def test_cells_of_zeros_have_finite_gradients(pooling):
    encoder = encoder_of(pooling, normalize_features=True)
    given = features()
    given[0] = 0.0
    given[1, 0] = 0.0
    variables = start(encoder, None, given, MASK)

    def total(params, x):
        found = run(encoder, {"params": params}, None, x, MASK)
        return jnp.sum(found.pooled) + jnp.sum(found.local)

    found = jax.value_and_grad(total, (0, 1))(variables["params"], jnp.asarray(given))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(("parts", "count"), [("pooled", 1), ("grid", 4), ("pyramid", 5)])
def test_pixels_are_their_backbones_parts(parts, count):
    encoder = encoder_of(backbone=Stripes(), parts=parts, cells=2, normalize_features=True)
    variables = start(encoder, pictures(), None, None)
    own = {name: tree["backbone"] for name, tree in variables.items()}
    seen = parts_of(run(Stripes(), own, pictures()), parts, 2)
    assert seen.shape == (4, count, 5)
    mask = np.ones(seen.shape[:2], bool)
    from_pixels = run(encoder, variables, pictures(), None, None)
    from_parts = run(encoder, variables, None, seen, mask, train=False)
    assert_same(from_pixels, from_parts)


@pytest.mark.parametrize("kept", ["nothing", "statistics", "all"])
def test_a_frozen_backbone_gets_no_gradient_and_one_that_keeps_its_statistics_does(kept):
    how = {"keep_statistics": kept == "statistics", "frozen": kept == "all"}
    encoder = encoder_of(backbone=Stripes(), **how)
    variables = start(encoder, pictures(), None, None)

    def total(params):
        batch = {**variables, "params": params}
        found, new = run(
            encoder, batch, pictures(), None, None, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(found.pooled**3), (new, found)

    gradient, (new, found) = jax.grad(total, has_aux=True)(variables["params"])
    assert np.any(gradient["head"]["project"]["kernel"] != 0)
    moved = any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient["backbone"]))
    same = jax.tree.map(np.array_equal, new["batch_stats"], variables["batch_stats"])
    assert moved == (kept != "all")
    assert jax.tree.all(same) == (kept != "nothing")
    evaluated = run(encoder, variables, pictures(), None, None)
    assert np.array_equal(found.pooled, evaluated.pooled) == (kept != "nothing")


def test_dropout_acts_only_in_training():
    encoder = encoder_of(dropout=0.5)
    variables = start(encoder, None, features(), MASK)
    plain, again = (run(encoder, variables, None, features(), MASK) for _ in "ab")
    rngs = {"dropout": jax.random.key(1)}
    dropped = run(encoder, variables, None, features(), MASK, train=True, rngs=rngs)
    np.testing.assert_array_equal(plain.pooled, again.pooled)
    assert not np.allclose(plain.pooled, dropped.pooled)


def test_neither_pixels_nor_features_is_an_error():
    with pytest.raises(ValueError, match="neither pixels nor features"):
        start(encoder_of(), None, None, None)


def test_parts_are_the_cells_row_by_row_the_whole_or_a_pyramid():
    grid = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4)
    pooled = np.ones((2, 7), np.float32)
    seen = FeatureMap(jnp.asarray(grid, jnp.bfloat16), jnp.asarray(pooled))
    cells = parts_of(seen, "grid")
    assert cells.dtype == jnp.float32
    for row in range(2):
        for column in range(3):
            np.testing.assert_array_equal(cells[:, 3 * row + column], grid[:, row, column])
    np.testing.assert_array_equal(parts_of(seen, "pooled"), pooled[:, None])
    whole = parts_of(seen, "pyramid", 1)
    np.testing.assert_allclose(whole, np.stack([grid.mean((1, 2))] * 2, 1), rtol=1e-6)


def test_boxes_are_parts_and_those_of_no_area_are_padding():
    encoder = encoder_of(backbone=Stripes(), parts="boxes")
    boxes = np.zeros((4, 3, 4), np.float32)
    boxes[:, 0] = [0.0, 0.0, 1.0, 1.0]
    boxes[1, 1] = [0.5, 0.0, 1.0, 0.5]
    boxes[2, 1] = [0.25, 0.25, 0.25, 0.5]
    shown = pictures()
    variables = start(encoder, shown, None, None, boxes)
    found = run(encoder, variables, shown, None, None, boxes)
    assert found.mask.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]]
    # Of 2 x 2 cells, interpolated, the lower left quarter has 7/8 of its row and of its column.
    image = jnp.asarray(shown)
    grid = encoder_of(backbone=Stripes(), parts="grid").apply(variables, image, method="features")
    cells = np.asarray(grid[1]).reshape(2, 2, 5)
    quarter = np.einsum("h,w,hwc->c", [1 / 8, 7 / 8], [7 / 8, 1 / 8], cells)
    seen = encoder.apply(variables, image, jnp.asarray(boxes), method="features")
    np.testing.assert_allclose(seen[1, 1], quarter, atol=1e-6)
    whole = run(encoder_of(backbone=Stripes()), variables, shown, None, None)
    np.testing.assert_allclose(found.local[:, 0], whole.local[:, 0], atol=1e-6)
    np.testing.assert_array_equal(found.local[2, 1:], 0)
    with pytest.raises(ValueError, match="boxes, and none were given"):
        run(encoder, variables, shown, None, None)
