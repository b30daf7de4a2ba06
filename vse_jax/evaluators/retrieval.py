"""Image-caption retrieval: ranks by counting, recalls, protocols; arrays in, numbers out.

Three rules keep the numbers honest. Ground truth goes by ids, never by `index // 5`. Ties count
against the model: rank = 1 + the number of wrong items that score at least as high as the best
right one. And the right item's score is read out of the very score block that holds the wrong
ones it is compared with: recomputed elsewhere it could differ in its last bit, which is all it
takes for a collapsed model to reach R@1 = 100.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Shaped

RECALLS = (1, 5, 10)
CHUNK = 4096
BUDGET = 2**30

# One array, or several that share their first axis: [n, d], or an encoding's local items and mask.
Items: TypeAlias = Any
# (images [n, ...], captions [c, ...]) -> scores [n, c], larger is closer. One that carries
# parameters is a `jax.tree_util.Partial`, so that they are arguments and not constants.
Score: TypeAlias = Callable[[Any, Any], Any]


class EvaluationError(Exception):
    """A set that has no honest number: says what was met and what would be right."""


class Protocol(NamedTuple):
    """How many images a test set has, and in how many consecutive folds it is scored."""

    images: int
    folds: int = 1


class Ranks(NamedTuple):
    """1-based ranks: of each image's best right caption, and of each caption's image."""

    i2t: Int[np.ndarray, " n"]
    t2i: Int[np.ndarray, " m"]


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "flickr8k_1k": Protocol(1000),
        "flickr30k_1k": Protocol(1000),
        "coco_5k": Protocol(5000),
        "coco_1k_5fold": Protocol(5000, folds=5),
    }
)


def dot(images: Float[Array, "n d"], captions: Float[Array, "c d"]) -> Float[Array, "n c"]:
    """Inner products of every image with every caption, in full float32 on every device."""
    return lax.dot_general(
        images,
        captions,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def cosine(images: Float[Array, "n d"], captions: Float[Array, "c d"]) -> Float[Array, "n c"]:
    """Cosines of every image with every caption; a zero vector scores 0 with everything."""
    return dot(_normalised(images), _normalised(captions))


def negative_euclidean(
    images: Float[Array, "n d"], captions: Float[Array, "c d"]
) -> Float[Array, "n c"]:
    """Minus the Euclidean distance of every image to every caption.

    -|x - y| by |x|^2 + |y|^2 - 2 x.y; a square that rounding made negative is 0.
    """
    squares = jnp.sum(images**2, axis=1)[:, None] + jnp.sum(captions**2, axis=1)[None, :]
    return -jnp.sqrt(jnp.maximum(squares - 2.0 * dot(images, captions), 0.0))


def given(scores: Float[Array, "n m"], columns: Int[Array, " c"]) -> Float[Array, "n c"]:
    """Columns of a score matrix that exists: `images` is the matrix, `captions` is arange(m)."""
    return jnp.take(scores, columns, axis=1)


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
    score: Score = dot,
    chunk: int = CHUNK,
    budget: int = BUDGET,
) -> dict[str, float]:
    """Retrieval metrics of a test set under the named protocol.

    Args:
      name: a protocol; a set that is not of its size is refused.
      images: n items, e.g. embeddings float32 [n, d].
      captions: m items, e.g. embeddings float32 [m, d].
      caption_image: int [m], the row number of each caption's image.
      score: scores of a block, as `dot`.
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
    return evaluate(name, scores, columns, caption_image, score=given, chunk=chunk, budget=budget)


def metrics(found: Ranks) -> dict[str, float]:
    """`i2t/...`, `t2i/...` and `rsum`, the sum of the six recalls, from ranks both ways."""
    named = {
        f"{way}/{key}": value
        for way, way_ranks in (("i2t", found.i2t), ("t2i", found.t2i))
        for key, value in rank_metrics(way_ranks).items()
    }
    named["rsum"] = sum(value for key, value in named.items() if "/R@" in key)
    return named


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
    score: Score = dot,
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
      score: scores of a block, as `dot`.
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
    blocks = _Blocks(score, images, captions, n, m, chunk, budget)

    right = np.empty(m, np.float32)
    t2i = np.empty(m, np.int32)
    for block, new, fresh in blocks:
        columns = slice(new.stop - block.shape[1], new.stop)
        block_right, block_ranks, finite = _down(block, of_image[columns])
        if not finite:
            raise EvaluationError(
                f"scores of captions {columns.start} to {columns.stop - 1} are not all finite"
            )
        right[new], t2i[new] = block_right[fresh:], block_ranks[fresh:]

    best = np.full(n, -np.inf, np.float32)
    np.maximum.at(best, of_image, right)
    # Every right caption that reaches the best score is among those counted; it is not wrong.
    i2t = 1 - np.bincount(of_image[right >= best[of_image]], minlength=n)
    for block, _, fresh in blocks:
        i2t += np.asarray(_along(block, best, fresh))
    return Ranks(i2t.astype(np.int32), t2i)


