"""The cross-entropy over the batch against a loop, and its gradient against the dense form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.losses.blocks import Rows
from vse_jax.losses.contrastive import cross_entropy
from vse_jax.similarity import dot

B, D, T = 7, 5, 0.1
IDS = np.array([0, 1, 2, 1, 3, 4, 5], np.int32)
WHERE = np.array([True] * 6 + [False])


def embeddings(seed):
    rows = np.random.default_rng(seed).normal(size=(B, D)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def loop(queries, keys):
    total = 0.0
    for i in range(B):
        if not WHERE[i]:
            continue
        own = float(queries[i] @ keys[i]) / T
        others = [
            float(queries[i] @ keys[j]) / T for j in range(B) if WHERE[j] and IDS[j] != IDS[i]
        ]
        total += np.log(np.exp(own) + np.sum(np.exp(others))) - own
    return total


def chunked(queries, keys, chunk):
    positive = dot.rows(queries, keys)
    ids, where = jnp.asarray(IDS), jnp.asarray(WHERE)
    sides = Rows(queries, ids, where), Rows(keys, ids, where)
    return cross_entropy(dot, *sides, positive, T, chunk)


def dense(queries, keys):
    scores = queries @ keys.T / T
    counts = ((IDS[:, None] != IDS[None]) & WHERE[None]) | np.eye(B, dtype=bool)
    logits = jnp.where(counts, scores, -jnp.inf)
    each = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(scores)
    return jnp.sum(jnp.where(WHERE, each, 0.0))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_value_and_gradient_are_those_of_the_definition(chunk):
    queries, keys = jnp.asarray(embeddings(0)), jnp.asarray(embeddings(1))
    value, gradients = jax.value_and_grad(chunked, (0, 1))(queries, keys, chunk)
    np.testing.assert_allclose(value, loop(embeddings(0), embeddings(1)), rtol=1e-5)
    expected = jax.grad(dense, (0, 1))(queries, keys)
    for found, right in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5)


def test_gradient_is_finite_without_any_negative():
    queries = jnp.asarray(embeddings(0))
    ids, where = jnp.zeros(B, jnp.int32), jnp.ones(B, bool)

    def loss(queries):
        positive = dot.rows(queries, queries)
        rows = Rows(queries, ids, where)
        return cross_entropy(dot, rows, rows, positive, T, 3)

    value, gradient = jax.value_and_grad(loss)(queries)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    assert np.isfinite(gradient).all()
