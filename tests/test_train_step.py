"""One step is the same on any number of devices and through both maps."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vse_jax import parallel, train_step
from vse_jax.encoding import Encoding
from vse_jax.models.backbones.small_resnet import SmallResNet
from vse_jax.models.cam import Classifier, JointHead
from vse_jax.models.dvsa import FragmentScore, RectifiedHead
from vse_jax.models.heads import LinearHead
from vse_jax.models.image import ImageEncoder
from vse_jax.models.model import VisualSemanticModel
from vse_jax.models.multimodal_rnn import MultimodalRNN
from vse_jax.models.pairwise import Tile
from vse_jax.models.scale import Scale
from vse_jax.models.sgraf import SAF, SGR, SGRAFHead
from vse_jax.models.text import GRUReader, TextEncoder
from vse_jax.models.vse_infinity import VSEInfinityImage, VSEInfinityText
from vse_jax.models.vsrn import CaptionGenerator, VSRNImage
from vse_jax.objectives.base import Objective, Spec, weighted_sum
from vse_jax.objectives.centers import Center
from vse_jax.objectives.classification import classification
from vse_jax.objectives.disagreement import disagreement
from vse_jax.objectives.generation import generation
from vse_jax.objectives.infonce import infonce
from vse_jax.objectives.joint_embedding import joint_embedding
from vse_jax.objectives.leap import leap
from vse_jax.objectives.margin import Hinge
from vse_jax.objectives.quantizer import Multitask, Quantizer
from vse_jax.objectives.sigmoid import sigmoid
from vse_jax.objectives.triplet import triplet
from vse_jax.optimizer import flatten, partition
from vse_jax.parallel import AXIS, Devices

SPEC = Spec(dimension=6, images=8, steps_per_epoch=1, steps=5)
# A rate at which the parameters after a step are the gradient, but for rounding.
RATE, DECAY = 1e6, 0.5
FROZEN = {"pixels": (("text/reader/words", None),), "features": (("image/backbone/.*", None),)}
SETUPS = {
    "pixels": [("shard_map", 1), ("shard_map", 4), ("pmap", 1), ("pmap", 4)],
    "features": [("shard_map", 1), ("shard_map", 4)],
}
# Each over features and words; what they draw at random differs between devices, so nothing.
NETWORKS = {
    "saf": lambda: (_sgraf(), _words(), SAF(4, Tile(2, 2)), None),
    "sgr": lambda: (_sgraf(), _words(), SGR(4, 2, Tile(2, 2)), None),
    "dvsa": lambda: (
        LinearHead(6, normalize=False), RectifiedHead(6), FragmentScore(Tile(3, 2)), None
    ),
    "vsrn": lambda: (
        VSRNImage(6, 2, axis_name=AXIS), LinearHead(None), None, CaptionGenerator(9, 4, 4, 0.0)
    ),
    "vse_infinity": lambda: (
        VSEInfinityImage(6, 0.0, axis_name=AXIS), VSEInfinityText(6), None, None
    ),
}  # fmt: skip
# How embeddings are exchanged by the losses that let one choose; the same gradient either way.
EXCHANGES = ("gather", "ring")
SCALES = {"infonce": Scale(0.5), "sigmoid": Scale(0.5, -1.0)}


def _sgraf():
    return SGRAFHead(6, dropout=0.0, axis_name=AXIS)


def _words():
    return SGRAFHead(None, batch_norm=False, dropout=0.0)


def batch(path):
    rng = np.random.default_rng(0)
    shown = {"image": rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)}
    if path != "pixels":
        shown = {
            "features": rng.standard_normal((8, 3, 8)).astype(np.float32),
            "feature_mask": np.arange(3)[None] < rng.integers(1, 4, 8)[:, None],
        }
    lengths = np.asarray([3, 1, 5, 2, 4, 5, 1, 3])
    return shown | {
        "tokens": rng.integers(0, 9, (8, 5)).astype(np.int32),
        "token_mask": np.arange(5)[None] < lengths[:, None],
        # Two captions of one picture, on different devices: no negatives of each other.
        "image_id": np.asarray([0, 1, 2, 0, 4, 5, 6, 7], np.int32),
        "weight": np.asarray([1, 1, 1, 1, 1, 1, 1, 0], np.float32),
        "semantics": rng.standard_normal((8, 4)).astype(np.float32),
        # Some pictures have no class.
        "label": np.asarray([0, -1, 2, 1, -1, 0, 2, 2], np.int32),
    }


def cam_model():
    """A classifier and a captioner, with all that their maps depend on differentiated."""
    return VisualSemanticModel(
        ImageEncoder(JointHead(6), None),
        TextEncoder(GRUReader(vocabulary=9, width=4, hidden=6), LinearHead(6)),
        captioner=MultimodalRNN(9, 5, 4, "lstm", squash=True),
        classifier=Classifier(3),
        maps="whole",
        function_words=(0, 1),
    )


def model(path, dropout=0.0):
    if path == "cam":
        return cam_model()
    if path in (*EXCHANGES, "leap"):
        return VisualSemanticModel(
            ImageEncoder(LinearHead(6), None, dropout=dropout),
            TextEncoder(
                GRUReader(vocabulary=9, width=4, hidden=6), LinearHead(None), dropout=dropout
            ),
            scales=SCALES if path in EXCHANGES else None,
        )
    backbone = SmallResNet(stem=4, widths=(6,), blocks=(1,), head=8, axis_name=AXIS)
    if path in NETWORKS:
        image, text, pairwise, generator = NETWORKS[path]()
        parts = "pooled" if path == "vsrn" else "words"
        return VisualSemanticModel(
            ImageEncoder(image, None),
            TextEncoder(GRUReader(vocabulary=9, width=4, hidden=6), text, parts),
            pairwise,
            generator,
        )
    return VisualSemanticModel(
        ImageEncoder(LinearHead(6), backbone, "grid", frozen=path == "features"),
        TextEncoder(GRUReader(vocabulary=9, width=4, hidden=6), LinearHead(None)),
    )


def variables(path):
    """Random where the model's own start has zeros or ones, so that everything matters.

    Matrices have both signs: with one the sigmoid of SGR's score is flat, and its gradient noise.
    """
    given = batch("pixels" if path in SETUPS else path)
    one_row = jax.tree.map(lambda rows: jnp.asarray(rows[:1]), given)
    init = partial(model(path).init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), one_row)
    rng = np.random.default_rng(1)

    def draw(leaf):
        signs = rng.choice([-1, 1], leaf.shape) if leaf.ndim > 1 else 1
        return (signs * rng.uniform(0.3, 1.0, leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes)


def objective_of(path):
    if path in EXCHANGES:
        losses = infonce(9.0, chunk=3, exchange=path), sigmoid(chunk=3, exchange=path)
        return weighted_sum({"infonce": (1.0, losses[0]), "sigmoid": (0.7, losses[1])})
    if path == "leap":
        return weighted_sum({"leap": (1.0, whole_leap())})
    terms = {"triplet": (1.0, triplet(0.2, "hardest", warmup_epochs=0.0, chunk=3, semantic=0.1))}
    if path == "dvsa":
        # As published.
        terms["all"] = (1.0, triplet(1.0, "all", warmup_epochs=0.0, chunk=3))
    if path == "cam":
        terms = {
            "classification": (1.0, classification()),
            "disagreement": (0.7, disagreement("cosine")),
            "embedding": (0.5, joint_embedding("contrast")),
        }
    if path in ("vsrn", "cam"):
        terms["generation"] = (1.0, generation())
    return weighted_sum(terms)


def whole_leap():
    """Every term of LEAP; centers are those of the batch, as a table has none at the start."""
    hinge = Hinge(
        weight=1.0, negatives="hardest", warmup_epochs=0.0, warmup="all", temperature=0.3,
        margin=0.2, rule="gap", rho=0.9, kappa=0.5, active_share=0.5, least=0.05, most=0.5,
        pair_margins=True, pair_low=0.5, pair_high=1.5, quantized=0.0,
        quantized_distance="asymmetric", chunk=3,
    )  # fmt: skip
    quantizer = Quantizer(
        weight=1.0, beta=0.25, parts=2, codes=4, rule="average", decay=0.8, rate=0.1,
        dead_share=0.01, rotate_at=(),
    )  # fmt: skip
    center = Center(weight=1.0, kind="batch", alpha=0.5, chunk=3)
    return leap(hinge, center, quantizer, Multitask(weight=1.0, temperature=0.2))


def started(path, optimizer):
    """The state before step 100, on the host."""
    start = train_step.init_state(
        variables(path), objective_of(path), optimizer, SPEC, FROZEN.get(path, ()), seed=0, ema=True
    )
    return jax.tree.map(np.asarray, start.replace(step=jnp.asarray(100, jnp.int32)))


def whole_of(path):
    """The path whose step over all rows at once this one's is."""
    return "gather" if path in EXCHANGES else path


