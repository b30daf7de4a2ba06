"""Score matrices too large to hold, block by block, and what is counted in a block."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

CHUNK = 4096
BUDGET = 2**30

# One array, or several that share their first axis: [n, d], or an encoding's local items and mask.
Items: TypeAlias = Any
# (images [n, ...], captions [c, ...]) -> scores [n, c], larger is closer. One that carries
# parameters is a `jax.tree_util.Partial`, so that they are arguments and not constants.
Score: TypeAlias = Callable[[Any, Any], Any]


class EvaluationError(Exception):
    """A set that has no honest number: says what was met and what would be right."""


class Blocks:
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
    # Of float32 numbers in float32 on every device, as all else that is computed.
    with jax.default_matmul_precision("highest"):
        return score(images, some).astype(jnp.float32)


@jax.jit
def down(
    scores: Float[Array, "n c"], of_image: Int[Array, " c"]
) -> tuple[Float[Array, " c"], Int[Array, " c"], Bool[Array, ""]]:
    """Score and rank of each caption's image in its column; whether all scores are finite."""
    right = jnp.take_along_axis(scores, of_image[None, :], axis=0)[0]
    finite = jnp.sum(count_true(~jnp.isfinite(scores), axis=0)) == 0
    # The one right image reaches its own score: it is the 1 of "1 + the wrong ones".
    return right, count_true(scores >= right[None, :], axis=0), finite


@functools.partial(jax.jit, static_argnames="fresh")
def along(scores: Float[Array, "n c"], best: Float[Array, " n"], fresh: int) -> Int[Array, " n"]:
    """How many captions of each row, from column `fresh` on, reach the image's best right one."""
    return count_true(scores[:, fresh:] >= best[:, None], axis=1)


@functools.partial(jax.jit, static_argnames="fresh")
def merge(
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


def count_true(hits: Bool[Array, "n c"], axis: int) -> Int[Array, " _"]:
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
