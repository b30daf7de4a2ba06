"""LEAP's terms against loops from the formulas, and its state over devices."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax import parallel
from vse_jax.encoding import Encoding
from vse_jax.objectives import quantizer
from vse_jax.objectives.base import Spec
from vse_jax.objectives.centers import Center
from vse_jax.objectives.leap import leap
from vse_jax.objectives.margin import Hinge
from vse_jax.objectives.quantizer import Multitask, Quantizer
from vse_jax.parallel import Devices

# One picture with two captions, on different devices; the last row is padding.
IDS = np.array([0, 1, 2, 3, 4, 0, 5, 5], np.int32)
WEIGHT = np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)
ROWS = np.flatnonzero(WEIGHT)
D = 4
SPEC = Spec(dimension=D, images=10, steps_per_epoch=2, steps=4)
HINGE = Hinge(
    weight=1.0, negatives="hardest", warmup_epochs=0.0, warmup="all", temperature=0.3,
    margin=0.2, rule="gap", rho=0.9, kappa=0.5, active_share=0.5, least=0.05, most=0.5,
    pair_margins=False, pair_low=0.5, pair_high=1.5, quantized=0.0, quantized_distance="asymmetric",
    chunk=3,
)  # fmt: skip
OFF = dataclasses.replace(HINGE, weight=0.0)
CENTER = Center(weight=1.0, kind="table", alpha=0.5, chunk=3)
QUANTIZER = Quantizer(
    weight=1.0, beta=0.25, parts=2, codes=9, rule="average", decay=0.8, rate=0.1, dead_share=0.01,
    rotate_at=(),
)  # fmt: skip
MULTITASK = Multitask(weight=1.0, temperature=0.2)
WHOLE = leap(
    dataclasses.replace(HINGE, pair_margins=True, quantized=0.5),
    CENTER,
    dataclasses.replace(QUANTIZER, rotate_at=(0.5,)),
    MULTITASK,
)

# The other choices of every part.
OTHERWISE = leap(
    dataclasses.replace(HINGE, rule="active", warmup="infonce", warmup_epochs=0.5),
    dataclasses.replace(CENTER, kind="batch"),
    dataclasses.replace(QUANTIZER, codes=3, rule="gradient"),
    MULTITASK,
)


def embeddings(seed=0):
    draw = np.random.default_rng(seed).normal(size=(2, 8, D)).astype(np.float32)
    return draw / np.linalg.norm(draw, axis=-1, keepdims=True)


def run(objective, sides, steps=1, mode="shard_map", count=1, weight=WEIGHT):
    """(loss, metrics, gradients of both sides) of each step and the states, over `count` devices.

    The embeddings are the rows of `sides` [step, side, row].
    """
    devices = Devices(mode, tuple(jax.devices()[:count]))

    def function(state, batch):
        def loss_of(sides):
            mask = jnp.ones((sides[0].shape[0], 1), bool)
            outputs = {
                name: Encoding(side[:, None], mask, side)
                for name, side in zip(("image", "text"), sides, strict=True)
            }
            loss, new, metrics = objective.apply(state, outputs, batch)
            return loss, (new, metrics)

        sides = (batch["images"], batch["texts"])
        (loss, (new, metrics)), gradient = jax.value_and_grad(loss_of, has_aux=True)(sides)
        gradient = jax.tree.map(lambda x: x / parallel.device_count(), gradient)
        return new, (parallel.mean(loss), metrics, parallel.all_gather(gradient))

    state = jax.tree.map(np.asarray, objective.init(jax.random.key(0), SPEC))
    placed = parallel.placements(state)
    mapped = devices.map(function, (placed, "split"), (placed, "replicated"))
    states, found = [state], []
    on_devices = devices.place(state)
    for images, texts in sides[:steps]:
        batch = {"images": images, "texts": texts, "image_id": IDS, "weight": weight}
        on_devices, results = mapped(on_devices, devices.split(batch))
        found.append(devices.fetch(results))
        states.append(devices.fetch(on_devices))
    return found, states


def distance(a, b):
    return float(np.linalg.norm(a.astype(np.float64) - b.astype(np.float64)))


def hinge_by_hand(images, texts, margin=lambda *_: 0.2, kind="hardest"):
    """(loss, share of the hardest that cost) pair by pair, without the padding."""
    loss, violating = 0.0, 0
    for one, other in ((images, texts), (texts, images)):
        for i in ROWS:
            costs = [
                max(0.0, margin(i, j) + distance(one[i], other[i]) - distance(one[i], other[j]))
                for j in ROWS
                if IDS[j] != IDS[i]
            ]
            loss += max(costs) if kind == "hardest" else sum(costs)
            violating += max(costs) > 0
    return loss, violating / (2 * len(ROWS))


@pytest.mark.parametrize("negatives", ["hardest", "all"])
def test_the_hinge_is_on_distances(negatives):
    objective = leap(dataclasses.replace(HINGE, negatives=negatives))
    images, texts = embeddings()
    [(loss, metrics, gradient)], _ = run(objective, [(images, texts)])
    expected, violating = hinge_by_hand(images, texts, kind=negatives)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["violating"], violating, rtol=1e-6)
    positive = np.mean([distance(images[i], texts[i]) for i in ROWS])
    np.testing.assert_allclose(metrics["distance/positive"], positive, rtol=1e-5)
    assert not np.any(gradient[0][7])
    # Central differences at one coordinate of each side.
    for side in (0, 1):
        ends = []
        for sign in (1, -1):
            moved = [images.astype(np.float64), texts.astype(np.float64)]
            moved[side][2, 1] += sign * 1e-5
            ends.append(hinge_by_hand(*moved, kind=negatives)[0])
        np.testing.assert_allclose(
            gradient[side][2, 1], (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-3
        )


def test_the_gap_moves_the_margin():
    images, texts = embeddings()
    [(_, metrics, _)], (before, after) = run(leap(HINGE), [(images, texts)])
    positive = np.mean([distance(images[i], texts[i]) for i in ROWS])
    negative = np.mean(
        [distance(images[i], texts[j]) for i in ROWS for j in ROWS if IDS[i] != IDS[j]]
    )
    target = np.clip(0.5 * (negative - positive), 0.05, 0.5)
    np.testing.assert_allclose(metrics["distance/negative"], negative, rtol=1e-5)
    assert before.margin.margin == np.float32(0.2)
    np.testing.assert_allclose(after.margin.margin, 0.9 * 0.2 + 0.1 * target, rtol=1e-5)
    assert metrics["margin"] == np.float32(0.2)  # the one used


@pytest.mark.parametrize(("share", "sign"), [(1.0, 1), (0.0, -1)])
def test_the_active_share_moves_the_margin_up_or_down(share, sign):
    rule = dataclasses.replace(HINGE, rule="active", active_share=share)
    images, texts = embeddings()
    _, (_, after) = run(leap(rule), [(images, texts)])
    violating = hinge_by_hand(images, texts)[1]
    assert 0 < violating < 1
    np.testing.assert_allclose(after.margin.margin, 0.2 + 0.1 * (share - violating), rtol=1e-5)
    assert np.sign(after.margin.margin - 0.2) == sign
    tight = dataclasses.replace(rule, least=0.199, most=0.201)
    _, (_, after) = run(leap(tight), [(images, texts)])
    np.testing.assert_allclose(after.margin.margin, 0.2 + sign * 0.001, rtol=1e-5)


def test_a_fixed_margin_stays():
    _, states = run(leap(dataclasses.replace(HINGE, rule="fixed")), [embeddings()] * 3, steps=3)
    assert [float(state.margin.margin) for state in states] == [np.float32(0.2)] * 4


def test_all_negatives_come_before_the_hardest():
    objective = leap(dataclasses.replace(HINGE, rule="fixed", warmup_epochs=0.5))
    images, texts = embeddings()
    found, _ = run(objective, [(images, texts)] * 2, steps=2)
    expected = [hinge_by_hand(images, texts, kind=kind)[0] for kind in ("all", "hardest")]
    np.testing.assert_allclose([loss for loss, _, _ in found], expected, rtol=1e-5)
    assert [float(metrics["collapse"]) > 0 for _, metrics, _ in found] == [False, True]


def test_the_cross_entropy_can_come_first_and_the_margin_follows_the_distances():
    hinge = dataclasses.replace(HINGE, warmup="infonce", warmup_epochs=0.5)
    images, texts = embeddings()
    [(loss, metrics, _), _], states = run(leap(hinge), [(images, texts)] * 2, steps=2)
    expected = 0.0
    for own, other in ((images, texts), (texts, images)):
        for i in ROWS:
            logits = [-distance(own[i], other[j]) / 0.3 for j in ROWS if j == i or IDS[j] != IDS[i]]
            right = -distance(own[i], other[i]) / 0.3
            expected += np.log(np.sum(np.exp(logits))) - right
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["collapse"] == 0
    # As the hinge over all negatives would move it.
    all_negatives = dataclasses.replace(HINGE, negatives="all")
    _, others = run(leap(all_negatives), [(images, texts)])
    np.testing.assert_allclose(states[1].margin.margin, others[1].margin.margin, rtol=1e-6)


def moved_table(table, images, texts, alpha=0.5):
    """c - alpha sum(c - e) / (1 + n) over the pictures and captions of each concept."""
    new = table.copy()
    for concept in np.unique(IDS[ROWS]):
        mine = [side[i] for side in (images, texts) for i in ROWS if IDS[i] == concept]
        step = sum(table[concept] - e for e in mine) / (1 + len(mine))
        new[concept] = table[concept] - alpha * step
    return new


def center_by_hand(table, images, texts):
    total = 0.0
    for i in ROWS:
        center = table[IDS[i]]
        if np.any(center):
            total += distance(images[i], center) ** 2 + distance(texts[i], center) ** 2
    return total / 2 / len(ROWS)


def test_the_table_of_centers_moves_and_draws():
    sides = [embeddings(0), embeddings(1)]
    found, states = run(leap(OFF, CENTER), sides, steps=2)
    table = np.zeros((10, D), np.float32)
    for (images, texts), (loss, _, gradient), state in zip(sides, found, states[1:], strict=True):
        np.testing.assert_allclose(loss, center_by_hand(table, images, texts), atol=1e-5)
        seen = np.any(table[IDS], axis=1) & (WEIGHT > 0)
        expected = np.where(seen[:, None], images - table[IDS], 0.0) / len(ROWS)
        np.testing.assert_allclose(gradient[0], expected, atol=1e-6)
        table = moved_table(table, images, texts)
        np.testing.assert_allclose(state.centers.rows, table, atol=1e-6)
    assert float(found[1][0]) > 0.1


def test_centers_of_the_batch():
    images, texts = embeddings()
    [(loss, _, gradient)], states = run(
        leap(OFF, dataclasses.replace(CENTER, kind="batch")), [(images, texts)]
    )
    centers = np.zeros((10, D))
    for concept in np.unique(IDS[ROWS]):
        mine = [side[i] for side in (images, texts) for i in ROWS if IDS[i] == concept]
        centers[concept] = np.mean(mine, axis=0)
    np.testing.assert_allclose(loss, center_by_hand(centers, images, texts), rtol=1e-5)
    expected = np.where(WEIGHT[:, None] > 0, texts - centers[IDS], 0.0) / len(ROWS)
    np.testing.assert_allclose(gradient[1], expected, atol=1e-6)
    assert states[1].centers is None


@pytest.mark.parametrize("quantized", [False, True])
def test_pairs_that_mean_the_same_are_pushed_apart_less(quantized):
    """Meanings are the concepts' centers, with a quantizer what these are stored as."""
    hinge = dataclasses.replace(HINGE, rule="fixed", pair_margins=True)
    sides = [embeddings(0), embeddings(1), embeddings(2)]
    tiny = dataclasses.replace(CENTER, weight=1e-9)
    still = dataclasses.replace(
        QUANTIZER, codes=3, beta=0.0, rule="gradient", rate=0.0, dead_share=0.0
    )
    found, states = run(leap(hinge, tiny, still if quantized else None), sides, steps=3)
    # Before any concept has a center every margin is m.
    np.testing.assert_allclose(found[0][0], hinge_by_hand(*sides[0])[0], rtol=1e-5)

    def meanings(state):
        if not quantized:
            return state.centers.rows
        book = state.quantizer.codebook.centroids
        return decoded(codes_by_hand(state.centers.rows, book), book)

    table, spread = meanings(states[2]), float(states[2].margin.spread)
    if quantized:
        assert np.max(np.abs(table[:6] - states[2].centers.rows[:6])) > 0.1
    near = [distance(table[IDS[i]], table[IDS[i - 1]]) for i in range(1, 7) if IDS[i] != IDS[i - 1]]
    before = meanings(states[1])
    first = [distance(before[IDS[i]], before[IDS[i - 1]]) for i in range(1, 7)]
    np.testing.assert_allclose(spread, np.mean(first), rtol=1e-5)
    spread = 0.9 * spread + 0.1 * np.mean(near)
    np.testing.assert_allclose(states[3].margin.spread, spread, rtol=1e-5)

    def margin(i, j):
        ratio = distance(table[IDS[i]], table[IDS[j]]) / spread
        return 0.2 * np.clip(ratio, 0.5, 1.5)

    expected, _ = hinge_by_hand(*sides[2], margin=margin)
    assert abs(expected - hinge_by_hand(*sides[2])[0]) > 0.01
    np.testing.assert_allclose(found[2][0], expected, rtol=1e-4)


