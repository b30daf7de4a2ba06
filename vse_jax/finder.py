"""An index and the model that made it: what is most similar to a sentence or a picture."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vse_jax import assembly
from vse_jax.api import Model
from vse_jax.encode import Side
from vse_jax.index import approximate, exact
from vse_jax.index.store import Item, Store, StoreError
from vse_jax.inputs import Picture

EXACT = "exact"


class Hit(NamedTuple):
    """What was found.

    Attributes:
      item: a picture, or a sentence.
      score: cosine, or minus the Euclidean distance where the model was trained for these.
    """

    item: Item
    score: float


def about(model: Model, side: Side) -> dict[str, Any]:
    """What an index is of.

    Args:
      model: that makes it.
      side: "images" or "texts", what is found in it.

    Raises:
      StoreError: the model has no embeddings of these.
    """
    network = model.config.model.network
    if not assembly.compares(model.config):
        raise StoreError("this model compares no pictures with sentences: it has nothing to index")
    if assembly.is_pairwise(model.config):
        raise StoreError(
            f"the network {network!r} looks at every pair of a picture and a sentence, and has no "
            "embeddings to index; train one that has, such as configs/custom.py:FILE,vsepp"
        )
    if side == "images" and model.reads_features:
        raise StoreError(
            "this model was trained on features of regions, not on photos, and only their maker "
            "can compute them: it indexes --texts alone"
        )
    if side == "images" and model.looks_at_boxes:
        raise StoreError(
            "this model looks at boxes of a detector, which no folder of pictures has: it indexes "
            "--texts alone"
        )
    return {
        "side": side,
        "model": model.fingerprint,
        "dimension": model.config.model.dimension,
        "similarity": model.config.model.similarity,
    }


def default_folder(workdir: str | os.PathLike[str], side: Side) -> Path:
    """Where an index is unless another folder is named."""
    return Path(workdir) / "index" / side


class Finder:
    """Searches an index by the model that made it.

    Attributes:
      store: what is indexed.
    """

    def __init__(self, model: Model, folder: str | os.PathLike[str], kind: str = EXACT) -> None:
        """Opens the index in a folder.

        Args:
          model: that made it.
          folder: where it is.
          kind: "exact" looks at every item; or one of `approximate.KINDS` that was built.

        Raises:
          StoreError: there is none, none of this kind, or another model made it.
        """
        self.store = Store(Path(folder).expanduser())
        check(model, self.store)
        self._kind, self._generation = kind, self.store.generation
        self._index = None if kind == EXACT else approximate.load(kind, self.store)
        self._model = model
        self._similarity = assembly.similarity_of(model.config)

    def by_texts(self, sentences: Iterable[str], k: int = 10) -> list[list[Hit]]:
        """The k best items of each sentence, the best first; raises as `Model.encode_texts`."""
        return self.by_embeddings(self._model.encode_texts(sentences), k)

    def by_images(self, pictures: Sequence[Picture], k: int = 10) -> list[list[Hit]]:
        """The k best items of each picture, the best first; raises as `Model.encode_images`."""
        return self.by_embeddings(self._model.encode_images(pictures), k)

    def by_embeddings(self, queries: Float[np.ndarray, "q d"], k: int = 10) -> list[list[Hit]]:
        """The k best items of each embedding of the model, the best first; fewer if there are.

        Raises:
          ValueError: k is less than 1.
          StoreError: the items have changed since, and no index of FAISS was built of them.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if self._index is not None and self.store.generation != self._generation:
            self._generation = self.store.generation
            self._index = approximate.load(self._kind, self.store)
        if self._index is None:
            found = exact.search(self._similarity, queries, self.store.shards(), k)
        else:
            found = approximate.search(self._index, queries, k)
        hits = []
        for numbers, scores in zip(found.numbers, found.scores, strict=True):
            real = numbers >= 0
            items = self.store.items(numbers[real].tolist())
            hits.append([Hit(*pair) for pair in zip(items, scores[real].tolist(), strict=True)])
        return hits


def check(model: Model, store: Store, side: Side | None = None) -> None:
    """Raises StoreError unless this model made the index, and of this side if one is given."""
    if side is not None and store.about["side"] != side:
        raise StoreError(
            f"{store.folder} is an index of {store.about['side']}: index {side} elsewhere (--index)"
        )
    if store.about["model"] != model.fingerprint:
        raise StoreError(
            f"{store.folder} was made by another model, whose embeddings mean other things: search "
            "with the workdir it was made with, or index the folder anew elsewhere (--index)"
        )
