"""Image-caption retrieval: ranks by counting, recalls, protocols; arrays in, numbers out.

Three rules keep the numbers honest. Ground truth goes by ids, never by `index // 5`. Ties count
against the model: rank = 1 + the number of wrong items that score at least as high as the best
right one. And the right item's score is read out of the very score block that holds the wrong
ones it is compared with: recomputed elsewhere it could differ in its last bit, which is all it
takes for a collapsed model to reach R@1 = 100.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vse_jax.evaluators.blocks import (
    BUDGET,
    CHUNK,
    Blocks,
    EvaluationError,
    Items,
    Score,
    along,
    count_true,
    down,
    merge,
)
from vse_jax.protocols import PROTOCOLS, Protocol
from vse_jax.similarity import dot, look_up

RECALLS = (1, 5, 10)


class Ranks(NamedTuple):
    """1-based ranks: of each image's best right caption, and of each caption's image."""

    i2t: Int[np.ndarray, " n"]
    t2i: Int[np.ndarray, " m"]


def protocol(name: str) -> Protocol:
    """The protocol of that name; one that ends in a number is the whole set of that size.

    `flickr8k_1k`, `flickr30k_1k`, `coco_5k`, `coco_1k_5fold` (the mean of five consecutive
    folds of 1,000 images), and for any other data e.g. `shapes_500`, `custom_123`.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    size = re.fullmatch(r".+_(\d+)", name)
    if size is None or int(size[1]) == 0:
        raise EvaluationError(
            f"unknown retrieval protocol {name!r}; known: {', '.join(PROTOCOLS)}, "
            "or <data set>_<number of images> such as shapes_500"
        )
    return Protocol(int(size[1]))


def evaluate(
    name: str,
    images: Items,
    captions: Items,
    caption_image: Shaped[Array | np.ndarray, " m"],
    *,
    score: Score = dot.matrix,
    chunk: int = CHUNK,
    budget: int = BUDGET,
) -> dict[str, float]:
    """Retrieval metrics of a test set under the named protocol.

    Args:
      name: a protocol; a set that is not of its size is refused.
      images: n items, e.g. embeddings float32 [n, d].
      captions: m items, e.g. embeddings float32 [m, d].
      caption_image: int [m], the row number of each caption's image.
      score: scores of a block, as `dot.matrix`.
      chunk: captions scored at a time, at most.
      budget: bytes of scores that may be kept; beyond it they are computed twice.

    Returns:
      `i2t/R@1`, `i2t/R@5`, `i2t/R@10` in percent, `i2t/MedR`, `i2t/MeanR`, the same for `t2i`,
      and `rsum`, the sum of the six recalls; means over the folds where there are several.

    Raises:
      EvaluationError: wrong size, unknown protocol, and whatever `ranks` refuses.
    """
    wanted = protocol(name)
    count = _length(images, "images")
    if count != wanted.images:
        raise EvaluationError(
            f"protocol {name!r} is defined on {wanted.images} images, this set has {count}"
        )
    of_image = _positions(np.arange(count), np.asarray(caption_image), None)
    size = count // wanted.folds
    folds = []
    for first in range(0, count, size):
        rows = np.arange(first, first + size)
        columns = np.flatnonzero((of_image >= first) & (of_image < first + size))
        folds.append(
            ranks(
                _take(images, rows),
                _take(captions, columns),
                rows,
                of_image[columns],
                score=score,
                chunk=chunk,
                budget=budget,
            )
        )
    return _mean([metrics(fold) for fold in folds])


def evaluate_scores(
    name: str,
    scores: Float[Array | np.ndarray, "n m"],
    caption_image: Shaped[Array | np.ndarray, " m"],
    *,
    chunk: int = CHUNK,
    budget: int = BUDGET,
) -> dict[str, float]:
    """Retrieval metrics, as `evaluate`, of a score matrix (images x captions, larger is closer)."""
    columns = np.arange(scores.shape[1])
    return evaluate(
        name, scores, columns, caption_image, score=look_up.matrix, chunk=chunk, budget=budget
    )


def metrics(found: Ranks) -> dict[str, float]:
    """`i2t/...`, `t2i/...` and `rsum`, the sum of the six recalls, from ranks both ways."""
    named = {
        f"{way}/{key}": value
        for way, way_ranks in (("i2t", found.i2t), ("t2i", found.t2i))
        for key, value in rank_metrics(way_ranks).items()
    }
    named["rsum"] = sum(value for key, value in named.items() if "/R@" in key)
    return named