def test_embeddings_in_one_point_are_a_collapse_with_any_margins():
    """Also where the hardest negative is the one of the largest margin."""
    cone = np.asarray([1.0, 0.0, 0.0, 0.0], np.float32) + 1e-4 * np.asarray(embeddings())
    hinge = dataclasses.replace(HINGE, rule="fixed", pair_margins=True)
    found, _ = run(leap(hinge, CENTER), [cone, cone, cone], steps=3)
    for _, metrics, _ in found:
        np.testing.assert_allclose(metrics["collapse"], 1.0, atol=0.01)
    # Margins of their own: a pair costs more than twice the margin.
    assert found[2][1]["loss_per_pair"] > 0.42


def codes_by_hand(z, codebook):
    parts = z.reshape(len(z), codebook.shape[0], -1)
    return np.argmin(np.sum((parts[:, :, None] - codebook[None]) ** 2, axis=3), axis=2)


def decoded(codes, codebook):
    return np.concatenate([codebook[m][codes[:, m]] for m in range(len(codebook))], axis=1)


def test_the_quantizer_commits_tells_apart_and_moves():
    sides = [embeddings(0), embeddings(1)]
    # No code of the second step is dead: it uses the codebook that the first left.
    found, states = run(leap(OFF, None, QUANTIZER, MULTITASK), sides, steps=2)
    before, after = states[1].quantizer, states[2].quantizer
    assert np.all(before.totals > 0.01 * before.totals.sum(1, keepdims=True) / 9)  # none dead
    book, (images, texts) = before.codebook.centroids, sides[1]
    codes = [codes_by_hand(z, book) for z in (images, texts)]
    e = [decoded(code, book) for code in codes]
    commitment = sum(
        distance(z[i], q[i]) ** 2 for z, q in zip((images, texts), e, strict=True) for i in ROWS
    )
    entropy = 0.0
    for z, classes in ((images, codes[1]), (texts, codes[0])):
        parts = z.reshape(8, 2, 2)
        logits = -np.sum((parts[:, :, None] - book[None]) ** 2, axis=3) / 0.2
        logs = logits - np.log(np.sum(np.exp(logits), axis=2, keepdims=True))
        entropy -= sum(logs[i, m, classes[i, m]] / 2 for i in ROWS for m in range(2))
    expected = (0.25 * commitment + entropy / 2) / len(ROWS)
    np.testing.assert_allclose(found[1][0], expected, rtol=1e-4)
    np.testing.assert_allclose(found[1][1]["code_entropy"], entropy / 2 / len(ROWS), rtol=1e-4)
    totals, sums = 0.8 * before.totals, 0.8 * before.sums
    for z, code in zip((images, texts), codes, strict=True):
        for i in ROWS:
            for m in range(2):
                totals[m, code[i, m]] += 0.2
                sums[m, code[i, m]] += 0.2 * z[i, 2 * m : 2 * m + 2]
    np.testing.assert_allclose(after.totals, totals, rtol=1e-5)
    np.testing.assert_allclose(
        after.codebook.centroids, sums / totals[:, :, None], rtol=1e-4, atol=1e-6
    )


