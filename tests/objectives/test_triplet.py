import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax import parallel
from vse_jax.encoding import Encoding
from vse_jax.objectives import triplet as module
from vse_jax.objectives.base import Spec, weighted_sum
from vse_jax.objectives.triplet import TripletState, triplet
from vse_jax.parallel import Devices
from vse_jax.similarity import dot, negative_euclidean

MARGIN = 0.2
# One picture with two captions, on different devices; the last row is padding.
IDS = np.array([0, 1, 2, 3, 4, 0, 5, 5], np.int32)
WEIGHT = np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)
SPEC = Spec(dimension=3, images=10, steps_per_epoch=2, steps=8)
# How pairs are compared: by their embeddings, or by a network that knows none.
SIMILARITIES = {"dot": dot, "negative_euclidean": negative_euclidean, "pairwise": dot}
EVERYWHERE = [
    ("dot", "shard_map", 1),
    ("dot", "shard_map", 4),
    ("dot", "pmap", 4),
    ("negative_euclidean", "shard_map", 1),
    ("negative_euclidean", "shard_map", 4),
    ("pairwise", "shard_map", 1),
    ("pairwise", "pmap", 4),
]


def embeddings(seed=0):
    draw = np.random.default_rng(seed).normal(size=(2, 8, 3)).astype(np.float32)
    return draw / np.linalg.norm(draw, axis=-1, keepdims=True)


def scores_of(how, images, texts):
    """Of every picture with every caption, arrays of NumPy or of JAX."""
    if how == "negative_euclidean":
        return -(((images[:, None] - texts[None]) ** 2).sum(axis=-1) ** 0.5)
    return images @ texts.T


def encoding(pooled):
    return Encoding(pooled[:, None], jnp.ones((pooled.shape[0], 1), bool), pooled)


def run(
    objective,
    state,
    images,
    texts,
    weight=WEIGHT,
    ids=IDS,
    mode="shard_map",
    count=1,
    how="dot",
    **columns,
):
    """(global loss, new state, metrics, gradients of both sides) over `count` devices."""
    devices = Devices(mode, tuple(jax.devices()[:count]))

    def function(state, batch):
        def loss_of(sides):
            outputs = {"image": encoding(sides[0]), "text": encoding(sides[1])}
            if how == "pairwise":
                outputs = {"scores": parallel.all_gather(sides[0]) @ sides[1].T}
            loss, new, metrics = objective.apply(state, outputs, batch)
            return loss, (new, metrics)

        sides = (batch["images"], batch["texts"])
        (loss, rest), gradient = jax.value_and_grad(loss_of, has_aux=True)(sides)
        # A row lies on one device, so the mean over the devices of its gradient is this share.
        gradient = jax.tree.map(lambda x: x / parallel.device_count(), gradient)
        return parallel.mean(loss), *rest, parallel.all_gather(gradient)

    batch = {"images": images, "texts": texts, "image_id": ids, "weight": weight} | columns
    mapped = devices.map(function, ("replicated", "split"), "replicated")
    found = mapped(devices.place(jax.tree.map(np.asarray, state)), devices.split(batch))
    return devices.fetch(found)


def hardest(warmup_epochs=0.0, negatives="hardest", how="dot"):
    objective = triplet(MARGIN, negatives, warmup_epochs, chunk=3, similarity=SIMILARITIES[how])
    return objective, objective.init(jax.random.key(0), SPEC)


def by_hand(kind, images, texts, ids=IDS, weight=WEIGHT, how="dot"):
    """Loss and metrics of the whole batch, pair by pair, without the padding."""
    rows = np.flatnonzero(weight)
    scores = scores_of(how, images, texts)
    loss, top, violating = 0.0, [], 0
    for matrix in (scores, scores.T):
        for i in rows:
            negatives = [matrix[i, j] for j in rows if ids[j] != ids[i]]
            costs = [max(0.0, MARGIN + score - matrix[i, i]) for score in negatives]
            loss += max(costs, default=0.0) if kind == "hardest" else sum(costs)
            top += [max(negatives)] if negatives else []
            violating += bool(costs) and max(costs) > 0
    return loss, {
        "loss_per_pair": loss / len(rows),
        "collapse": loss / len(rows) / (2 * MARGIN) if kind == "hardest" else 0.0,
        "positive": np.mean([scores[i, i] for i in rows]),
        "hardest_negative": np.mean(top),
        "violating": violating / (2 * len(rows)),
    }


def dense(kind, how, images, texts):
    """The loss from all scores at once, for automatic differentiation."""
    scores = scores_of(how, images, texts)
    real = WEIGHT > 0
    negative = (IDS[:, None] != IDS[None]) & real[:, None] & real[None]
    loss = 0.0
    for matrix in (scores, scores.T):
        cost = jnp.maximum(MARGIN + matrix - jnp.diagonal(matrix)[:, None], 0.0)
        cost = jnp.where(negative, cost, 0.0)
        loss += jnp.sum(jnp.max(cost, axis=1) if kind == "hardest" else cost)
    return loss