def chance(caption_image: Shaped[Array | np.ndarray, " m"]) -> dict[str, float]:
    """The recalls, in percent, and rsum that an order drawn at random has on average.

    A picture with c of m captions is found among k with probability 1 - C(m-c, k) / C(m, k), a
    caption's picture among n with k / n.

    Args:
      caption_image: the picture of each caption.
    """
    counts = np.unique(np.asarray(caption_image), return_counts=True)[1]
    n, m = len(counts), int(counts.sum())

    def missed(captions: int, k: int) -> float:
        return math.comb(m - captions, k) / math.comb(m, k) if k <= m else 0.0

    named = {
        f"i2t/R@{k}": 100.0 * float(np.mean([1.0 - missed(int(c), k) for c in counts]))
        for k in RECALLS
    } | {f"t2i/R@{k}": 100.0 * min(k / n, 1.0) for k in RECALLS}
    return named | {"rsum": sum(named.values())}


def rank_metrics(found: Int[np.ndarray, " q"]) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, MedR (the floor of the median) and MeanR of 1-based ranks."""
    if found.size == 0:
        raise EvaluationError("no query has a rank: the set is empty")
    named = {f"R@{k}": 100.0 * float(np.mean(found <= k)) for k in RECALLS}
    named["MedR"] = float(np.floor(np.median(found)))
    named["MeanR"] = float(np.mean(found))
    return named


def ranks(
    images: Items,
    captions: Items,
    image_ids: Shaped[Array | np.ndarray, " n"] | Sequence[Any],
    caption_image_ids: Shaped[Array | np.ndarray, " m"] | Sequence[Any],
    caption_ids: Shaped[Array | np.ndarray, " m"] | Sequence[Any] | None = None,
    *,
    score: Score = dot.matrix,
    chunk: int = CHUNK,
    budget: int = BUDGET,
) -> Ranks:
    """Ranks of the right captions of every image and of the right image of every caption.

    rank = 1 + #{wrong items scoring >= the best right one}; other right items never count.
    Scores are made in blocks of all images x `chunk` captions by one executable and counted
    twice: down the columns while they are made, along the rows once every image's best right
    score is known, from the kept blocks or, beyond `budget` bytes, from the same blocks again.

    Args:
      images, captions: n and m items; floating point is scored in float32.
      image_ids: n different ids, integers or strings.
      caption_image_ids: m ids of the captions' images; every image has at least one caption.
      caption_ids: m ids that must differ, where the captions have any.
      score: scores of a block, as `dot.matrix`.
      chunk: captions scored at a time, at most.
      budget: bytes of scores that may be kept.

    Raises:
      EvaluationError: values or scores that are not finite, an empty set, duplicate ids, an
        image without caption, a caption without image, counts that disagree.
    """
    of_image = _positions(
        np.asarray(image_ids),
        np.asarray(caption_image_ids),
        None if caption_ids is None else np.asarray(caption_ids),
    )
    n, m = len(image_ids), len(of_image)
    images = _items(images, n, "images")
    captions = _items(captions, m, "captions")
    made = Blocks(score, images, captions, n, m, chunk, budget)

    right = np.empty(m, np.float32)
    t2i = np.empty(m, np.int32)
    for block, new, fresh in made:
        columns = slice(new.stop - block.shape[1], new.stop)
        block_right, block_ranks, finite = down(block, of_image[columns])
        if not finite:
            raise EvaluationError(
                f"scores of captions {columns.start} to {columns.stop - 1} are not all finite"
            )
        right[new], t2i[new] = block_right[fresh:], block_ranks[fresh:]

    best = np.full(n, -np.inf, np.float32)
    np.maximum.at(best, of_image, right)
    # Every right caption that reaches the best score is among those counted; it is not wrong.
    i2t = 1 - np.bincount(of_image[right >= best[of_image]], minlength=n)
    for block, _, fresh in made:
        i2t += np.asarray(along(block, best, fresh))
    return Ranks(i2t.astype(np.int32), t2i)


def top_k(
    queries: Items, keys: Items, k: int, *, score: Score = dot.matrix, chunk: int = CHUNK
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """Row numbers and scores of the k keys closest to each query, the closest first.

    Of equal scores the lower row number comes first. `score(queries, keys block)` is called in
    that order; a score that is not symmetric and takes images first must be turned around by
    whoever asks for captions -> images.
    """
    q, count = _length(queries, "queries"), _length(keys, "keys")
    if not 1 <= k <= count:
        raise EvaluationError(f"k is {k}; it must be from 1 to the {count} keys there are")
    made = Blocks(
        score, _items(queries, q, "queries"), _items(keys, count, "keys"), q, count, chunk, 0
    )
    scores = jnp.full((q, k), -jnp.inf, jnp.float32)
    rows = jnp.full((q, k), -1, jnp.int32)
    for block, new, fresh in made:
        rows, scores = merge(rows, scores, block, np.int32(new.start), fresh)
    return np.asarray(rows), np.asarray(scores)


def _positions(
    image_ids: Shaped[np.ndarray, " n"],
    caption_image_ids: Shaped[np.ndarray, " m"],
    caption_ids: Shaped[np.ndarray, " _"] | None,
) -> Int[np.ndarray, " m"]:
    """Row number of each caption's image, the ids once checked."""
    if image_ids.size == 0 or caption_image_ids.size == 0:
        raise EvaluationError(
            f"nothing to rank: {image_ids.size} images, {caption_image_ids.size} captions"
        )
    _distinct(image_ids, "image ids")
    if caption_ids is not None:
        if caption_ids.shape != caption_image_ids.shape:
            raise EvaluationError(
                f"{caption_ids.size} caption ids for {caption_image_ids.size} captions"
            )
        _distinct(caption_ids, "caption ids")
    order = np.argsort(image_ids)
    at = np.searchsorted(image_ids, caption_image_ids, sorter=order)
    positions = order[np.minimum(at, image_ids.size - 1)]
    absent = image_ids[positions] != caption_image_ids
    if absent.any():
        raise EvaluationError(
            f"captions whose image is not in the set: {_some(np.flatnonzero(absent))}, "
            f"of images {_some(np.unique(caption_image_ids[absent]))}"
        )
    alone = np.bincount(positions, minlength=image_ids.size) == 0
    if alone.any():
        raise EvaluationError(f"images without any caption: {_some(image_ids[alone])}")
    return positions.astype(np.int32)