def test_the_perplexity_is_that_of_the_codes_chosen():
    """New codes count for nothing, though they begin with the totals of others."""
    sides = [embeddings(0), embeddings(1)]
    found, states = run(leap(OFF, None, QUANTIZER), sides, steps=2)
    before, after = states[1].quantizer, states[2].quantizer
    np.testing.assert_allclose(np.sum(before.chosen, axis=1), 0.2 * 14, rtol=1e-5)
    counts = 0.8 * before.chosen
    z = np.concatenate([side[ROWS] for side in sides[1]])
    for code in codes_by_hand(z, before.codebook.centroids):
        counts[np.arange(2), code] += 0.2
    np.testing.assert_allclose(after.chosen, counts, rtol=1e-5)
    shares = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    expected = np.mean(np.exp(-np.sum(shares * logs, axis=1)))
    np.testing.assert_allclose(found[1][1]["code_perplexity"], expected, rtol=1e-4)
    point = np.ones((2, 8, D), np.float32)
    found, _ = run(leap(OFF, None, QUANTIZER), [point] * 4, steps=4)
    assert [float(metrics["code_perplexity"]) for _, metrics, _ in found] == [1.0] * 4


def test_a_code_that_dies_is_put_on_an_embedding_and_lives():
    """By states alone: a code below the share before a step lies on a row of the batch after it."""
    first, later = np.asarray(embeddings()), 0.1 * np.asarray(embeddings(1)) + 1.0
    still = dataclasses.replace(
        QUANTIZER, codes=4, decay=0.5, dead_share=0.25, rule="gradient", rate=0.0
    )
    _, states = run(leap(OFF, None, still), [first, *[later] * 6], steps=7)
    rows = later[:, ROWS].reshape(-1, 2, 2)
    died = 0
    for before, after in itertools.pairwise(states[1:]):
        totals = before.quantizer.totals
        dead = totals <= 0.25 * totals.mean(axis=1, keepdims=True)
        died += dead.sum()
        old, new = before.quantizer.codebook.centroids, after.quantizer.codebook.centroids
        np.testing.assert_array_equal(new[~dead], old[~dead])
        for m, k in zip(*np.nonzero(dead), strict=True):
            assert np.min(np.max(np.abs(rows[:, m] - new[m, k]), axis=1)) < 1e-6
            # Half of an even total stays of it, and what chose it has come.
            assert after.quantizer.totals[m, k] >= 0.5 * totals[m].mean() - 1e-5
    assert died > 0


