"""Stores of vectors that no model made, for the tests of indices over them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from vse_jax import similarity as similarities
from vse_jax.index import exact
from vse_jax.index.records import Encoded, File, Row
from vse_jax.index.store import Store

WIDTH = 16
SIMILARITIES = {
    "dot": similarities.dot, "negative_euclidean": similarities.negative_euclidean
}  # fmt: skip


def need(*packages):
    """Skips a test without these; they are not imported, as pymilvus then closes what logs."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(
                f"needs {package}, of the extra [search] or [bench]", allow_module_level=True
            )


def clustered(count, seed):
    """Unit vectors around a hundred centers, as embeddings of pictures are."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(100, WIDTH))
    rng = np.random.default_rng(seed)
    rows = centers[rng.integers(0, 100, count)] + 0.4 * rng.normal(size=(count, WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def empty(folder, similarity="negative_euclidean", model="m"):
    """A store without items."""
    about = {"side": "images", "model": model, "dimension": WIDTH, "similarity": similarity}
    return Store(folder, about)


def add(store, rows, name):
    """Adds a picture for each row, `name` and its number."""
    files = [File(f"{name}{number}.png", 1, 1) for number in range(len(rows))]
    encoded = [Encoded(f, [Row(None, None, row)]) for f, row in zip(files, rows, strict=True)]
    for _ in store.add(Path("/a"), encoded):
        pass


def keep(store, names):
    """Forgets all pictures but these."""
    store.compare(Path("/a"), [File(name, 1, 1) for name in names])
    store.forget_missing(Path("/a"))


def names(store):
    """Of the pictures, in the order of their numbers."""
    return [item.path for item in store.items(range(len(store)))]


def exactly(store, queries, k):
    """What the exact search finds."""
    similarity = SIMILARITIES[store.about["similarity"]]
    return exact.search(similarity, queries, store.shards(), k)
