"""Maps of where classifier and captioner look, against loops and finite differences."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.losses import maps
from vse_jax.models import cam
from vse_jax.models.backbones import catalogue
from vse_jax.models.image import ImageEncoder
from vse_jax.models.model import VisualSemanticModel
from vse_jax.models.multimodal_rnn import MultimodalRNN

VOCABULARY, CLASSES, CHANNELS, CELLS = 13, 4, 6, 5
START, END = 1, 2
# Function words are 0 to 4: a caption of many content words, one of some, one of none, no caption.
FUNCTION = (0, 1, 2, 3, 4)
CAPTIONS = ([START, 3, 5, 6, 4, 7, 8, 9, 10, 11, 12, 5, 6, END], [START, 7, 3, 9, END],
            [START, 3, 4, END], [])  # fmt: skip


def network(cell="lstm", maps=None):
    return VisualSemanticModel(
        image=ImageEncoder(head=cam.JointHead(7)),
        captioner=MultimodalRNN(VOCABULARY, 8, 9, cell, squash=True),
        classifier=cam.Classifier(CLASSES),
        maps=maps,
        function_words=FUNCTION,
    )


def batch(dtype=np.float32):
    rng = np.random.default_rng(0)
    tokens = np.zeros((len(CAPTIONS), 15), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, caption in enumerate(CAPTIONS):
        tokens[row, : len(caption)], mask[row, : len(caption)] = caption, True
    # The last cell of the second picture is none.
    cells = np.ones((len(CAPTIONS), CELLS), bool)
    cells[1, -1] = False
    return {
        "features": jnp.asarray(rng.uniform(0, 1.5, (len(CAPTIONS), CELLS, CHANNELS)), dtype),
        "feature_mask": jnp.asarray(cells),
        "tokens": jnp.asarray(tokens),
        "token_mask": jnp.asarray(mask),
        "label": jnp.asarray([0, 0, 3, 1], jnp.int32),
        "weight": jnp.ones(len(CAPTIONS)),
    }


@cache
def variables(cell="lstm"):
    shapes = jax.eval_shape(partial(network(cell).init, train=False), jax.random.key(0), batch())
    # Under these all maps have cells of both kinds, above 0 and at 0.
    rng = np.random.default_rng(39)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-0.7, 0.7, leaf.shape), leaf.dtype), shapes
    )


@cache
def applied(cell="lstm", maps="constant"):
    return jax.jit(
        lambda variables, given: network(cell, maps).apply(variables, given, train=False)
    )


def difference(function, features, step=1e-2):
    """d function / d features [n, c, ...] of one picture, by central differences."""
    moves = jnp.eye(features.size).reshape(-1, *features.shape) * step
    high, low = (
        jax.lax.map(lambda move: function(features + move), sign * moves) for sign in (1, -1)
    )
    found = (np.asarray(high, np.float64) - np.asarray(low, np.float64)) / (2 * step)
    return found.reshape(*features.shape, *found.shape[1:])


def replaced(given, row, features):
    return {**given, "features": given["features"].at[row].set(features)}


@pytest.mark.parametrize("row", [0, 1])
def test_class_map_is_the_gradient_of_the_logit_times_the_grid(row):
    given, found = batch(), applied()(variables(), batch())
    label = int(given["label"][row])

    def logit(features):
        outputs = applied()(variables(), replaced(given, row, features))
        return outputs["logits"][row, label]

    # A linear logit has the same gradient at every cell: w over the number of cells.
    slope = difference(logit, given["features"][row])
    cells = int(given["feature_mask"][row].sum())
    expected = np.maximum((cells * slope * given["features"][row]).sum(axis=1), 0)
    assert 2 <= (expected > 0.01).sum() < cells
    np.testing.assert_allclose(found["class_map"][row], expected, rtol=2e-3, atol=2e-3)


def test_class_map_sums_to_the_logit():
    given = batch()
    head = variables()["params"]["image"]["head"]
    image = cam.JointHead(7).apply(
        {"params": head}, given["features"], given["feature_mask"], train=False
    )
    own = variables()["params"]["classifier"]
    seen = cam.class_map(image.local, own["weights"], given["label"])
    cells = given["feature_mask"].sum(axis=1)
    logits = applied()(variables(), given)["logits"]
    rows = np.arange(len(CAPTIONS))
    biases = (head["bias"] @ own["weights"] + own["bias"])[given["label"]]
    np.testing.assert_allclose(
        seen.sum(axis=1) / cells + biases, logits[rows, given["label"]], rtol=1e-5, atol=1e-5
    )


def word_costs(params, shown, cell="lstm"):
    """-log p of each word of the captions, given the features that are shown."""
    captioner = MultimodalRNN(VOCABULARY, 8, 9, cell, squash=True)
    image = network(cell).apply({"params": params}, shown, train=False, method="encode_image")
    said, own = (shown["tokens"], shown["token_mask"]), {"params": params["captioner"]}
    read = captioner.apply(own, *said, method="read")
    states = captioner.apply(own, image.pooled, read, said[1][:, 1:], method="states")
    return captioner.apply(own, states, *said, method="word_costs")


def grad_cam(costs, features, cells, row, step):
    """A loop over the words: finite differences of its log p, by the grid; rectified; averaged."""
    slopes, words = -difference(costs, features, step), []
    for place, token in enumerate(CAPTIONS[row][1:]):
        if token in FUNCTION:
            continue
        alpha = slopes[cells, :, place].mean(axis=0)
        words.append(np.maximum((np.asarray(features) * alpha).sum(axis=1), 0) * cells)
    return np.mean(words, axis=0)


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize("row", [0, 1])
def test_caption_map_is_grad_cam_of_each_content_word(row, cell):
    given = batch()
    params = variables(cell)["params"]

    def costs(features):
        return word_costs(params, replaced(given, row, features), cell)[row]

    # A rectified network bends where an LSTM curves.
    features, step = given["features"][row], {"rnn": 4e-3, "lstm": 3e-2}[cell]
    cells = np.asarray(given["feature_mask"][row])
    expected = grad_cam(costs, features, cells, row, step)
    assert (expected > 1e-4).sum() >= 2
    found = applied(cell)(variables(cell), given)["caption_map"][row]
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02 * expected.max())


def test_a_caption_without_content_words_has_no_map():
    found = applied()(variables(), batch())
    np.testing.assert_array_equal(found["has_caption_map"], [True, True, False, False])
    np.testing.assert_array_equal(found["caption_map"][2:], 0)
    assert float(found["generation"][3]) == 0


def test_padding_changes_no_map():
    given = batch()
    longer = {
        **given,
        "tokens": jnp.pad(given["tokens"], ((0, 0), (0, 9)), constant_values=7),
        "token_mask": jnp.pad(given["token_mask"], ((0, 0), (0, 9))),
        "features": jnp.pad(given["features"], ((0, 0), (0, 2), (0, 0)), constant_values=5.0),
        "feature_mask": jnp.pad(given["feature_mask"], ((0, 0), (0, 2))),
    }
    found, expected = (applied()(variables(), one) for one in (longer, given))
    for name in ("class_map", "caption_map"):
        np.testing.assert_allclose(found[name][:, :CELLS], expected[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[name][:, CELLS:], 0)


def loss(variables, kind):
    outputs = applied(maps=kind)(variables, batch())
    found = maps.disagreement(outputs["class_map"], outputs["caption_map"])
    return jnp.sum(jnp.where(outputs["has_caption_map"], found, 0.0))


@cache
def slopes(kind):
    return jax.jit(jax.grad(partial(loss, kind=kind)))(variables())


def test_second_order_is_the_whole_derivative():
    """Along random directions; the first order, which takes alpha for constant, is another one."""
    whole, constant = slopes("whole"), slopes("constant")
    rng = np.random.default_rng(2)
    apart = 0
    for _ in range(3):
        way = jax.tree.map(
            lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), variables()
        )

        def along(step, way=way):
            moved = jax.tree.map(lambda leaf, w: leaf + step * w, variables(), way)
            return float(loss(moved, "whole"))

        slope = (along(2e-4) - along(-2e-4)) / 4e-4
        product = partial(jax.tree.map, lambda g, w: float(jnp.vdot(g, w)))
        found, first = (sum(jax.tree.leaves(product(g, way))) for g in (whole, constant))
        np.testing.assert_allclose(found, slope, rtol=0.03, atol=3e-3)
        apart += abs(first - slope) > 0.1 * abs(slope)
    assert apart


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_words_gradients_are_the_same_by_either_way(cell, squash):
    """Of words of which some are asked for, among captions without any."""
    params, given = variables(cell)["params"], batch()
    said = given["tokens"], given["token_mask"]
    content = cam.content_words(*said, FUNCTION)
    captioner = MultimodalRNN(VOCABULARY, 8, 9, cell, squash=squash)
    pooled = jax.random.normal(jax.random.key(3), (len(CAPTIONS), 7))
    one, other = (
        jax.jit(
            partial(
                cam.word_gradients, captioner, {"params": params["captioner"]},
                differentiable=differentiable,
            )
        )(pooled, *said, content)
        for differentiable in (False, True)
    )  # fmt: skip
    assert (np.abs(one).max(axis=2) > 0).tolist() == content.tolist()
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_first_order_is_the_derivative_with_the_words_gradients_held():
    params, given = variables()["params"], batch()
    said = given["tokens"], given["token_mask"]
    content = cam.content_words(*said, FUNCTION)
    encode = partial(network().apply, train=False, method="encode_image")
    captioner = MultimodalRNN(VOCABULARY, 8, 9, "lstm", squash=True)
    held = cam.word_gradients(
        captioner,
        {"params": params["captioner"]},
        encode(variables(), given).pooled,
        *said,
        content,
        differentiable=False,
    )

    @jax.jit
    def fixed(variables):
        image, weights = encode(variables, given), variables["params"]["classifier"]["weights"]
        ours = jax.nn.relu(cam.class_map(image.local, weights, given["label"]))
        theirs = cam.caption_map(image.local, image.mask, held, content)
        return jnp.sum(jnp.where(content.any(axis=1), maps.disagreement(ours, theirs), 0.0))

    rng = np.random.default_rng(6)
    for _ in range(3):
        way = jax.tree.map(
            lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), variables()
        )
        high, low = (
            float(fixed(jax.tree.map(lambda leaf, w, s=s: leaf + s * w, variables(), way)))
            for s in (2e-4, -2e-4)
        )
        products = jax.tree.map(lambda g, w: float(jnp.vdot(g, w)), slopes("constant"), way)
        np.testing.assert_allclose(
            sum(jax.tree.leaves(products)), (high - low) / 4e-4, rtol=0.03, atol=3e-3
        )


def test_the_first_order_leaves_the_captioner_alone():
    gradient = slopes("constant")["params"]
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient["captioner"]))
    for part in ("image", "classifier"):
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient[part]))
    gradient = slopes("whole")["params"]
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient["captioner"]))


def test_a_picture_of_zeros_has_finite_gradients():
    given = {**batch(), "features": jnp.zeros((len(CAPTIONS), CELLS, CHANNELS))}

    def total(variables):
        outputs = network(maps="whole").apply(variables, given, train=False)
        found = [
            maps.disagreement(outputs["class_map"], outputs["caption_map"], kind).sum()
            for kind in ("cosine", "l2", "kl")
        ]
        return sum(found)

    value, gradient = jax.jit(jax.value_and_grad(total))(variables())
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_looks_takes_the_likeliest_class_where_none_is_given():
    given = batch()
    outputs = applied()(variables(), given)
    likeliest = jnp.argmax(outputs["logits"], axis=1)
    unknown = {**given, "label": jnp.full(len(CAPTIONS), -1)}
    found = network().apply(variables(), unknown, method="looks")
    expected = applied()(variables(), {**given, "label": likeliest})
    np.testing.assert_allclose(found["class_map"], expected["class_map"], rtol=1e-5)
    np.testing.assert_allclose(found["caption_map"], outputs["caption_map"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["cosine", "l2", "kl"])
def test_disagreement_is_that_of_its_formula(kind):
    rng = np.random.default_rng(3)
    a, b = rng.uniform(0, 2, (2, 6, 9))
    a[0] = 3 * b[0]
    a[1], b[1, :4] = 0, 0
    found = maps.disagreement(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), kind)
    for row in range(6):
        p, q = a[row], b[row]
        if kind == "cosine":
            length = np.linalg.norm(p) * np.linalg.norm(q)
            expected = 1 - (p @ q / length if length else 0)
        else:
            p, q = ((x / x.sum() if x.sum() else np.full(9, 1 / 9)) for x in (p, q))
            p, q = (0.999 * x + 0.001 / 9 for x in (p, q))
            expected = ((p - q) ** 2).sum() if kind == "l2" else ((p - q) * np.log(p / q)).sum()
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[0], 0, atol=1e-6)


VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 16,
          "intermediate_size": 16, "image_size": 64}  # fmt: skip
SMALL = {
    "clip": {"vision_config": VISION, "projection_dim": 8},
    "mobilenet_v2": {"depth_multiplier": 0.1},
    "resnet": {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4
    },
    "siglip": {"vision_config": VISION},
    "small_resnet": {},
    "vgg19": {},
    "vit": VISION,
}  # fmt: skip


def test_every_backbone_is_below():
    assert SMALL.keys() == set(catalogue.__all__) - {"none"}


def drawn(shapes):
    """Variables under which what goes through a deep network neither vanishes nor explodes."""
    rng = np.random.default_rng(5)

    def leaf(path, shape):
        if shape.ndim > 1:
            spread = (2 / np.prod(shape.shape[:-1])) ** 0.5
            return jnp.asarray(rng.normal(size=shape.shape) * spread, shape.dtype)
        return jnp.full(shape.shape, path[-1].key in ("scale", "var"), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def over(backbone, frozen=False):
    image = ImageEncoder(cam.JointHead(7), backbone, "grid", frozen=frozen)
    return network(maps="constant").clone(image=image)


def of_pixels(size=64):
    given = {name: value[:2] for name, value in batch().items() if "feature" not in name}
    pixels = np.random.default_rng(4).integers(0, 256, (2, size, size, 3))
    return {**given, "image": jnp.asarray(pixels, jnp.uint8)}


@cache
def shown_to(name, frozen=False):
    """What a model finds in pixels; the grid of the first picture; the model without a backbone.

    The grid is cut to the channels that the head reads. Of the model: its parameters, and a
    function that makes a batch of such a grid. A frozen backbone is run as in training.
    """
    backbone = getattr(catalogue, name).make(SMALL[name], jnp.float32, None)
    given, model = of_pixels(), over(backbone, frozen)
    variables = drawn(jax.eval_shape(partial(model.init, train=False), jax.random.key(0), given))
    # A head that reads a dozen channels: these stand for all.
    kernel = variables["params"]["image"]["head"]["project"]["kernel"]
    read = min(12, len(kernel))
    variables["params"]["image"]["head"]["project"]["kernel"] = kernel.at[read:].set(0)

    @jax.jit
    def both(variables):
        features = model.apply(
            variables, given["image"], method=lambda own, x: own.image.features(x)
        )
        return features, model.apply(variables, given, train=frozen, mutable=["batch_stats"])[0]

    features, found = both(variables)
    rest = {key: rows for key, rows in given.items() if key != "image"}
    rest["feature_mask"] = jnp.ones(features.shape[:2], bool)
    params = variables["params"]
    params = {**params, "image": {"head": params["image"]["head"]}}

    def with_cells(cells):
        return {**rest, "features": features.at[0, :, :read].set(cells)}

    return found, features[0, :, :read], params, with_cells


@pytest.mark.parametrize("name", SMALL)
def test_class_map_of_every_backbone(name):
    """That of pixels is the finite difference of the logit over the grid of the backbone."""
    found, own, params, with_cells = shown_to(name)
    label = of_pixels()["label"][0]

    @jax.jit
    def logit(cells):
        outputs = network().apply({"params": params}, with_cells(cells), train=False)
        return outputs["logits"][0, label]

    own = np.asarray(own)
    slopes = difference(logit, jnp.asarray(own), 1e-2 * np.abs(own).max())
    expected = np.maximum((len(own) * slopes * own).sum(axis=1), 0)
    assert len(own) >= 4
    scale = np.abs(len(own) * slopes * own).sum(axis=1).max()
    np.testing.assert_allclose(found["class_map"][0], expected, atol=5e-3 * scale)


@pytest.mark.parametrize(("name", "frozen"), [("small_resnet", True), ("vit", False)])
def test_caption_map_over_a_backbone(name, frozen):
    """Likewise that of pixels is Grad-CAM over its grid, whether it is trained or not."""
    found, own, params, with_cells = shown_to(name, frozen)

    def costs(cells):
        return word_costs(params, with_cells(cells))[0]

    step = 3e-2 * float(jnp.abs(own).max())
    expected = grad_cam(costs, own, np.ones(len(own), bool), 0, step)
    assert (expected > 0.1 * expected.max()).sum() >= 2
    np.testing.assert_allclose(
        found["caption_map"][0], expected, rtol=0.02, atol=0.02 * expected.max()
    )


def test_the_disagreement_trains_a_backbone_that_is_not_frozen():
    given, backbone = of_pixels(32), catalogue.small_resnet.make({}, jnp.float32, None)
    init = partial(over(backbone).init, train=False)
    variables = drawn(jax.eval_shape(init, jax.random.key(0), given))

    @partial(jax.jit, static_argnums=1)
    def slope(params, frozen):
        def total(params):
            outputs, _ = over(backbone, frozen).apply(
                {**variables, "params": params}, given, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(maps.disagreement(outputs["class_map"], outputs["caption_map"], "l2"))

        return jax.tree.leaves(jax.grad(total)(params)["image"]["backbone"])

    assert all(np.all(leaf == 0) for leaf in slope(variables["params"], True))
    moved = slope(variables["params"], False)
    assert any(np.any(leaf != 0) for leaf in moved)
    assert all(np.isfinite(leaf).all() for leaf in moved)