def test_the_codebook_can_move_by_gradient():
    sides = [embeddings(0), embeddings(1)]
    moving = dataclasses.replace(QUANTIZER, codes=3, rule="gradient", rate=0.3, dead_share=0.0)
    _, states = run(leap(OFF, None, moving), sides, steps=2)
    old, new = (state.quantizer.codebook.centroids for state in states[1:])
    z = np.concatenate([side[ROWS] for side in sides[1]])
    codes, parts = codes_by_hand(z, old), z.reshape(len(z), 2, 2)

    def error(book):  # the mean over the rows of |sg(z) - e|^2
        return jnp.mean(sum(jnp.sum((parts[:, m] - book[m][codes[:, m]]) ** 2, 1) for m in (0, 1)))

    expected = old - 0.3 * jax.grad(error)(jnp.asarray(old))
    np.testing.assert_allclose(new, expected, atol=1e-6)
    assert np.max(np.abs(new - old)) > 0.01


def test_a_code_that_nothing_chooses_stays_where_it_is():
    """Its totals vanish: 0.01^13 is below what divides."""
    idle = dataclasses.replace(QUANTIZER, codes=4, decay=0.01, dead_share=0.0)
    first, later = np.asarray(embeddings()), np.ones((2, 8, D), np.float32)
    _, states = run(leap(OFF, None, idle), [first, *[later] * 13], steps=14)
    old, new = (state.quantizer for state in (states[1], states[-1]))
    unused = new.chosen < 1e-12
    assert unused.any()
    np.testing.assert_allclose(
        new.codebook.centroids[unused], old.codebook.centroids[unused], atol=1e-5
    )


