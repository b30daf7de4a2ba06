"""An index and the model that made it: what is most similar to a sentence or a picture."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vse_jax import assembly, hub
from vse_jax.api import Model
from vse_jax.encode import Side
from vse_jax.index import kinds
from vse_jax.index.database import StoreError
from vse_jax.index.records import Item
from vse_jax.index.store import Store
from vse_jax.inputs import Picture

# Of the indexes of models that have no workdir.
CACHE = Path("~/.cache/vse_jax/index")
# Times a search is done again as the index changes under it.
TRIES = 5
# How pictures are read: indices made before photos were turned as their EXIF says do not tell.
PICTURES = "upright"


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
        **({"pictures": PICTURES} if side == "images" else {}),
    }


def default_folder(workdir: str | os.PathLike[str], side: Side) -> Path:
    """Where an index is unless another folder is named.

    Raises:
      StoreError: the workdir is no folder here.
    """
    if hub.is_remote(workdir):
        raise StoreError(f"{workdir} is no folder here to keep an index in: name one by --index")
    return Path(workdir).expanduser() / "index" / side


def cached_folder(model: Model, side: Side, root: Path) -> Path:
    """Where the index of a folder is by a model without a workdir: of this folder alone.

    What was indexed can be encoded again, so that it may be deleted.
    """
    told = f"{model.fingerprint} {side} ".encode() + os.fsencode(root)
    return CACHE.expanduser() / f"{root.name}-{hashlib.sha256(told).hexdigest()[:16]}"


class Finder:
    """Searches an index by the model that made it.

    Attributes:
      store: what is indexed.
    """

    def __init__(
        self,
        model: Model,
        folder: str | os.PathLike[str],
        kind: str = kinds.EXACT,
        uri: str | None = None,
    ) -> None:
        """Opens the index in a folder.

        Args:
          model: that made it.
          folder: where it is.
          kind: "exact" looks at every item; or one of `kinds.KINDS` that was built.
          uri: of the server, for "milvus"; None: where the items were copied to.

        Raises:
          StoreError: there is none, none of this kind, or another model made it.
          ValueError: the model has no codebook, for "codes".
        """
        self.store = Store(Path(folder).expanduser())
        check(model, self.store)
        self._model, self._kind, self._uri = model, kind, uri
        kinds.check(kind, self.store, needed(model), uri)
        self._opened: tuple[int, kinds.Searcher] | None = None
        self._searcher(self.store.generation)

    def close(self) -> None:
        """Gives back what the index holds; a further search opens it again."""
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

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
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        for _ in range(TRIES):
            generation = self.store.generation
            try:
                hits = self._hits(self._searcher(generation), queries, k)
            except StoreError:
                if self.store.generation == generation:
                    raise
                continue
            # Else the numbers may be those of other items by now.
            if self.store.generation == generation:
                return hits
        raise StoreError(f"{self.store.folder} changes faster than it is searched: ask again")

    def _searcher(self, generation: int) -> kinds.Searcher:
        """The index of the items as they are, opened again where they have changed."""
        if self._opened is not None and self._opened[0] == generation:
            return self._opened[1]
        self.close()
        searcher = kinds.opened(self._kind, self.store, needed(self._model), self._uri)
        self._opened = generation, searcher
        return searcher

    def _hits(
        self, searcher: kinds.Searcher, queries: Float[np.ndarray, "q d"], k: int
    ) -> list[list[Hit]]:
        found = searcher.search(queries, min(k, max(len(self.store), 1)))
        hits = []
        for numbers, scores in zip(found.numbers, found.scores, strict=True):
            real = numbers >= 0
            items = self.store.items(numbers[real].tolist())
            hits.append([Hit(*pair) for pair in zip(items, scores[real].tolist(), strict=True)])
        return hits


def needed(model: Model) -> kinds.Model:
    """What an index needs of a model."""
    return kinds.Model(assembly.similarity_of(model.config), model.codebook)


def check(model: Model, store: Store, side: Side | None = None) -> None:
    """Raises StoreError unless this model made the index, and of this side if one is given."""
    if side is not None and store.about["side"] != side:
        raise StoreError(
            f"{store.folder} is an index of {store.about['side']}: index {side} elsewhere (--index)"
        )
    if store.about["model"] != model.fingerprint:
        raise StoreError(
            f"{store.folder} was made by another model, whose embeddings mean other things: search "
            "with the model it was made with (a training that goes on makes another); or remove it "
            "and index anew, or elsewhere (--index)"
        )
    if store.about["side"] == "images" and store.about.get("pictures") != PICTURES:
        raise StoreError(
            f"{store.folder} was made by an earlier version, which did not turn photos as their "
            "EXIF says: index the folder anew elsewhere (--index), or remove the old index first"
        )
