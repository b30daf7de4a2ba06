"""What captions mean, as vectors: latent semantic analysis of the training captions."""

import functools
import hashlib
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from vse_jax.data import feature_files, whole_file
from vse_jax.data.content_words import stop_words
from vse_jax.data.split import DataError

if TYPE_CHECKING:
    from nltk.stem import PorterStemmer

log = logging.getLogger(__name__)
WIDTH, ITERATIONS, SEED = 400, 100, 0
# Changes whenever the same captions would get other vectors.
VERSION = 1
NOT_LETTERS = re.compile("[^a-zA-Z#]")


def of_captions(
    captions: Sequence[str], data_dir: str | os.PathLike[str]
) -> Float[np.ndarray, "m s"]:
    """float32 [m, s] of the training captions, s = 400; computed once, cached in `data_dir`.

    Fewer where the captions have fewer different words.

    Raises:
      DataError: no caption has a word that counts, or the cache cannot be written.
    """
    path = Path(data_dir).expanduser() / "semantics" / f"{origin(captions)[:16]}.npy"
    if path.is_file():
        try:
            return _checked(np.load(path), len(captions), path)
        except feature_files.DAMAGED:
            log.warning("%s is damaged; it is computed anew", path)
    begun = time.perf_counter()
    found = latent(captions)
    log.info(
        "semantics of %d captions, width %d, in %.0f s", *found.shape, time.perf_counter() - begun
    )
    whole_file.write(path, lambda file: np.save(file, found))
    return found


def origin(captions: Sequence[str]) -> str:
    """SHA-256 (hex) of all that decides on what `of_captions` finds."""
    return _digest(captions, VERSION, WIDTH, ITERATIONS, SEED)


def _digest(captions: Sequence[str], *settings: object) -> str:
    total = hashlib.sha256(str(settings).encode())
    for caption in captions:
        total.update(caption.encode() + b"\n")
    return total.hexdigest()


def to_file(path: str | os.PathLike[str], captions: Sequence[str], found: np.ndarray) -> None:
    """Writes vectors [m, s] of training captions as an .npz file that knows whose they are."""
    found, of = found.astype(np.float32), np.array(_digest(captions))
    whole_file.write(
        Path(path),
        lambda file: np.savez(file, semantics=found, captions=of),
        "give a path with room and permission to write",
    )


def from_file(path: str | os.PathLike[str], captions: Sequence[str]) -> Float[np.ndarray, "m s"]:
    """float32 [m, s] of a file with a row for each training caption, in their order.

    It is an .npz of `to_file`, whose captions are compared, or a .npy of anyone's, whose are not.

    Raises:
      DataError: no such file, other captions, another number of rows, or rows that are not finite
        float32 numbers.
    """
    try:
        # NumPy would leave a damaged file open.
        with open(os.path.expanduser(path), "rb") as file:
            found, of = np.load(file, allow_pickle=False), None
            if isinstance(found, np.lib.npyio.NpzFile):
                with found as arrays:
                    found, of = arrays["semantics"], str(arrays["captions"])
    except feature_files.DAMAGED as error:
        raise DataError(f"{path}: no array of caption semantics: {error}") from error
    if of is not None and of != _digest(captions):
        raise DataError(
            f"{path}: the semantics of other captions than the {len(captions)} of this training "
            "split, or of these in another order: write it again from this config"
        )
    try:
        return _checked(found, len(captions), path)
    except ValueError as error:
        raise DataError(str(error)) from error


def latent(captions: Sequence[str]) -> Float[np.ndarray, "m s"]:
    """Rows of U Sigma of the captions' TF-IDF: <u_i, u_j> is how alike i and j are.

    Words are lower-cased, without stop words, stemmed by Porter; TF-IDF with smoothed idf and rows
    of length 1; truncated SVD, randomized with a fixed seed. Source: Gong & Cosma, 2023, section 3.

    Raises:
      DataError: no caption has a word that counts.
    """
    # Here: scikit-learn takes seconds to import.
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        counts = TfidfVectorizer(smooth_idf=True).fit_transform(map(stems, captions))
    except ValueError as error:  # an empty vocabulary
        raise DataError("no training caption has an English word for its semantics") from error
    width = min(WIDTH, *(side - 1 for side in counts.shape))
    if width < 1:
        raise DataError(
            f"{counts.shape[0]} training captions with {counts.shape[1]} different words are too "
            "few for semantics"
        )
    svd = TruncatedSVD(width, algorithm="randomized", n_iter=ITERATIONS, random_state=SEED)
    # The share of the variance, which is not asked for, is 0 / 0 where all captions mean the same.
    with np.errstate(invalid="ignore"):
        return svd.fit_transform(counts).astype(np.float32)


def stems(caption: str) -> str:
    """The stems of a caption's words that are no stop words, parted by spaces."""
    words = NOT_LETTERS.sub(" ", caption).lower().split()
    return " ".join(_stem(word) for word in words if word not in stop_words())


@functools.cache
def _stem(word: str) -> str:
    return _stemmer().stem(word)


@functools.cache
def _stemmer() -> "PorterStemmer":
    from nltk.stem import PorterStemmer

    return PorterStemmer()


def _checked(
    found: np.ndarray, captions: int, path: str | os.PathLike[str]
) -> Float[np.ndarray, "m s"]:
    """The array as float32; raises ValueError where it is not [captions, s > 0] or not finite."""
    fits = found.ndim == 2 and len(found) == captions and found.shape[1] > 0
    if not fits or not np.issubdtype(found.dtype, np.floating):
        raise ValueError(
            f"{path}: {found.dtype}{list(found.shape)}; expected floats [{captions}, width], a row "
            "for each training caption, of width 1 or more"
        )
    # A float64 may be finite that as float32 is not.
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise ValueError(f"{path}: row {bad[0]} is not finite")
    return found