@pytest.mark.parametrize(("how", "mode", "count"), EVERYWHERE)
@pytest.mark.parametrize("kind", ["hardest", "all"])
def test_loss_metrics_and_gradients_are_those_of_the_whole_batch_on_any_devices(
    kind, how, mode, count
):
    images, texts = embeddings()
    objective, state = hardest(negatives=kind, how=how)
    loss, new, metrics, gradient = run(
        objective, state, images, texts, mode=mode, count=count, how=how
    )
    expected, expected_metrics = by_hand(kind, images, texts, how=how)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    slopes = jax.grad(lambda i, t: dense(kind, how, i, t), (0, 1))(images, texts)
    for one, other in zip(gradient, slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert new.step == 1


def test_the_warm_up_ends_at_its_step():
    """Two epochs of two steps over all negatives, then the hardest."""
    images, texts = embeddings()
    objective, state = hardest(warmup_epochs=2.0)
    assert int(state.warmup_steps) == 4
    totals = {kind: by_hand(kind, images, texts)[0] for kind in ("all", "hardest")}
    assert abs(totals["all"] - totals["hardest"]) > 0.5
    for step, kind in ((3, "all"), (4, "hardest")):
        before = state.replace(step=np.asarray(step, np.int32))
        loss, after, metrics, _ = run(objective, before, images, texts)
        assert after.step == step + 1
        np.testing.assert_allclose(loss, totals[kind], rtol=1e-5)
        assert (metrics["collapse"] == 0.0) == (kind == "all")


def test_all_negatives_have_no_warm_up():
    _, state = hardest(warmup_epochs=2.0, negatives="all")
    assert int(state.warmup_steps) == 0


@pytest.mark.parametrize("count", [1, 4])
def test_the_collapse_shows(count):
    same = np.tile(np.array([[0.6, 0.8, 0.0]], np.float32), (8, 1))
    objective, state = hardest()
    _, _, metrics, gradient = run(objective, state, same, same, count=count)
    np.testing.assert_allclose(metrics["collapse"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["positive"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["violating"], 1.0, rtol=1e-5)
    assert all(np.all(np.isfinite(side)) for side in gradient)
    warming = TripletState(jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32))
    assert run(objective, warming, same, same, count=count)[2]["collapse"] == 0.0


@pytest.mark.parametrize("kind", ["hardest", "all"])
def test_padding_counts_for_nothing(kind):
    """A whole device of it, with embeddings that would be everyone's hardest negative."""
    images, texts = embeddings()
    weight = np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32)
    objective, state = hardest(negatives=kind)
    losses, gradients = [], []
    for value in (0.0, 100.0):
        images[6:], texts[6:] = value, value
        loss, _, metrics, gradient = run(objective, state, images, texts, weight, count=4)
        losses.append(loss)
        gradients.append(gradient)
        expected = by_hand(kind, images[:6], texts[:6], IDS[:6], weight[:6])
        np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
        for name, wanted in expected[1].items():
            np.testing.assert_allclose(metrics[name], wanted, rtol=1e-5, atol=1e-6, err_msg=name)
    assert losses[0] == losses[1]
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_array_equal(one, other)
        assert not np.any(one[6:])


def test_a_batch_of_nothing_but_padding_is_zero():
    images, texts = embeddings()
    objective, state = hardest()
    loss, _, metrics, gradient = run(objective, state, images, texts, np.zeros(8, np.float32))
    assert loss == 0.0
    assert all(value == 0.0 for value in metrics.values())
    assert not any(np.any(side) for side in gradient)


def test_a_margin_of_zero_has_a_finite_metric():
    images, texts = embeddings()
    objective = triplet(0.0, "hardest", 0.0, chunk=8)
    state = objective.init(jax.random.key(0), SPEC)
    assert np.isfinite(run(objective, state, images, texts)[2]["collapse"])


def test_a_weighted_sum_adds_and_names_its_terms():
    images, texts = embeddings()
    terms = {"triplet": (2.0, hardest()[0]), "second": (0.5, hardest(negatives="all")[0])}
    objective = weighted_sum(terms)
    state = objective.init(jax.random.key(0), SPEC)
    loss, new, metrics, _ = run(objective, state, images, texts)
    parts = {kind: by_hand(kind, images, texts)[0] for kind in ("hardest", "all")}
    np.testing.assert_allclose(loss, 2.0 * parts["hardest"] + 0.5 * parts["all"], rtol=1e-5)
    np.testing.assert_allclose(metrics["second/loss_per_pair"], parts["all"] / 7, rtol=1e-5)
    np.testing.assert_allclose(metrics["triplet/loss_per_pair"], parts["hardest"] / 7, rtol=1e-5)
    assert (new["triplet"].step, new["second"].step) == (1, 1)


@pytest.mark.parametrize(("how", "mode", "count"), EVERYWHERE)
@pytest.mark.parametrize(("warmup", "group"), [("infonce", 8), ("grouped", 4), ("grouped", 3)])
def test_the_warm_up_may_be_the_cross_entropy(warmup, group, how, mode, count, monkeypatch):
    """Over all negatives, or over those of groups in the order of the batch."""
    monkeypatch.setattr(module, "GROUP", group)
    images, texts = embeddings()
    objective = triplet(
        MARGIN,
        "hardest",
        1.0,
        chunk=3,
        warmup=warmup,
        temperature=0.1,
        similarity=SIMILARITIES[how],
    )
    state = objective.init(jax.random.key(0), SPEC)
    rows = np.flatnonzero(WEIGHT)
    scores = scores_of(how, images, texts) / 0.1
    expected = 0.0
    for matrix in (scores, scores.T):
        for i in rows:
            near = [j for j in rows if IDS[j] != IDS[i] and j // group == i // group]
            among = [matrix[i, i], *(matrix[i, j] for j in near)]
            expected += np.log(np.sum(np.exp(among))) - matrix[i, i]
    where = {"mode": mode, "count": count, "how": how}
    loss, _, metrics, _ = run(objective, state, images, texts, **where)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["collapse"] == 0.0
    after = state.replace(step=np.asarray(2, np.int32))
    loss, _, _, _ = run(objective, after, images, texts, **where)
    np.testing.assert_allclose(loss, by_hand("hardest", images, texts, how=how)[0], rtol=1e-5)


def lseh_by_hand(kind, how, images, texts, semantics, margin, share):
    """LSEH from its formula: m_ij = margin + share <u_i, u_j> / max_k <u_i, u_k>, i a picture."""
    rows = np.flatnonzero(WEIGHT)
    u, scores = semantics.astype(np.float64), scores_of(how, images.astype(np.float64), texts)
    loss, chosen = 0.0, []
    for direction in ("captions", "pictures"):
        for query in rows:
            costs = [0.0]
            for other in rows:
                if IDS[other] == IDS[query]:
                    continue
                i, j = (query, other) if direction == "captions" else (other, query)
                most = max(u[i] @ u[k] for k in rows)
                related = u[i] @ u[j] / (most or 1.0)
                costs.append(
                    max(0.0, margin + share * related + scores[i, j] - scores[query, query])
                )
            loss += max(costs) if kind == "hardest" else sum(costs)
            chosen.append(int(np.argmax(costs)))
    return loss, chosen


@pytest.mark.parametrize(("how", "mode", "count"), EVERYWHERE)
@pytest.mark.parametrize("kind", ["hardest", "all"])
def test_margins_from_semantics_are_those_of_the_formula(kind, how, mode, count):
    """With a picture that comes twice, padding, and a caption that says nothing."""
    images, texts = embeddings()
    semantics = np.random.default_rng(5).normal(size=(8, 6)).astype(np.float32)
    semantics[2] = 0.0
    semantics[7] = 100.0  # padding
    share = 0.9
    objective = triplet(MARGIN, kind, 0.0, chunk=3, semantic=share, similarity=SIMILARITIES[how])
    state = objective.init(jax.random.key(0), SPEC)
    loss, _, _, gradient = run(
        objective,
        state,
        images,
        texts,
        mode=mode,
        count=count,
        how=how,
        semantics=semantics,
    )
    expected, chosen = lseh_by_hand(kind, how, images, texts, semantics, MARGIN, share)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # The margins choose other negatives than the scores alone.
    assert chosen != lseh_by_hand(kind, how, images, texts, semantics, MARGIN, 0.0)[1]
    step = 1e-3
    for side, (row, column) in ((0, (1, 0)), (1, (4, 2))):
        values = []
        for sign in (1, -1):
            moved = [images.astype(np.float64), texts.astype(np.float64)]
            moved[side][row, column] += sign * step
            values.append(lseh_by_hand(kind, how, *moved, semantics, MARGIN, share)[0])
        slope = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(gradient[side][row, column], slope, rtol=1e-3, atol=1e-4)


def test_lseh_chooses_by_margin_and_score():
    """Of two wrong captions the less similar one costs more where it means nearly the same."""
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[0.5, 0, 0], [0.42, 0.9, 0], [0.40, 0, 0.9]], np.float32)
    semantics = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    objective = triplet(0.1, "hardest", 0.0, chunk=2, semantic=0.05)
    state = objective.init(jax.random.key(0), SPEC)
    loss, _, _, gradient = run(
        objective, state, images, texts, np.ones(3, np.float32), np.arange(3, dtype=np.int32),
        semantics=semantics,
    )  # fmt: skip
    # Picture 0 against captions 1 (0.1 + 0.42) and 2 (0.15 + 0.40), of 0.5 itself.
    np.testing.assert_allclose(loss, 0.15 + 0.40 - 0.5, rtol=1e-5)
    assert gradient[1][2, 0] > 0
    assert gradient[1][1, 0] == 0