def test_the_first_batch_seeds_the_codebook():
    """With codes enough each embedding is one, and none is far from any."""
    many = dataclasses.replace(QUANTIZER, codes=14, decay=0.0)
    images, texts = embeddings()
    [(_, metrics, _)], _ = run(leap(OFF, None, many), [(images, texts)])
    assert metrics["quantization"] < 1e-10


def test_the_codebook_begins_anew_in_the_principal_axes_of_the_embeddings():
    """Nothing is charged for it before; from then on codes are those of the turned embeddings."""
    sides = [embeddings(seed) for seed in range(4)]
    turning = dataclasses.replace(QUANTIZER, codes=2, rotate_at=(0.5,))
    hinge = dataclasses.replace(OFF, quantized=1.0, quantized_distance="symmetric", rule="fixed")
    found, states = run(leap(hinge, None, turning, MULTITASK), sides, steps=4)
    assert [float(loss) == 0.0 for loss, _, _ in found] == [True, True, False, False]
    assert not np.any(found[1][2][0])
    np.testing.assert_array_equal(states[2].quantizer.codebook.rotation, np.eye(D))

    seen = [np.concatenate([images[ROWS], texts[ROWS]]) for images, texts in sides[:2]]
    weights = [0.8 / 1.8, 1.0 / 1.8]  # of the moving average
    mean = sum(w * np.mean(z, axis=0) for w, z in zip(weights, seen, strict=True))
    squares = sum(w * z.T @ z / len(z) for w, z in zip(weights, seen, strict=True))
    axes = np.linalg.eigh(squares - np.outer(mean, mean))[1]
    expected = axes[:, [3, 0, 2, 1]]  # the largest and the least, and those between
    book = states[3].quantizer.codebook
    np.testing.assert_allclose(np.abs(expected.T @ book.rotation), np.eye(D), atol=1e-3)
    np.testing.assert_array_equal(states[4].quantizer.codebook.rotation, book.rotation)

    images, texts = (
        decoded(codes_by_hand(z @ book.rotation, book.centroids), book.centroids) @ book.rotation.T
        for z in sides[3]
    )
    expected, _ = hinge_by_hand(images, texts)
    commitment = sum(
        distance(z[i], q[i]) ** 2
        for z, q in zip(sides[3], (images, texts), strict=True) for i in ROWS
    )  # fmt: skip
    expected += 0.25 * commitment / len(ROWS) + found[3][1]["code_entropy"]
    np.testing.assert_allclose(found[3][0], expected, rtol=1e-4)