@cache
def one_step(path, mode, count, parts=1, dropout=0.0):
    """(state before, state after, metrics), on the host."""
    devices = Devices(mode, tuple(jax.devices()[:count]))
    built = model(path, dropout) if dropout else model(path)
    optimizer = optax.sgd(RATE)
    start = started(path, optimizer)
    step = train_step.make_step(
        built, objective_of(path), optimizer, FROZEN.get(path, ()), 0, DECAY, parts
    )
    mapped = devices.map(step, ("replicated", "split"), ("replicated", "replicated"), donate=(0,))
    rows = parallel.process_share()
    share = 8 // rows["processes"]
    own = slice(rows["process"] * share, (rows["process"] + 1) * share)
    own_batch = {name: value[own] for name, value in batch(path).items()}
    state, metrics = mapped(devices.place(start), devices.split(own_batch))
    return start, devices.fetch(state), devices.fetch(metrics)


def gradient_of(before, after):
    """Name -> gradient, as plain gradient descent left it in the parameters."""
    old, new = flatten(before.params), flatten(after.params)
    return {name: (old[name] - new[name]) / RATE for name in old}


def assert_gradients_close(found, expected, name):
    """To 1e-5 of the whole gradient's norm, and to 1e-4 of each array's largest value.

    An array may be nothing but rounding: that of a bias before a batch norm.
    """
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in expected.values()))
    assert norm > 0.01
    for key, leaf in expected.items():
        np.testing.assert_allclose(found[key], leaf, atol=1e-5 * norm, rtol=0, err_msg=name)
        largest = max(np.max(np.abs(leaf)), 1e-2 * norm)
        np.testing.assert_allclose(
            found[key], leaf, atol=1e-4 * largest, rtol=0, err_msg=f"{name} {key}"
        )