def _distinct(ids: Shaped[np.ndarray, " n"], what: str) -> None:
    """Refuses ids that repeat."""
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise EvaluationError(f"duplicate {what}: {_some(values[counts > 1])}")


def _some(values: Shaped[np.ndarray, " n"]) -> str:
    """The first few of many, for a message."""
    shown = ", ".join(str(value) for value in values[:5])
    return f"{shown} and {len(values) - 5} more" if len(values) > 5 else shown


def _length(items: Items, what: str) -> int:
    """How many items there are, by the first axis that every leaf shares."""
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(items)}
    if len(lengths) != 1 or () in lengths:
        raise EvaluationError(f"{what} must be arrays that share their first axis, not {lengths}")
    return int(lengths.pop()[0])


def _items(items: Items, count: int, what: str) -> Items:
    """The items on the device, in float32 where they are floating point, finite and `count`."""
    if (length := _length(items, what)) != count:
        raise EvaluationError(f"{length} {what} for {count} ids")
    floating = functools.partial(jnp.issubdtype, arg2=jnp.floating)
    items = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32 if floating(leaf.dtype) else None), items
    )
    for leaf in jax.tree.leaves(items):
        if floating(leaf.dtype) and not _finite(leaf):
            bad = np.flatnonzero(~np.isfinite(np.asarray(leaf)).reshape(count, -1).all(axis=1))
            raise EvaluationError(f"{what} have values that are not finite, in rows {_some(bad)}")
    return items


@jax.jit
def _finite(values: Float[Array, "..."]) -> Bool[Array, ""]:
    """Whether all values are finite."""
    return jnp.sum(count_true(~jnp.isfinite(values.reshape(values.shape[0], -1)), axis=0)) == 0


def _take(items: Items, index: Int[np.ndarray, " a"]) -> Items:
    """The items of those rows, in their order; all of them are the items themselves."""
    return jax.tree.map(lambda leaf: leaf if len(index) == len(leaf) else leaf[index], items)


def _mean(of: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the folds."""
    return {key: float(np.mean([fold[key] for fold in of])) for key in of[0]}
