"""Which region each word of a sentence is about, neighbouring words agreeing: a Markov chain.

Source: Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions",
CVPR 2015, section 3.1.4.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class Assignment(NamedTuple):
    """The best assignment of each sentence.

    Attributes:
      regions: of each word; -1 behind the sentence, and everywhere in a picture without regions.
      energy: what it reaches; 0 for a sentence without words or a picture without regions.
    """

    regions: Int[Array, "b l"]
    energy: Float[Array, " b"]


class Segment(NamedTuple):
    """Neighbouring words about one region: words start to end - 1."""

    start: int
    end: int
    region: int


def assign(
    scores: Float[Array | np.ndarray, "b l r"],
    words: Bool[Array | np.ndarray, "b l"],
    regions: Bool[Array | np.ndarray, "b r"],
    *,
    beta: float,
) -> Assignment:
    """The regions a that maximise sum_j scores[j, a_j] + beta sum_j 1[a_j = a_{j+1}].

    By Viterbi in O(l r) for each sentence. Of assignments that reach the same, the one whose first
    word has the lowest region, then whose second word has, and so on. With beta = 0 each word has
    its own best region; with beta above twice the sum of its words' largest absolute scores, all
    words of a sentence have the same.

    Args:
      scores: v_i . s_t of each word t with each region i of the picture; neither l nor r is 0.
      words: which words there are, the first ones of each sentence; scores of others are not read.
      regions: which regions there are, the same.
      beta: what it is worth that two neighbours agree, in units of the scores; 0 or more.

    Raises:
      ValueError: `beta` is negative or not finite.
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta is {beta}; it must be 0 or more, and finite")
    return _assign(scores, words, regions, jnp.float32(beta))


@jax.jit
def _assign(
    scores: Float[Array, "b l r"],
    words: Bool[Array, "b l"],
    regions: Bool[Array, "b r"],
    beta: Float[Array, ""],
) -> Assignment:
    """`assign`, with every change of region costing beta instead.

    The same but for beta (words - 1), which a large beta would drown the scores in.
    """

    def value(
        rest: Float[Array, "b r"], word: tuple[Float[Array, "b r"], Bool[Array, " b"]]
    ) -> tuple[Float[Array, "b r"], Float[Array, "b r"]]:
        """The most that a word and those behind it reach, by its region.

        `rest` is the most that those behind it reach: the next one stays, or goes to its best.
        """
        score, exists = word
        reached = jnp.where(regions, score + rest, -jnp.inf)
        change = jnp.max(reached, axis=1, keepdims=True) - beta
        return jnp.where(exists[:, None], jnp.maximum(reached, change), 0.0), reached

    def choose(
        previous: Int[Array, " b"], reached: Float[Array, "b r"]
    ) -> tuple[Int[Array, " b"], Int[Array, " b"]]:
        stays = jnp.arange(reached.shape[1])[None] == previous[:, None]
        # The first word, which nothing comes before, is free to go anywhere.
        free = stays | (previous < 0)[:, None]
        chosen = jnp.argmax(jnp.where(free, reached, reached - beta), axis=1).astype(jnp.int32)
        return chosen, chosen

    columns = (scores.astype(jnp.float32).swapaxes(0, 1), words.T)
    _, reached = lax.scan(value, jnp.zeros(regions.shape), columns, reverse=True)
    _, chosen = lax.scan(choose, jnp.full(len(words), -1, jnp.int32), reached)
    assigned = words & jnp.any(regions, axis=1)[:, None]
    changes = jnp.sum(words, axis=1) - 1
    energy = jnp.max(reached[0], axis=1) + beta * changes
    return Assignment(
        jnp.where(assigned, chosen.T, -1), jnp.where(jnp.any(assigned, axis=1), energy, 0.0)
    )


def segments(regions: Int[np.ndarray, " l"]) -> list[Segment]:
    """The runs of neighbouring words about one region, in order; they cover all its words.

    Args:
      regions: of the words of one sentence, as `assign` gives them; -1 is in no segment.
    """
    # No region is -2: the first word starts a run, whatever it is about.
    starts = np.flatnonzero(np.diff(regions, prepend=-2))
    ends = np.append(starts, len(regions))[1:]
    return [
        Segment(int(start), int(end), int(regions[start]))
        for start, end in zip(starts, ends, strict=True)
        if regions[start] >= 0
    ]