def assert_close(found, expected, name):
    scale = max(float(np.max(np.abs(expected))), 1e-3)
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("path", [*SETUPS, *NETWORKS, "cam"])
def test_devices_and_maps_agree(path):
    first, *others = SETUPS.get(path, [("shard_map", 1), ("shard_map", 4), ("pmap", 4)])
    before, expected, expected_metrics = one_step(path, *first)
    gradient = gradient_of(before, expected)
    for setup in others:
        _, found, found_metrics = one_step(path, *setup)
        assert_gradients_close(gradient_of(before, found), gradient, f"{setup}")
        assert found_metrics.keys() == expected_metrics.keys()
        for name in expected_metrics:
            assert_close(found_metrics[name], expected_metrics[name], f"{setup} {name}")
        one, other = flatten(found.batch_stats), flatten(expected.batch_stats)
        assert one.keys() == other.keys()
        for name in other:
            assert_close(one[name], other[name], f"{setup} {name}")
        assert found.step == expected.step == 101


@pytest.mark.parametrize(
    ("path", "count", "parts"),
    [("features", 1, 8), ("dvsa", 2, 2), ("cam", 1, 2), ("ring", 2, 2)],
)
def test_parts_of_a_batch_have_the_gradient_of_the_whole(path, count, parts):
    """Of networks without batch statistics."""
    before, expected, expected_metrics = one_step(whole_of(path), "shard_map", 1)
    _, found, metrics = one_step(path, "shard_map", count, parts)
    gradient = gradient_of(before, expected)
    assert_gradients_close(gradient_of(before, found), gradient, f"{parts} parts")
    assert metrics.keys() == expected_metrics.keys()
    for name in metrics:
        assert_close(metrics[name], expected_metrics[name], name)