def test_the_hinge_on_quantized_embeddings_has_the_gradient_of_the_embeddings():
    hinge = dataclasses.replace(OFF, quantized=1.0, quantized_distance="symmetric", rule="fixed")
    quiet = dataclasses.replace(QUANTIZER, beta=0.0)
    sides = [embeddings(0), embeddings(1)]
    found, states = run(leap(hinge, None, quiet), sides, steps=2)
    book = states[1].quantizer.codebook.centroids
    images, texts = (decoded(codes_by_hand(z, book), book) for z in sides[1])
    expected, _ = hinge_by_hand(images, texts)
    np.testing.assert_allclose(found[1][0], expected, rtol=1e-4)
    plain = leap(dataclasses.replace(HINGE, rule="fixed"))
    [(_, _, gradient)], _ = run(plain, [(images, texts)])
    for one, other in zip(found[1][2], gradient, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_asymmetric_hinge_searches_quantized_embeddings_by_those_as_they_are():
    """Against a dense one in jax.numpy: a side's gradient comes as query and straight through."""
    hinge = dataclasses.replace(OFF, quantized=1.0, rule="fixed")
    quiet = dataclasses.replace(QUANTIZER, beta=0.0)
    sides = [embeddings(0), embeddings(1)]
    found, states = run(leap(hinge, None, quiet), sides, steps=2)
    book = states[1].quantizer.codebook.centroids
    stored = [decoded(codes_by_hand(z, book), book) for z in sides[1]]
    others = (IDS[:, None] != IDS[None]) & (WEIGHT[None] > 0)

    def dense(images, texts):
        quantized = [
            z + (q - np.asarray(s))
            for z, q, s in zip((images, texts), stored, sides[1], strict=True)
        ]
        total = 0.0
        for queries, keys in ((images, quantized[1]), (texts, quantized[0])):
            apart = jnp.sqrt(jnp.sum((queries[:, None] - keys[None]) ** 2, axis=2))
            hardest = jnp.min(jnp.where(others, apart, jnp.inf), axis=1)
            cost = jnp.maximum(0.2 + jnp.diagonal(apart) - hardest, 0.0)
            total += jnp.sum(jnp.where(WEIGHT > 0, cost, 0.0))
        return total

    expected, gradient = jax.value_and_grad(dense, (0, 1))(*map(jnp.asarray, sides[1]))
    np.testing.assert_allclose(found[1][0], expected, rtol=1e-4)
    for one, other in zip(found[1][2], gradient, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "objective"), [("shard_map", WHOLE), ("pmap", WHOLE), ("shard_map", OTHERWISE)]
)
def test_four_devices_do_what_one_does(mode, objective):
    sides = [embeddings(seed) for seed in range(4)]
    one, one_states = run(objective, sides, steps=4)
    four, four_states = run(objective, sides, steps=4, mode=mode, count=4)
    for found, expected in ((four, one), (four_states, one_states)):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", [WHOLE, OTHERWISE])
