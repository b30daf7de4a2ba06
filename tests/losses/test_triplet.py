import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.losses import triplet
from vse_jax.losses.blocks import Rows, negative_counts
from vse_jax.similarity import dot, negative_euclidean

MARGIN = 0.2
# Pictures 0 and 1 come twice; the last two keys and the last query are padding.
KEY_IDS = np.array([0, 1, 0, 2, 3, 1, 4, 5, 6, 9, 9], np.int32)
KEY_WHERE = np.array([True] * 9 + [False] * 2)
QUERIES = 5
QUERY_WHERE = np.array([True] * 4 + [False])
CHUNKS = [1, 4, 7, 11, 4096]
SIMILARITIES = {"dot": dot, "negative_euclidean": negative_euclidean}
# Each similarity by some of the chunks, whole and uneven ones.
CASES = [
    *(("dot", chunk) for chunk in (1, 4, 4096)),
    *(("negative_euclidean", chunk) for chunk in (7, 11)),
]
LOSSES = {"hardest": triplet.hardest_hinge, "all": triplet.all_hinge}


def embeddings(seed=0):
    draw = np.random.default_rng(seed).normal(size=(2, len(KEY_IDS), 4)).astype(np.float32)
    queries, keys = draw / np.linalg.norm(draw, axis=-1, keepdims=True)
    return queries[:QUERIES], keys


def one_score(how, query, key):
    return float(query @ key if how == "dot" else -np.linalg.norm(query - key))


def by_hand(kind, how, queries, keys, query_ids, query_where, key_ids, key_where):
    """sum_i max_j (or sum_j) [margin + s_ij - s_ii]+ over negatives j, pair by pair."""
    loss, hardest = 0.0, []
    for i in range(len(queries)):
        own = one_score(how, queries[i], keys[i])
        scores = [
            one_score(how, queries[i], keys[j])
            for j in range(len(keys))
            if key_where[j] and key_ids[j] != query_ids[i]
        ]
        hardest.append(max(scores, default=-np.inf))
        costs = [max(0.0, MARGIN + score - own) for score in scores]
        if query_where[i]:
            loss += max(costs, default=0.0) if kind == "hardest" else sum(costs)
    return loss, np.array(hardest)


def dense(kind, how, queries, keys, query_ids, query_where, key_ids, key_where):
    """The same with all scores at once, for automatic differentiation."""
    scores = queries @ keys.T
    if how == "negative_euclidean":
        scores = -jnp.linalg.norm(queries[:, None] - keys[None], axis=-1)
    own = jnp.diagonal(scores)[: len(queries), None]
    negative = (query_ids[:, None] != key_ids[None]) & key_where[None] & query_where[:, None]
    cost = jnp.where(negative, jnp.maximum(MARGIN + scores - own, 0.0), 0.0)
    return jnp.sum(jnp.max(cost, axis=1) if kind == "hardest" else cost)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="how")
def ours(kind, chunk, queries, keys, query_ids, query_where, key_ids, key_where, how="dot"):
    similarity = SIMILARITIES[how]
    positive = similarity.rows(queries, keys[: len(queries)])
    sides = Rows(queries, query_ids, query_where), Rows(keys, key_ids, key_where)
    loss, seen = LOSSES[kind](similarity, *sides, positive, MARGIN, chunk)
    return loss, seen.hardest


@pytest.mark.parametrize(("how", "chunk"), CASES)
@pytest.mark.parametrize("kind", LOSSES)
def test_the_value_is_that_of_the_formula_for_every_chunk(kind, how, chunk):
    queries, keys = embeddings()
    rest = KEY_IDS[:QUERIES], QUERY_WHERE, KEY_IDS, KEY_WHERE
    loss, hardest = ours(kind, chunk, *map(jnp.asarray, (queries, keys, *rest)), how=how)
    expected, expected_hardest = by_hand(kind, how, queries, keys, *rest)
    assert expected > 0.5
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(
        hardest[QUERY_WHERE], expected_hardest[QUERY_WHERE], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("how", "chunk"), CASES)