@pytest.mark.parametrize("path", ["gather", "leap"])
def test_parts_draw_the_same_masks_when_they_are_encoded_again(path):
    """With dropout the step is that of one pass over rows that have the masks of their parts.

    What the whole batch would draw are others: masks are not of a row by itself.
    """
    parts, dropout = 2, 0.5
    before, after, metrics = one_step(path, "shard_map", 1, parts, dropout)
    built, objective = model(path, dropout), objective_of(path)
    given, state = jax.tree.map(jnp.asarray, (batch(path), before.objective_state))

    def by_hand(params, numbers):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 100), 0)

        def apply(rows, number, method):
            rngs = {"dropout": jax.random.fold_in(key, number)}
            return built.apply({"params": params}, rows, train=True, rngs=rngs, method=method)

        cut = [jax.tree.map(lambda x, n=n: jnp.split(x, parts)[n], given) for n in range(parts)]
        encoded = [apply(rows, numbers[n], "encode") for n, rows in enumerate(cut)]
        outputs = apply(jax.tree.map(lambda *x: jnp.concatenate(x), *encoded), 0, "relate")
        loss, moved, _ = objective.apply(state, outputs, given)
        return loss, moved

    one = Devices("shard_map", tuple(jax.devices()[:1]))
    differentiated = jax.value_and_grad(by_hand, has_aux=True)
    mapped = one.map(differentiated, ("replicated", "replicated"), "replicated")
    (loss, moved), gradient = one.fetch(mapped(*one.place((before.params, np.arange(parts)))))
    assert_close(metrics["loss"], loss, "loss")
    assert_gradients_close(gradient_of(before, after), flatten(gradient), "dropout")
    leaves = [jax.tree.leaves(each) for each in (after.objective_state, moved)]
    for found, expected in zip(*leaves, strict=True):
        assert_close(found, expected, "state of the objective")
    (other, _), _ = one.fetch(mapped(*one.place((before.params, np.arange(parts)[::-1].copy()))))
    assert abs(other - loss) > 0.01 * loss


def test_statistics_of_parts_are_their_mean():
    """As those of devices without shared statistics would be."""
    before, _, _ = one_step("pixels", "shard_map", 1)
    _, found, _ = one_step("pixels", "shard_map", 1, 2)
    given, built = batch("pixels"), model("pixels")
    moved = []
    for rows in (slice(0, 4), slice(4, 8)):
        variables = {"params": before.params, "batch_stats": before.batch_stats}
        part = {name: value[rows] for name, value in given.items()}

        def apply(variables, part):
            return built.apply(variables, part, train=True, mutable=["batch_stats"])[1]

        mapped = jax.shard_map(
            apply, mesh=Devices.all("shard_map").mesh, in_specs=P(), out_specs=P(), check_vma=False
        )
        moved.append(flatten(jax.jit(mapped)(variables, part)["batch_stats"]))
    for name, value in flatten(found.batch_stats).items():
        np.testing.assert_allclose(value, (moved[0][name] + moved[1][name]) / 2, rtol=1e-5)


@pytest.mark.parametrize("path", SETUPS)
def test_the_gradient_is_that_of_the_loss_and_only_what_is_not_frozen_moves(path):
    before, after, metrics = one_step(path, *SETUPS[path][0])
    trainable, frozen = partition(before.params, FROZEN[path])
    moved = flatten(after.params)
    for name, value in frozen.items():
        np.testing.assert_array_equal(moved[name], value, err_msg=name)
    # Plain SGD, so that the gradient can be read off the parameters.
    gradient = {name: (trainable[name] - moved[name]) / RATE for name in trainable}
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in gradient.values()))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    assert all(np.any(leaf != 0) for leaf in gradient.values())
    assert frozen


