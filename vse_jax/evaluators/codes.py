"""Retrieval from the codes of a product quantizer, by table look-up."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Shaped

from vse_jax import codebook as codebooks
from vse_jax.codebook import Codebook
from vse_jax.evaluators import retrieval


def asymmetric(
    codebook: Codebook, queries: Float[Array, "q d"], codes: Shaped[Array, "c m"]
) -> Float[Array, "q c"]:
    """Minus the distance of each query to what each item's codes stand for.

    By a table [m, k] of each query, read at the codes. Source: Jegou et al., TPAMI 2011,
    section 3, asymmetric distance computation.
    """
    return _looked_up(codebooks.code_distances(queries, codebook), codes)


def symmetric(
    codebook: Codebook, queries: Shaped[Array, "q m"], codes: Shaped[Array, "c m"]
) -> Float[Array, "q c"]:
    """Minus the distance of what two items' codes stand for; queries are codes too."""
    differences = codebook.centroids[:, :, None] - codebook.centroids[:, None]
    table = jnp.sum(differences**2, axis=3)  # [m, k, k]
    own = jnp.take_along_axis(table, queries.astype(jnp.int32).T[:, :, None], axis=1)
    return _looked_up(own, codes)


def evaluate(
    name: str,
    images: Float[np.ndarray, "n d"],
    captions: Float[np.ndarray, "m d"],
    caption_image: Shaped[np.ndarray, " m"],
    codebook: Codebook,
) -> dict[str, float]:
    """Retrieval metrics from codes, under the named protocol.

    `codes/asymmetric/...`: queries are embeddings, what is searched is codes. `codes/symmetric/
    ...`: both are codes. See `retrieval.evaluate` for the rest.
    """
    book = jax.tree.map(jnp.asarray, codebook)
    image_codes, caption_codes = (codebooks.quantize(rows, codebook) for rows in (images, captions))
    among_captions = retrieval.evaluate(
        name, images, caption_codes, caption_image, score=Partial(asymmetric, book)
    )
    among_images = retrieval.evaluate(
        name, image_codes, captions, caption_image, score=Partial(_codes_first, book)
    )
    both = {k: v for k, v in among_captions.items() if k.startswith("i2t/")} | {
        k: v for k, v in among_images.items() if k.startswith("t2i/")
    }
    both["rsum"] = sum(value for key, value in both.items() if "/R@" in key)
    alike = retrieval.evaluate(
        name, image_codes, caption_codes, caption_image, score=Partial(symmetric, book)
    )
    return {f"codes/asymmetric/{key}": value for key, value in both.items()} | {
        f"codes/symmetric/{key}": value for key, value in alike.items()
    }


def usage(embeddings: Float[np.ndarray, "n d"], codebook: Codebook) -> Float[np.ndarray, " k"]:
    """How often the codes are chosen, most often first, the mean over the parts; 1 is even."""
    parts, size, _ = codebook.centroids.shape
    counts = [
        np.bincount(part, minlength=size) for part in codebooks.quantize(embeddings, codebook).T
    ]
    ranked = np.sort(np.stack(counts), axis=1)[:, ::-1]
    return ranked.sum(axis=0) * size / (parts * len(embeddings))


def _codes_first(
    codebook: Codebook, codes: Shaped[Array, "c m"], queries: Float[Array, "q d"]
) -> Float[Array, "c q"]:
    """`asymmetric` with the codes first."""
    return asymmetric(codebook, queries, codes).T


def _looked_up(tables: Float[Array, "m q k"], codes: Shaped[Array, "c m"]) -> Float[Array, "q c"]:
    """Minus the root of the sum over m of tables[m, q, codes[c, m]], one part at a time."""

    def step(
        total: Float[Array, "q c"], part: tuple[Float[Array, "q k"], Int[Array, " c"]]
    ) -> tuple[Float[Array, "q c"], None]:
        table, code = part
        return total + jnp.take(table, code, axis=1), None

    start = jnp.zeros((tables.shape[1], codes.shape[0]))
    squares, _ = jax.lax.scan(step, start, (tables, codes.astype(jnp.int32).T))
    return -jnp.sqrt(jnp.maximum(squares, 0.0))
