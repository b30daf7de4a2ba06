"""The quantizer's terms against loops written from their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax import codebook as codebooks
from vse_jax.codebook import Codebook
from vse_jax.losses import codes as losses

M, K, P, B = 2, 4, 3, 6
WHERE = np.array([True] * 5 + [False])


def data(seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(B, M * P)).astype(np.float32)
    codebook = rng.normal(size=(M, K, P)).astype(np.float32)
    chosen = np.asarray(codebooks.encode(jnp.asarray(z), Codebook(jnp.asarray(codebook))))
    return z, codebook, chosen


def parts(z):
    return z.reshape(B, M, P).swapaxes(0, 1)


def test_commitment_draws_embeddings_alone():
    z, codebook, chosen = data()
    e = np.asarray(codebooks.decode(jnp.asarray(chosen), Codebook(jnp.asarray(codebook))))

    def loss(z, e):
        return losses.commitment(z, e, jnp.asarray(WHERE))

    value, (to_z, to_e) = jax.value_and_grad(loss, (0, 1))(jnp.asarray(z), jnp.asarray(e))
    expected = sum(np.sum((z[i] - e[i]) ** 2) for i in range(B) if WHERE[i])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(to_z, np.where(WHERE[:, None], 2 * (z - e), 0.0), rtol=1e-5)
    assert not np.any(to_e)


def test_the_cross_entropy_of_the_other_sides_codes():
    z, codebook, _ = data()
    _, _, codes = data(1)
    found = losses.code_cross_entropy(
        jnp.asarray(z), jnp.asarray(codes), Codebook(jnp.asarray(codebook)), 0.3, jnp.asarray(WHERE)
    )
    expected = 0.0
    for i in range(B):
        for m in range(M):
            part = z[i, m * P : (m + 1) * P].astype(np.float64)
            logits = [-np.sum((part - codebook[m, k]) ** 2) / 0.3 for k in range(K)]
            share = np.exp(logits[codes[i, m]]) / np.sum(np.exp(logits))
            expected -= WHERE[i] * np.log(share) / M
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_usage_counts_and_sums_the_parts():
    z, codebook, chosen = data()
    counts, sums = losses.usage(*jax.tree.map(jnp.asarray, (z, chosen, Codebook(codebook), WHERE)))
    for m in range(M):
        for k in range(K):
            mine = [z[i, m * P : (m + 1) * P] for i in range(B) if WHERE[i] and chosen[i, m] == k]
            assert counts[m, k] == len(mine)
            np.testing.assert_allclose(sums[m, k], np.sum([np.zeros(P), *mine], 0), atol=1e-6)


def test_the_moving_average_settles_on_the_mean_of_its_parts():
    """With one batch again and again a code becomes the mean of those that choose it."""
    counts = jnp.asarray([[2.0, 3.0]])
    sums = jnp.asarray([[[4.0, 2.0], [3.0, -3.0]]])
    totals, total_sums = jnp.zeros((1, 2)), jnp.zeros((1, 2, 2))
    for _ in range(200):
        totals, total_sums = losses.moved_by_average(totals, total_sums, counts, sums, 0.9)
    np.testing.assert_allclose(totals, counts, rtol=1e-5)
    np.testing.assert_allclose(total_sums / totals[:, :, None], [[[2, 1], [1, -1]]], rtol=1e-5)
    one, _ = losses.moved_by_average(jnp.asarray([[8.0, 0.0]]), total_sums, counts, sums, 0.75)
    np.testing.assert_allclose(one, [[0.75 * 8 + 0.25 * 2, 0.25 * 3]], rtol=1e-6)


def test_the_gradient_step_is_that_of_automatic_differentiation():
    z, codebook, chosen = data()

    def loss(codebook):
        e = codebooks.decode(jnp.asarray(chosen), Codebook(codebook))
        return losses.commitment(e, jnp.asarray(z), jnp.asarray(WHERE)) / 5

    expected = codebook - 0.7 * np.asarray(jax.grad(loss)(jnp.asarray(codebook)))
    counts, sums = losses.usage(*jax.tree.map(jnp.asarray, (z, chosen, Codebook(codebook), WHERE)))
    found = losses.moved_by_gradient(jnp.asarray(codebook), counts, sums, 0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[1, 1, 1, 1]], 4.0),
        ([[8, 0, 0, 0]], 1.0),
        ([[2, 2, 0, 0], [3, 3, 3, 3]], 3.0),
        ([[0, 0, 0, 0]], 1.0),
    ],
)
def test_perplexity_by_hand(counts, expected):
    np.testing.assert_allclose(
        losses.perplexity(jnp.asarray(counts, jnp.float32)), expected, rtol=1e-6
    )


def test_dead_codes_are_put_on_embeddings_in_the_given_order():
    z, codebook, _ = data()
    dead = np.array([[True, False, True, True], [False, False, False, True]])
    order = np.array([5, 3, 0, 4, 1, 2])  # row 5 is padding
    found = np.asarray(losses.reseeded(*map(jnp.asarray, (codebook, dead, parts(z), WHERE, order))))
    taken = [3, 0, 4]
    for m in range(M):
        fresh = iter(taken)
        for k in range(K):
            part = slice(m * P, (m + 1) * P)
            expected = z[next(fresh), part] if dead[m, k] else codebook[m, k]
            np.testing.assert_array_equal(found[m, k], expected)


def test_more_dead_codes_than_embeddings_start_again_and_none_at_all_change_nothing():
    z, codebook, _ = data()
    dead, order = jnp.ones((M, K), bool), jnp.arange(B)
    two = jnp.asarray([False, True, False, True, False, False])
    found = losses.reseeded(jnp.asarray(codebook), dead, jnp.asarray(parts(z)), two, order)
    np.testing.assert_array_equal(found[0], z[[1, 3, 1, 3], :P])
    nobody = losses.reseeded(
        jnp.asarray(codebook), dead, jnp.asarray(parts(z)), jnp.zeros(B, bool), order
    )
    np.testing.assert_array_equal(nobody, codebook)


@pytest.mark.parametrize("chunk", [7, 256])
@pytest.mark.parametrize("turned", [False, True])
def test_refitted_codes_are_those_of_k_means(chunk, turned, monkeypatch):
    """Against a loop in float64; in blocks, the last one padded, as in one."""
    monkeypatch.setattr(codebooks, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, M * P)).astype(np.float32)
    start = rng.normal(size=(M, K, P)).astype(np.float32)
    start[1, 2] = 50.0  # nothing is near
    turn = np.linalg.qr(rng.normal(size=(M * P, M * P)))[0].astype(np.float32) if turned else None
    found = losses.refitted(Codebook(start, turn), z, 3)
    expected = start.astype(np.float64)
    rows = z.astype(np.float64) if turn is None else z.astype(np.float64) @ turn
    for _ in range(3):
        for m in range(M):
            part = rows[:, m * P : (m + 1) * P]
            apart = [[np.sum((row - e) ** 2) for e in expected[m]] for row in part]
            nearest = np.argmin(apart, axis=1)
            for k in set(nearest.tolist()):
                expected[m, k] = np.mean(part[nearest == k], axis=0)
    np.testing.assert_allclose(found.centroids, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.centroids[1, 2], start[1, 2])
    assert found.centroids.dtype == np.float32
    assert found.rotation is turn
    unchanged = losses.refitted(Codebook(start, turn), z, 0)
    np.testing.assert_array_equal(unchanged.centroids, start)


def test_the_principal_axes_are_dealt_so_that_parts_have_about_as_much_to_store():
    """Against the principal axes by the singular value decomposition of the rows."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    rows = rng.normal(size=(4000, 12)) * 0.7 ** np.arange(12) @ turn + 3.0
    covariance = np.cov(rows.T, bias=True)
    found = np.asarray(losses.principal_rotation(jnp.asarray(covariance, jnp.float32), 4))
    np.testing.assert_allclose(found.T @ found, np.eye(12), atol=1e-5)
    axes = np.linalg.svd(rows - np.mean(rows, axis=0), full_matrices=False)[2]
    # |cosine| of each column with each principal axis: one is 1.
    order = np.abs(found.T @ axes.T)
    np.testing.assert_allclose(np.max(order, axis=1), 1.0, atol=1e-4)
    assert np.argmax(order, axis=1).reshape(4, 3).tolist() == [
        [0, 7, 8], [1, 6, 9], [2, 5, 10], [3, 4, 11]
    ]  # fmt: skip
    stored = np.log(np.var(rows @ found, axis=0)).reshape(4, 3).sum(axis=1)
    plain = np.log(np.var(rows @ axes.T, axis=0)).reshape(4, 3).sum(axis=1)
    assert np.ptp(stored) < np.ptp(plain) / 3
    # The same covariance has the same rotation: the signs are settled.
    assert np.all(found[np.argmax(np.abs(found), axis=0), np.arange(12)] > 0)