@pytest.mark.parametrize("kind", LOSSES)
def test_the_gradient_is_that_of_all_scores_at_once(kind, how, chunk):
    queries, keys = map(jnp.asarray, embeddings(1))
    rest = tuple(map(jnp.asarray, (KEY_IDS[:QUERIES], QUERY_WHERE, KEY_IDS, KEY_WHERE)))
    found = jax.grad(lambda q, k: ours(kind, chunk, q, k, *rest, how=how)[0], (0, 1))(queries, keys)
    expected = jax.grad(lambda q, k: dense(kind, how, q, k, *rest), (0, 1))(queries, keys)
    assert np.abs(expected[0]).max() > 0.1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_what_is_padded_gets_no_gradient(kind):
    queries, keys = map(jnp.asarray, embeddings())
    rest = tuple(map(jnp.asarray, (KEY_IDS[:QUERIES], QUERY_WHERE, KEY_IDS, KEY_WHERE)))
    dq, dk = jax.grad(lambda q, k: ours(kind, 3, q, k, *rest)[0], (0, 1))(queries, keys)
    assert not np.any(dq[~QUERY_WHERE])
    assert not np.any(dk[~KEY_WHERE])


@pytest.mark.parametrize("ids", [[3, 3, 3, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("kind", LOSSES)
def test_without_negatives_the_loss_and_its_gradient_are_zero(kind, ids):
    """All keys show one picture, or all others are padding."""
    keys = jnp.asarray(embeddings()[1][:4])
    ids = jnp.asarray(ids, jnp.int32)
    where = jnp.asarray([True, ids[1] == 3, ids[1] == 3, ids[1] == 3])

    def loss_of(keys):
        return ours(kind, 3, keys, keys, ids, where, ids, where)

    (loss, hardest), gradient = jax.value_and_grad(loss_of, has_aux=True)(keys)
    assert loss == 0.0
    assert np.all(np.isneginf(np.asarray(hardest)[np.asarray(where)]))
    assert not np.any(gradient)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_gradient_is_finite_where_all_embeddings_coincide(kind):
    keys = jnp.tile(jnp.asarray([[0.6, 0.8, 0.0]], jnp.float32), (6, 1))
    ids = jnp.asarray([0, 1, 2, 3, 4, 4], jnp.int32)
    where = jnp.ones(6, bool)

    def loss_of(keys):
        return ours(kind, 4, keys, keys, ids, where, ids, where)[0]

    loss, gradient = jax.value_and_grad(loss_of)(keys)
    negatives = [5, 5, 5, 5, 4, 4] if kind == "all" else [1] * 6
    np.testing.assert_allclose(loss, MARGIN * sum(negatives), rtol=1e-5)
    assert np.all(np.isfinite(gradient))


def chosen(queries, keys, chunk):
    """(number of the one key through which the gradient flows, its score) for a single query."""
    ids, one = jnp.arange(len(keys), dtype=jnp.int32), jnp.ones(1, bool)

    def loss_of(keys):
        sides = Rows(queries, ids[:1], one), Rows(keys, ids, jnp.ones(len(keys), bool))
        loss, seen = triplet.hardest_hinge(dot, *sides, jnp.zeros(1), 100.0, chunk)
        return loss, seen.hardest

    gradient, hardest = jax.grad(loss_of, has_aux=True)(keys)
    (number,) = np.flatnonzero(np.any(np.asarray(gradient), axis=1))
    return int(number), float(hardest[0])


@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_the_hardest_negative_is_the_first_of_equals_whatever_the_chunk(chunk):
    keys = jnp.asarray([[1.0, 0.0], [0.5, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert chosen(keys[:1], keys, chunk) == (2, 1.0)


def test_scores_below_minus_one_are_still_found():
    """Nothing relies on cosines: the padding of an uneven chunk has the score 0."""
    keys = jnp.asarray([[-1.0, 0.0], [-9.0, 0.0], [-7.0, 0.0]])
    assert chosen(jnp.asarray([[1.0, 0.0]]), keys, 2) == (2, -7.0)


def test_memory_grows_with_the_chunk_not_with_the_keys():
    """No value of the compiled gradient holds all scores."""
    b, n, d, chunk = 64, 4096, 8, 32
    arguments = (
        jnp.zeros((b, d)), jnp.zeros((n, d)), jnp.arange(b), jnp.ones(b, bool),
        jnp.arange(n), jnp.ones(n, bool),
    )  # fmt: skip
    for kind in LOSSES:
        gradient = jax.grad(lambda *a, kind=kind: ours(kind, chunk, *a)[0], (0, 1))
        compiled = jax.jit(gradient).lower(*arguments).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < b * n * 4


def test_hinge_by_hand():
    positive, negative = jnp.asarray([0.5, 0.9, 0.0]), jnp.asarray([0.4, 0.1, 0.0])
    where = jnp.asarray([True, True, False])
    np.testing.assert_allclose(triplet.hinge(positive, negative, 0.2, where), 0.1, rtol=1e-5)
    np.testing.assert_allclose(
        triplet.hinge(positive, negative, jnp.asarray([0.2, 1.0, 5.0]), where), 0.3, rtol=1e-5
    )


def pair_margin(queries, keys):
    """A margin of each pair, larger for pairs that mean unlike things."""
    return 0.1 + jnp.abs(queries.meanings[:, None, 0] - keys.meanings[None, :, 0])


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("kind", LOSSES)
def test_a_margin_for_each_pair(kind, chunk):
    """The hardest negative is the one that costs most, its own margin included."""
    queries, keys = embeddings(2)
    meanings = np.random.default_rng(3).uniform(0, 2, (len(keys), 1)).astype(np.float32)
    sides = (
        Rows(queries, KEY_IDS[:QUERIES], QUERY_WHERE, meanings[:QUERIES]),
        Rows(keys, KEY_IDS, KEY_WHERE, meanings),
    )
    sides = jax.tree.map(jnp.asarray, sides)

    @jax.jit
    def run(sides):
        positive = dot.rows(sides[0].vectors, sides[1].vectors[:QUERIES])
        return LOSSES[kind](dot, *sides, positive, pair_margin, chunk)

    (loss, seen), gradient = jax.value_and_grad(run, has_aux=True, allow_int=True)(sides)
    expected, other_choice = 0.0, 0
    for i in range(QUERIES):
        where = [j for j in range(len(keys)) if KEY_WHERE[j] and KEY_IDS[j] != KEY_IDS[i]]
        scores = np.array([queries[i] @ keys[j] for j in where])
        margins = np.array([0.1 + abs(meanings[i, 0] - meanings[j, 0]) for j in where])
        costs = np.maximum(margins + scores - queries[i] @ keys[i], 0.0)
        if QUERY_WHERE[i]:
            expected += costs.max() if kind == "hardest" else costs.sum()
        worst = np.argmax(margins + scores)
        other_choice += worst != np.argmax(scores)
        np.testing.assert_allclose(seen.hardest[i], scores[worst], rtol=1e-5)
        np.testing.assert_allclose(seen.margin[i], margins[worst], rtol=1e-5)
        np.testing.assert_allclose(seen.total[i], scores.sum(), rtol=1e-4, atol=1e-5)
        assert negative_counts(*sides)[i] == len(where)
    assert other_choice > 0
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert np.any(gradient[1].vectors)
    # No gradient flows through a margin.
    assert not np.any(gradient[0].meanings)
    assert not np.any(gradient[1].meanings)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)], ids=["one", "all"])
@pytest.mark.parametrize("kind", ["hardest", "all"])
def test_embeddings_that_are_not_numbers_are_not_left_out(kind, rows):
    """They must reach the loss, which stops the run: also where no score is a number."""
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    vectors[rows] = np.nan
    sides = Rows(jnp.asarray(vectors), jnp.arange(6), jnp.ones(6, bool))
    positive = dot.rows(sides.vectors, sides.vectors)
    loss, seen = LOSSES[kind](dot, sides, sides, positive, MARGIN, 4)
    assert np.isnan(loss)
    assert np.isnan(seen.total).any()
