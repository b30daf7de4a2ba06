"""What trains a product codebook and embeddings that it stores well.

z [b, d] are embeddings, codes [b, M], centroids [M, K, d/M]; see `codebook`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vse_jax.codebook import Codebook, blocks_of, code_scores, encode, parts_of


def commitment(
    z: Float[Array, "b d"], e: Float[Array, "b d"], where: Bool[Array, " b"]
) -> Float[Array, ""]:
    """Sum over the rows of |z - sg(e)|^2, e what the codes of z stand for.

    Source: van den Oord et al., NeurIPS 2017, eq. 3, last term, without beta.
    """
    squares = jnp.sum((z - jax.lax.stop_gradient(e)) ** 2, axis=1)
    return jnp.sum(jnp.where(where, squares, 0.0))


def code_cross_entropy(
    z: Float[Array, "b d"],
    codes: Int[Array, "b m"],
    codebook: Codebook,
    temperature: float,
    where: Bool[Array, " b"],
) -> Float[Array, ""]:
    """Sum over the rows of the mean over m of -log softmax_k(-|z_m - e_mk|^2 / t)[code_m].

    The codes, of the other side of each pair, are the classes; no gradient flows into the
    codebook.

    Args:
      z: embeddings to be told apart.
      codes: the right class of each part.
      codebook: of the classes.
      temperature: t.
      where: False for padding.
    """
    # The softmax does not see |z_m|^2, which is missing from the scores.
    logits = code_scores(z, jax.lax.stop_gradient(codebook)) / temperature
    right = jnp.take_along_axis(logits, codes.T[:, :, None], axis=2)[:, :, 0]
    surprise = jax.nn.logsumexp(logits, axis=2) - right
    return jnp.sum(jnp.where(where, jnp.mean(surprise, axis=0), 0.0))


def usage(
    z: Float[Array, "b d"],
    codes: Int[Array, "b m"],
    codebook: Codebook,
    where: Bool[Array, " b"],
) -> tuple[Float[Array, "m k"], Float[Array, "m k p"]]:
    """(how many parts chose each code, their sum), over the rows kept by `where`."""
    chosen = jax.nn.one_hot(codes.T, codebook.centroids.shape[1], axis=1) * where[None, None, :]
    parts = parts_of(jax.lax.stop_gradient(z), codebook)
    sums = jnp.matmul(chosen, parts, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(chosen, axis=2), sums


def perplexity(counts: Float[Array, "m k"]) -> Float[Array, ""]:
    """exp(entropy) of the codes' shares, the mean over the parts: K where all are used alike."""
    total = jnp.sum(counts, axis=1, keepdims=True)
    shares = counts / jnp.where(total > 0, total, 1.0)
    logs = jnp.log(jnp.where(shares > 0, shares, 1.0))
    return jnp.mean(jnp.exp(-jnp.sum(shares * logs, axis=1)))


def moved_by_average(
    totals: Float[Array, "m k"],
    sums: Float[Array, "m k p"],
    counts: Float[Array, "m k"],
    batch_sums: Float[Array, "m k p"],
    decay: float,
) -> tuple[Float[Array, "m k"], Float[Array, "m k p"]]:
    """The moving averages N <- g N + (1 - g) n and S <- g S + (1 - g) s; a code is S / N.

    Source: van den Oord et al., NeurIPS 2017, appendix A.1.

    Args:
      totals: N.
      sums: S.
      counts: n, of this batch.
      batch_sums: s.
      decay: g.
    """
    return (
        decay * totals + (1.0 - decay) * counts,
        decay * sums + (1.0 - decay) * batch_sums,
    )


def moved_by_gradient(
    centroids: Float[Array, "m k p"],
    counts: Float[Array, "m k"],
    batch_sums: Float[Array, "m k p"],
    rate: float,
) -> Float[Array, "m k p"]:
    """e - rate * d/de of the mean over the rows of |sg(z) - e|^2, the codebook's own term.

    Source: van den Oord et al., NeurIPS 2017, eq. 3, second term.

    Args:
      centroids: e.
      counts: rows that chose each code.
      batch_sums: the sum of their parts.
      rate: of the descent.
    """
    rows = jnp.maximum(jnp.sum(counts, axis=1), 1.0)[:, None, None]
    return centroids - rate * 2.0 * (counts[:, :, None] * centroids - batch_sums) / rows


def refitted(codebook: Codebook, embeddings: Float[np.ndarray, "n d"], rounds: int) -> Codebook:
    """The codebook after k-means over host embeddings, begun from where it stands.

    A code that no embedding chooses stays where it is; the rotation stays. Source: Lloyd, Least
    Squares Quantization in PCM, 1982.

    Args:
      codebook: to begin from.
      embeddings: finite.
      rounds: of choosing codes and moving them.
    """
    seen = jax.jit(lambda z, book, where: usage(z, encode(z, book), book, where))
    # Sums over tens of thousands of embeddings: in double precision, on the host.
    centroids = np.asarray(codebook.centroids, np.float64)
    for _ in range(rounds):
        book = jax.tree.map(jnp.asarray, codebook._replace(centroids=centroids.astype(np.float32)))
        counts, sums = np.zeros(centroids.shape[:2]), np.zeros(centroids.shape)
        for rows, where in blocks_of(embeddings):
            own_counts, own_sums = jax.device_get(seen(rows, book, where))
            counts += own_counts
            sums += own_sums
        some = counts[:, :, None] > 0
        centroids = np.where(some, sums / np.where(some, counts[:, :, None], 1.0), centroids)
    return codebook._replace(centroids=centroids.astype(np.float32))


def reseeded(
    centroids: Float[Array, "m k p"],
    dead: Bool[Array, "m k"],
    candidates: Float[Array, "m n p"],
    where: Bool[Array, " n"],
    order: Int[Array, " n"],
) -> Float[Array, "m k p"]:
    """The centroids with every dead one put where an embedding lies.

    The i-th dead code of a part takes the i-th candidate that counts, in the given order, and
    starts again at the first where there are more codes than candidates.

    Args:
      centroids: to be mended.
      dead: which are.
      candidates: parts of embeddings, the same on every device.
      where: False for padding.
      order: a permutation of 0..n-1.
    """
    # Those that count first, in `order`.
    order = order[jnp.argsort(~where[order], stable=True)]
    number = jnp.cumsum(dead, axis=1) - 1
    row = jnp.take(order, number % jnp.maximum(jnp.sum(where), 1))
    fresh = jnp.take_along_axis(candidates, row[:, :, None], axis=1)
    alive = ~dead[:, :, None] | ~jnp.any(where)
    return jnp.where(alive, centroids, jax.lax.stop_gradient(fresh))


def principal_rotation(covariance: Float[Array, "d d"], parts: int) -> Float[Array, "d d"]:
    """The rotation to principal axes, dealt so that every part has about as much to store.

    A part's codes describe the axes dealt to it; the error is least where the product of the
    variances is the same for every part. The axes are dealt like cards, the largest first, there
    and back again. Among axes of equal variance the choice is rounding's, and as good either way.
    Source: Ge et al., TPAMI 2014, section 3.2, whose choice is greedy.

    Args:
      covariance: of the embeddings.
      parts: M, a divisor of d.
    """
    vectors = jnp.linalg.eigh(covariance)[1][:, ::-1]
    # The sign of an axis is nobody's choice: its largest component is positive.
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=0)[None], axis=0)
    rounds = np.arange(len(covariance)).reshape(-1, parts)
    rounds[1::2] = rounds[1::2, ::-1]
    return (vectors * jnp.where(largest < 0, -1.0, 1.0))[:, rounds.T.ravel()]
