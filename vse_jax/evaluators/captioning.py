"""How close captions are to what people wrote, and the baseline of the most similar picture.

The figures are those of the COCO caption evaluation (Chen et al., "Microsoft COCO Captions",
arXiv 1504.00325, section 3), computed by the package pycocoevalcap, but for the tokens: that
evaluation splits by Stanford's tokenizer, which needs Java. Here sentences are split by `words`
on every machine, so that no figure depends on where it was computed.
"""

import functools
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from vse_jax.evaluators import retrieval
from vse_jax.evaluators.blocks import EvaluationError

log = logging.getLogger(__name__)

# Test pictures whose cosines with a block of training pictures are held at a time.
_ROWS = 1024

# Picture number -> sentences, as pycocoevalcap takes them.
_Sentences = Mapping[int, list[str]]


def words(sentence: str) -> list[str]:
    """The words that figures are computed of: lower case, letters a to z, digits, nothing else.

    The rule of DVSA's tokenizer: Karpathy & Fei-Fei, CVPR 2015, section 4.
    """
    return re.sub(r"[^a-z0-9\s]", "", sentence.lower()).split()


def evaluate(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, java: bool = True
) -> dict[str, float]:
    """Figures of one caption for each of n pictures, in percent.

    A caption without words is worth 0. References without words are left out. CIDEr weighs
    n-grams by how few pictures' references have them: with a single picture every weight, and so
    CIDEr, is 0, and with few pictures it says little. Sources: Papineni et al., ACL 2002 (BLEU, of
    the whole set, with the closest reference's length); Lin, 2004 (ROUGE-L, beta = 1.2, the largest
    precision and the largest recall of the references); Vedantam et al., CVPR 2015 (CIDEr, with
    pycocoevalcap's clipping and Gaussian of the lengths, sigma = 6).

    Args:
      candidates: the caption of each picture.
      references: what people wrote of the same picture, at least one each.
      java: whether to compute METEOR and SPICE too, where Java is found: seconds to minutes.

    Returns:
      `caption/BLEU-1` to `caption/BLEU-4`, `caption/ROUGE-L`, and `caption/CIDEr`, at most 1,000:
      where papers print 110 or 1.10, it is 110. `caption/METEOR` with Java; `caption/SPICE` with
      Java and the language models that `python -m pycocoevalcap.spice.get_stanford_models` brings.
      The log says, once, which of these two is left out and why.

    Raises:
      EvaluationError: no pictures, other numbers of captions and of lists of references, a picture
        without any reference that has words, or pycocoevalcap is not installed.
    """
    if len(candidates) == 0 or len(candidates) != len(references):
        raise EvaluationError(
            f"{len(candidates)} captions and references of {len(references)} pictures; there must "
            "be as many of both, and one at least"
        )
    said = {number: [" ".join(words(text))] for number, text in enumerate(candidates)}
    written = {number: _references(number, texts) for number, texts in enumerate(references)}
    figures = _figures(written, said) | (_figures_by_java(written, said) if java else {})
    return {f"caption/{name}": 100 * value for name, value in figures.items()}


def nearest_captions(
    test: Float[np.ndarray, "n f"],
    training: Float[np.ndarray, "m f"],
    captions: Sequence[str],
    caption_image: Shaped[np.ndarray, " c"],
) -> list[str]:
    """For each test picture the first caption of the training picture most similar to it.

    By the largest cosine of their features; of equals the first training picture. A feature of
    length 0 has cosine 0 with all. Memory beyond the features grows with blocks of both sets, not
    with n m. Source: the baseline of Karpathy & Fei-Fei, CVPR 2015, section 4.2.

    Args:
      test: features of n pictures.
      training: features of m pictures.
      captions: c captions of the training pictures.
      caption_image: int [c], the row number of each caption's training picture.

    Raises:
      EvaluationError: no training pictures, features that are not finite, other numbers of captions
        and of their pictures, a picture without caption, a caption of no picture.
    """
    first = _first_captions(len(training), len(captions), caption_image)
    queries, keys = _unit(test, "test"), jnp.asarray(_unit(training, "training"))
    nearest = [
        retrieval.top_k(queries[start : start + _ROWS], keys, 1)[0][:, 0]
        for start in range(0, len(queries), _ROWS)
    ]
    return [captions[first[row]] for rows in nearest for row in rows]