@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_the_state_is_the_same_on_every_device_to_the_bit(mode, objective):
    devices = Devices(mode, tuple(jax.devices()[:4]))

    def function(state, batch):
        mask = jnp.ones((batch["images"].shape[0], 1), bool)
        outputs = {
            name: Encoding(batch[key][:, None], mask, batch[key])
            for name, key in (("image", "images"), ("text", "texts"))
        }
        _, new, _ = objective.apply(state, outputs, batch)
        return new, jax.tree.map(lambda x: x[None], new.replace(centers=None))

    state = jax.tree.map(np.asarray, objective.init(jax.random.key(0), SPEC))
    placed = parallel.placements(state)
    mapped = devices.map(function, (placed, "split"), (placed, "split"))
    state = devices.place(state)
    for seed in range(3):
        images, texts = embeddings(seed)
        batch = {"images": images, "texts": texts, "image_id": IDS, "weight": WEIGHT}
        state, everywhere = mapped(state, devices.split(batch))
        for leaf in map(np.asarray, jax.tree.leaves(everywhere)):
            assert len(leaf) == 4
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    if state.centers is not None:
        # But the table, of whose 10 rows each device holds 3 at most.
        held = [shard.data.size for shard in state.centers.rows.addressable_shards]
        assert held == [3 * D] * 4


@pytest.mark.parametrize("steps", [1875, 1876, 4, 3])
def test_a_codebook_begins_anew_after_the_validation_of_its_share(steps):
    """Which comes after as many steps as the share has, rounded up."""
    options = dataclasses.replace(QUANTIZER, rotate_at=(0.25, 0.5, 0.75))
    found = quantizer.empty(options, SPEC.replace(steps=steps)).rotation.steps
    expected = [min(-(-steps * quarter // 4), steps - 1) for quarter in (1, 2, 3)]
    assert list(found) == expected


def test_running_distances_follow_those_of_the_batches():
    sides = [embeddings(seed) for seed in range(3)]
    found, states = run(leap(HINGE), sides, steps=3)
    positive = negative = None
    for (images, texts), (_, metrics, _), state in zip(sides, found, states[1:], strict=True):
        near = np.mean([distance(images[i], texts[i]) for i in ROWS])
        far = np.mean(
            [distance(images[i], texts[j]) for i in ROWS for j in ROWS if IDS[i] != IDS[j]]
        )
        positive = near if positive is None else 0.9 * positive + 0.1 * near
        negative = far if negative is None else 0.9 * negative + 0.1 * far
        np.testing.assert_allclose([state.margin.positive, state.margin.negative],
                                   [positive, negative], rtol=1e-5)  # fmt: skip
        assert metrics["distance/positive"] == state.margin.positive
        assert metrics["distance/negative"] == state.margin.negative


def test_gradients_are_finite_where_everything_coincides():
    same = np.tile(np.eye(1, D, dtype=np.float32), (8, 1))
    found, states = run(WHOLE, [(same, same)] * 3, steps=3)
    for leaf in jax.tree.leaves((found, states)):
        assert np.isfinite(leaf).all()


def test_a_batch_of_padding_alone_changes_no_center_and_costs_nothing():
    found, states = run(WHOLE, [embeddings()], weight=np.zeros(8, np.float32))
    assert found[0][0] == 0.0
    for leaf in jax.tree.leaves((found, states)):
        assert np.isfinite(leaf).all()
    assert not np.any(states[1].centers.rows)
