"""Scores of every picture with every sentence, by networks that look at both together.

Such a network costs as much for a pair as an encoder does for a picture, so what decides is which
pairs are computed, and in which order:

- Forward, tiles of a few pictures and a few captions of like length stay in a core's cache.
- The hinge with the hardest negatives has a gradient at three pairs of a row or so. Backward, only
  pairs whose score has a gradient are computed again, a few at a time; where most have one, tiles.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from vse_jax.encoding import Encoding
from vse_jax.models.symbolic import is_symbolic

Params = Any
# Of each caption, what its scores depend on besides the pair: arrays [c, ...]; () for nothing.
Statistics = Any
# Lengths to which the captions of a tile are cut: each is compiled once.
_LENGTHS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256)
# Pairs of which the gradient is computed at a time.
_BLOCK = 32
# Beyond this share of pairs with a gradient all are computed, by tiles.
_DENSE = 1 / 4


class Comparison(NamedTuple):
    """How a network compares a pictures with c captions, as pure functions.

    Attributes:
      align: (params, pictures, captions) -> what is known of each pair, arrays [a, c, ...]; all
        but the cheapest work, and no pair's depends on another's.
      measure: (params, aligned, captions) -> the statistics of each caption over these pictures;
        None where a score depends on its pair alone.
      read: (params, aligned, captions, statistics) -> scores [a, c].
    """

    align: Callable[[Params, Encoding, Encoding], Any]
    measure: Callable[[Params, Any, Encoding], Statistics] | None
    read: Callable[[Params, Any, Encoding, Statistics], Float[Array, "a c"]]


class Tile(NamedTuple):
    """How many pairs are looked at at a time.

    Where statistics are measured, what is known of all pictures with the tile's captions is held.
    """

    pictures: int = 4
    captions: int = 16


TILE = Tile()


# What an alignment names so (`checkpoint_name`) is kept for the way back, the rest made again.
KEPT = "kept"
_POLICY = jax.checkpoint_policies.save_only_these_names(KEPT)


def score(
    comparison: Comparison,
    params: Params,
    images: Encoding,
    texts: Encoding,
    statistics: Statistics | None = None,
    tile: Tile = TILE,
) -> tuple[Float[Array, "a c"], Statistics]:
    """Scores of every picture with every caption, and the statistics of each caption.

    Args:
      comparison: of the network.
      params: of the network.
      images: a pictures.
      texts: c captions, whose masks are True for leading words only.
      statistics: of each caption, as measured before; None: measured over these pictures.
      tile: pairs aligned at a time; scores do not depend on it.
    """
    if comparison.measure is None:
        statistics = ()
    if statistics is not None and is_symbolic(images.mask.shape[0], texts.mask.shape[0]):
        # Of how many there are no tiles can be made: who calls this gives few at a time.
        aligned = comparison.align(params, images, texts)
        return comparison.read(params, aligned, texts, statistics), statistics
    texts, statistics, lengths, back = _by_length(texts, statistics)
    count, width = texts.mask.shape
    chunk = min(tile.captions, count)
    # The last chunk is filled up with the longest caption again.
    starts = jnp.arange(0, count, chunk)[:, None]
    numbers = jnp.minimum(starts + jnp.arange(chunk)[None], count - 1)

    @partial(jax.checkpoint, policy=_POLICY)
    def of_chunk(rows: Int[Array, " k"]) -> tuple[Float[Array, "a k"], Statistics]:
        branches = [partial(_of_length, n, comparison, tile.pictures) for n in _levels(width)]
        some, known = _take((texts, statistics), rows)
        return lax.switch(_level(lengths[rows[-1]], width), branches, params, images, some, known)

    scores, measured = lax.map(of_chunk, numbers)

    def ordered(leaf: Float[Array, "k c *s"]) -> Float[Array, "n *s"]:
        return leaf.reshape(-1, *leaf.shape[2:])[back]

    return ordered(jnp.swapaxes(scores, 1, 2)).T, jax.tree.map(ordered, measured)


def table(
    comparison: Comparison, params: Params, images: Encoding, texts: Encoding, tile: Tile = TILE
) -> tuple[Float[Array, "a c"], Statistics]:
    """As `score`, with a gradient that costs what the pairs cost that have one.

    The statistics are measured over these pictures, and are constants: their gradient is what
    `comparison.read` gives them.
    """
    masks = images.mask, texts.mask
    vectors = (images.local, images.pooled), (texts.local, texts.pooled)
    return _table(comparison, tile, params, vectors, masks)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _table(
    comparison: Comparison, tile: Tile, params: Params, vectors: Any, masks: Any
) -> tuple[Float[Array, "a c"], Statistics]:
    return score(comparison, params, *_encodings(vectors, masks), None, tile)


def _table_forward(
    comparison: Comparison, tile: Tile, params: Params, vectors: Any, masks: Any
) -> Any:
    result = _table(comparison, tile, params, vectors, masks)
    return result, (params, vectors, masks, result[1])


def _table_backward(comparison: Comparison, tile: Tile, residual: Any, cotangents: Any) -> Any:
    """Gradients of the parameters, the vectors and (none) the masks."""
    wanted, _ = cotangents
    params, vectors = lax.cond(
        jnp.sum(wanted != 0) > _DENSE * wanted.size,
        partial(_gradient_by_tiles, comparison, tile),
        partial(_gradient_by_pairs, comparison),
        residual,
        wanted,
    )
    return params, vectors, None


_table.defvjp(_table_forward, _table_backward)


def _gradient_by_tiles(
    comparison: Comparison, tile: Tile, residual: Any, wanted: Float[Array, "a c"]
) -> Any:
    params, vectors, masks, statistics = residual

    def scores(params: Params, vectors: Any) -> Float[Array, "a c"]:
        return score(comparison, params, *_encodings(vectors, masks), statistics, tile)[0]

    return jax.vjp(scores, params, vectors)[1](wanted)


def _gradient_by_pairs(comparison: Comparison, residual: Any, wanted: Float[Array, "a c"]) -> Any:
    params, vectors, masks, statistics = residual
    images, texts = _encodings(vectors, masks)
    texts, statistics, lengths, back = _by_length(texts, statistics)
    pictures, width = wanted.shape[0], texts.mask.shape[1]
    # Pairs in the order of their captions, the short ones first.
    by_caption = wanted.T[jnp.argsort(back)].reshape(-1)
    (pairs,) = jnp.nonzero(by_caption, size=by_caption.size, fill_value=by_caption.size)
    total = jnp.sum(by_caption != 0)

    def of_length(length: int, vectors: Any, masks: Any, known: Any, wanted: Any) -> Any:
        def scores(params: Params, vectors: Any) -> Float[Array, " k"]:
            some, others = _encodings(vectors, masks)
            return _of_pairs(comparison, params, some, _cut(others, length), known)

        return jax.vjp(scores, params, vectors)[1](wanted)

    def step(carry: Any) -> Any:
        start, of_params, of_images, of_texts = carry
        numbers = pairs[start + jnp.arange(_BLOCK)]
        real = numbers < by_caption.size
        numbers = jnp.minimum(numbers, by_caption.size - 1)
        caption, picture = numbers // pictures, numbers % pictures
        some, others = _take(images, picture), _take(texts, caption)
        more, (more_images, more_texts) = lax.switch(
            _level(jnp.max(lengths[caption]), width),
            [partial(of_length, length) for length in _levels(width)],
            ((some.local, some.pooled), (others.local, others.pooled)),
            (some.mask, others.mask),
            _take(statistics, caption),
            jnp.where(real, by_caption[numbers], 0.0),
        )
        return (
            start + _BLOCK,
            jax.tree.map(jnp.add, of_params, more),
            jax.tree.map(lambda leaf, new: leaf.at[picture].add(new), of_images, more_images),
            jax.tree.map(lambda leaf, new: leaf.at[caption].add(new), of_texts, more_texts),
        )

    nothing = jax.tree.map(jnp.zeros_like, (params, *vectors))
    carry = lax.while_loop(lambda carry: carry[0] < total, step, (jnp.int32(0), *nothing))
    of_params, of_images, of_texts = carry[1:]
    return of_params, (of_images, jax.tree.map(lambda leaf: leaf[back], of_texts))


def _of_length(
    length: int,
    comparison: Comparison,
    pictures: int,
    params: Params,
    images: Encoding,
    texts: Encoding,
    statistics: Statistics | None,
) -> tuple[Float[Array, "a c"], Statistics]:
    """`score` of a few captions of at most `length` words, some pictures at a time."""
    texts = _cut(texts, length)
    count = images.mask.shape[0]
    pictures = min(pictures, count)

    def cut(leaf: Array) -> Array:
        padding = ((0, -count % pictures), *((0, 0) for _ in leaf.shape[1:]))
        return jnp.pad(leaf, padding).reshape(-1, pictures, *leaf.shape[1:])

    def of_tiles(known_of: Callable[[Encoding], Any]) -> Any:
        # What the gradient by tiles would need of every tile at once is computed again by tile.
        found = lax.map(jax.checkpoint(known_of, policy=_POLICY), jax.tree.map(cut, images))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)

    if statistics is None:
        assert comparison.measure is not None
        aligned = of_tiles(lambda some: comparison.align(params, some, texts))
        statistics = lax.stop_gradient(comparison.measure(params, aligned, texts))
        return comparison.read(params, aligned, texts, statistics), statistics

    def scores_of(some: Encoding) -> Float[Array, "p c"]:
        return comparison.read(params, comparison.align(params, some, texts), texts, statistics)

    return of_tiles(scores_of), statistics


def _of_pairs(
    comparison: Comparison, params: Params, images: Encoding, texts: Encoding, known: Statistics
) -> Float[Array, " k"]:
    """Scores of k pictures, each with its caption."""

    def one(image: Encoding, text: Encoding, known: Statistics) -> Float[Array, ""]:
        image, text, known = jax.tree.map(lambda leaf: leaf[None], (image, text, known))
        aligned = comparison.align(params, image, text)
        return comparison.read(params, aligned, text, known)[0, 0]

    return jax.vmap(one)(images, texts, known)


def _encodings(vectors: Any, masks: Any) -> tuple[Encoding, Encoding]:
    """Pictures and captions of their (local, pooled) vectors and masks."""
    ((image, text), (image_mask, text_mask)) = vectors, masks
    return Encoding(image[0], image_mask, image[1]), Encoding(text[0], text_mask, text[1])


def _by_length(
    texts: Encoding, statistics: Statistics | None
) -> tuple[Encoding, Statistics | None, Int[Array, " c"], Int[Array, " c"]]:
    """Captions and their statistics, the shortest first; their lengths, and the way back."""
    lengths = jnp.sum(texts.mask, axis=1, dtype=jnp.int32)
    order = jnp.argsort(lengths)
    texts, statistics = _take((texts, statistics), order)
    return texts, statistics, lengths[order], jnp.argsort(order)


def _take(tree: Any, rows: Int[Array, " k"]) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _cut(texts: Encoding, length: int) -> Encoding:
    return texts.replace(local=texts.local[:, :length], mask=texts.mask[:, :length])


def _levels(width: int) -> tuple[int, ...]:
    """The lengths below `width`, and `width`."""
    return (*(length for length in _LENGTHS if length < width), width)


def _level(length: Int[Array, ""], width: int) -> Int[Array, ""]:
    """The number of the least level that holds a length."""
    return jnp.searchsorted(jnp.asarray(_levels(width)), length)