def _references(number: int, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise EvaluationError(f"references of picture {number} are one text, not a list of texts")
    sentences = [" ".join(words(text)) for text in texts]
    if not any(sentences):
        raise EvaluationError(f"picture {number} has no reference with a word in it")
    return [sentence for sentence in sentences if sentence]


def _figures(written: _Sentences, said: _Sentences) -> dict[str, float]:
    """What needs no Java, in [0, 1], CIDEr in [0, 10]."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise EvaluationError(
            "figures of captions need pycocoevalcap, the extra [caption]: "
            "pip install 'vse-jax[caption]'"
        ) from error
    # Its default is to print.
    bleu, _ = Bleu(4).compute_score(written, said, verbose=0)
    return {f"BLEU-{n}": float(value) for n, value in enumerate(bleu, 1)} | {
        "ROUGE-L": float(Rouge().compute_score(written, said)[0]),
        "CIDEr": float(Cider().compute_score(written, said)[0]),
    }


def _figures_by_java(written: _Sentences, said: _Sentences) -> dict[str, float]:
    """METEOR and SPICE, in [0, 1], those of them that this machine can compute."""
    if shutil.which("java") is None:
        _tell("METEOR and SPICE are left out: they need Java, and there is no command java")
        return {}
    found = {}
    measures: dict[str, Callable[[_Sentences, _Sentences], float]] = {"METEOR": _meteor}
    if _has_language_models():
        measures["SPICE"] = _spice
    else:
        _tell(
            "SPICE is left out: it needs the language models that "
            "`python -m pycocoevalcap.spice.get_stanford_models` brings"
        )
    for name, measure in measures.items():
        try:
            found[name] = measure(written, said)
        # Java is there, but too old, too new or short of memory: it ends, or says no number.
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            _tell(f"{name} is left out: its Java program failed: {error}")
    return found


def _meteor(written: _Sentences, said: _Sentences) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    # The package leaves the pipes open, and after a failure its lock closed, on which `__del__`
    # would then wait for ever.
    with meteor.meteor_p:
        try:
            return float(meteor.compute_score(written, said)[0])
        finally:
            if meteor.lock.locked():
                meteor.lock.release()


def _spice(written: _Sentences, said: _Sentences) -> float:
    from pycocoevalcap.spice.spice import Spice

    return float(Spice().compute_score(written, said)[0])


def _has_language_models() -> bool:
    """Whether what SPICE would otherwise download, half a gigabyte, is there."""
    from pycocoevalcap.spice import get_stanford_models as models

    return os.path.exists(os.path.join(models.SPICEDIR, models.SPICELIB, f"{models.JAR}.jar"))


@functools.cache
def _tell(message: str) -> None:
    """Logs a message the first time only: captions are evaluated again and again in training."""
    log.warning("%s", message)


def _unit(features: Float[np.ndarray, "n f"], which: str) -> Float[np.ndarray, "n f"]:
    """The features scaled to length 1; those of length 0 as they are."""
    features = np.asarray(features, np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        row = np.flatnonzero(~np.isfinite(lengths))[0]
        raise EvaluationError(f"features of {which} picture {row} are not finite")
    return features / np.where(lengths > 0, lengths, 1)


def _first_captions(
    images: int, captions: int, caption_image: Shaped[np.ndarray, " c"]
) -> Shaped[np.ndarray, " images"]:
    """The number of each picture's first caption."""
    if images == 0:
        raise EvaluationError("there are no training pictures to take captions of")
    if len(caption_image) != captions:
        raise EvaluationError(f"{captions} captions and the pictures of {len(caption_image)}")
    owners, first = np.unique(caption_image, return_index=True)
    if captions and not 0 <= owners[0] <= owners[-1] < images:
        raise EvaluationError(
            f"captions are of pictures {owners[0]} to {owners[-1]}; there are {images}, from 0"
        )
    if len(owners) < images:
        absent = np.setdiff1d(np.arange(images), owners)
        raise EvaluationError(f"{len(absent)} training pictures have no caption, first {absent[0]}")
    return first