def top_k(
    queries: Items, keys: Items, k: int, *, score: Score = dot, chunk: int = CHUNK
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """Row numbers and scores of the k keys closest to each query, the closest first.

    Of equal scores the lower row number comes first. `score(queries, keys block)` is called in
    that order; a score that is not symmetric and takes images first must be turned around by
    whoever asks for captions -> images.
    """
    q, count = _length(queries, "queries"), _length(keys, "keys")
    if not 1 <= k <= count:
        raise EvaluationError(f"k is {k}; it must be from 1 to the {count} keys there are")
    blocks = _Blocks(
        score, _items(queries, q, "queries"), _items(keys, count, "keys"), q, count, chunk, 0
    )
    scores = jnp.full((q, k), -jnp.inf, jnp.float32)
    rows = jnp.full((q, k), -1, jnp.int32)
    for block, new, fresh in blocks:
        rows, scores = _merge(rows, scores, block, np.int32(new.start), fresh)
    return np.asarray(rows), np.asarray(scores)


class _Blocks:
    """Score blocks of one shape, so of one executable; the last overlaps the one before.

    Iterating gives (block [n, width], the columns new in it, how many of its first are old), any
    number of times with the same bits: kept from the first time, or made again.
    """

    def __init__(
        self,
        score: Score,
        images: Items,
        captions: Items,
        n: int,
        m: int,
        chunk: int,
        budget: int,
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; it must be at least 1")
        score = score if isinstance(score, Partial) else Partial(score)
        count = -(-m // chunk)
        # Even shares rather than full chunks: the last block then repeats next to nothing.
        self.width = -(-m // count)
        self.m = m
        self.make = functools.partial(_score, score, images, captions, width=self.width)
        shape = jax.eval_shape(self.make, np.int32(0)).shape
        if shape != (n, self.width):
            raise EvaluationError(
                f"the score function gives {list(shape)} for {n} images and {self.width} "
                f"captions; it must give {[n, self.width]}"
            )
        self.keep = n * self.width * count * 4 <= budget
        self.kept: dict[int, Array] = {}

    def __iter__(self) -> Iterator[tuple[Array, slice, int]]:
        for first in range(0, self.m, self.width):
            start = min(first, self.m - self.width)
            block = self.kept[start] if start in self.kept else self.make(np.int32(start))
            if self.keep:
                self.kept[start] = block
            yield block, slice(first, start + self.width), first - start


@functools.partial(jax.jit, static_argnames="width")
def _score(
    score: Partial, images: Items, captions: Items, start: Int[Array, ""], width: int
) -> Float[Array, "n width"]:
    """Scores of all images with `width` captions from `start`."""
    some = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, width), captions)
    return score(images, some).astype(jnp.float32)


@jax.jit
def _down(
    scores: Float[Array, "n c"], of_image: Int[Array, " c"]
) -> tuple[Float[Array, " c"], Int[Array, " c"], Bool[Array, ""]]:
    """Score and rank of each caption's image in its column; whether all scores are finite."""
    right = jnp.take_along_axis(scores, of_image[None, :], axis=0)[0]
    finite = jnp.sum(_count(~jnp.isfinite(scores), axis=0)) == 0
    # The one right image reaches its own score: it is the 1 of "1 + the wrong ones".
    return right, _count(scores >= right[None, :], axis=0), finite


@functools.partial(jax.jit, static_argnames="fresh")
def _along(scores: Float[Array, "n c"], best: Float[Array, " n"], fresh: int) -> Int[Array, " n"]:
    """How many captions of each row, from column `fresh` on, reach the image's best right one."""
    return _count(scores[:, fresh:] >= best[:, None], axis=1)


@functools.partial(jax.jit, static_argnames="fresh")
def _merge(
    rows: Int[Array, "q k"],
    scores: Float[Array, "q k"],
    block: Float[Array, "q c"],
    first: Int[Array, ""],
    fresh: int,
) -> tuple[Int[Array, "q k"], Float[Array, "q k"]]:
    """The best k of those so far and a block whose column `fresh` is key number `first`."""
    block = block[:, fresh:]
    new = jnp.broadcast_to(first + jnp.arange(block.shape[1], dtype=jnp.int32)[None], block.shape)
    best, at = lax.top_k(jnp.concatenate([scores, block], axis=1), rows.shape[1])
    return jnp.take_along_axis(jnp.concatenate([rows, new], axis=1), at, axis=1), best


def _count(hits: Bool[Array, "n c"], axis: int) -> Int[Array, " _"]:
    """Number of true entries along an axis.

    XLA's CPU compiler does not vectorise a sum that has a comparison fused into it (ten times
    slower, measured under jax 0.10), but does vectorise adding 16 slices element by element;
    the barrier keeps that sum apart from the short one that is left.
    """
    folds = 16
    width = hits.shape[axis] // folds
    parts = [
        lax.slice_in_dim(hits, fold * width, (fold + 1) * width, axis=axis).astype(jnp.int32)
        for fold in range(folds)
    ]
    folded = lax.optimization_barrier(functools.reduce(jnp.add, parts))
    rest = lax.slice_in_dim(hits, folds * width, hits.shape[axis], axis=axis)
    return jnp.sum(folded, axis=axis) + jnp.sum(rest, axis=axis, dtype=jnp.int32)


def _normalised(vectors: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows of unit length; a zero row stays zero."""
    squares = jnp.sum(vectors**2, axis=1, keepdims=True)
    return vectors * lax.rsqrt(jnp.where(squares > 0.0, squares, 1.0))


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
    return jnp.sum(_count(~jnp.isfinite(values.reshape(values.shape[0], -1)), axis=0)) == 0


def _take(items: Items, index: Int[np.ndarray, " a"]) -> Items:
    """The items of those rows, in their order; all of them are the items themselves."""
    return jax.tree.map(lambda leaf: leaf if len(index) == len(leaf) else leaf[index], items)


def _mean(of: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the folds."""
    return {key: float(np.mean([fold[key] for fold in of])) for key in of[0]}