def test_the_moving_average_follows_what_is_not_frozen():
    before, after, _ = one_step("pixels", "shard_map", 1)
    trainable, _ = partition(after.params, FROZEN["pixels"])
    assert after.ema.keys() == trainable.keys() == before.ema.keys()
    for name, value in trainable.items():
        expected = DECAY * before.ema[name] + (1 - DECAY) * value
        np.testing.assert_allclose(after.ema[name], expected, rtol=1e-6)
    merged = flatten(train_step.evaluation_params(after))
    np.testing.assert_array_equal(
        merged["text/reader/gru/bias_hh"], after.ema["text/reader/gru/bias_hh"]
    )
    np.testing.assert_array_equal(
        merged["text/reader/words"], before.params["text"]["reader"]["words"]
    )


def test_statistics_move_to_those_of_the_whole_batch_or_not_at_all():
    before, after, _ = one_step("pixels", "shard_map", 4)
    image = (batch("pixels")["image"].astype(np.float64) - 127.5) / 127.5
    blocks = image.reshape(8, 16, 2, 16, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(8, 16, 16, 12)
    padded = np.pad(blocks, ((0, 0), (0, 1), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    kernel = before.params["image"]["backbone"]["conv"]["kernel"]
    mean = np.einsum("bhwcyx,yxco->bhwo", windows, kernel).mean((0, 1, 2))
    old, new = (s.batch_stats["image"]["backbone"]["norm"]["mean"] for s in (before, after))
    np.testing.assert_allclose(new, 0.9 * old + 0.1 * mean, atol=1e-5)
    before, after, _ = one_step("features", "shard_map", 4)
    same = jax.tree.map(np.array_equal, before.batch_stats, after.batch_stats)
    assert jax.tree.all(same)


class Dropped(nn.Module):
    """Ones after dropout, times a parameter."""

    @nn.compact
    def encode(self, batch, *, train):
        del batch
        scale = self.param("scale", nn.initializers.ones, ())
        rows = nn.Dropout(0.5, deterministic=not train)(jnp.ones((1, 20))) * scale
        return {"image": Encoding(rows[None], jnp.ones((1, 1), bool), rows)}

    def relate(self, outputs, *, train, gather):
        del train, gather
        return outputs


def code(device):
    """An objective whose metric is which channels one device dropped, as a number."""

    def init(rng, spec):
        del rng, spec
        return {}

    def apply(state, outputs, batch):
        del batch
        kept = outputs["image"].pooled[0] > 0
        number = jnp.sum(jnp.where(kept, 2.0 ** jnp.arange(20), 0.0))
        everyone = jax.lax.all_gather(number, AXIS)
        return jnp.sum(outputs["image"].pooled), state, {"code": everyone[device]}

    return Objective(init, apply)


def test_dropout_depends_on_seed_step_and_device():
    devices = Devices("shard_map", tuple(jax.devices()[:4]))
    objective = weighted_sum({str(device): (1.0, code(device)) for device in range(4)})
    rows = devices.split({"weight": np.ones(4, np.float32)})

    def codes(seed, step):
        start = train_step.init_state(
            {"params": {"scale": np.ones((), np.float32)}},
            objective, optax.sgd(0.0), SPEC, (), seed=seed, ema=False,
        )  # fmt: skip
        start = jax.tree.map(np.asarray, start.replace(step=jnp.asarray(step, jnp.int32)))
        function = train_step.make_step(Dropped(), objective, optax.sgd(0.0), (), seed, 0.0)
        mapped = devices.map(function, ("replicated", "split"), ("replicated", "replicated"))
        _, metrics = mapped(devices.place(start), rows)
        metrics = devices.fetch(metrics)
        return [float(metrics[f"{device}/code"]) for device in range(4)]

    first = codes(0, 3)
    assert first == codes(0, 3)
    everything = [*first, *codes(0, 4), *codes(1, 3)]
    assert len(set(everything)) == 12
