"""How well the classes of pictures are told."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vse_jax.evaluators.blocks import EvaluationError

# Of the classes that count as found by the second measure.
TOP = 5


class Classified(NamedTuple):
    """How well the classes of pictures were told.

    Attributes:
      metrics: `accuracy`, `per_class` (the mean over the classes that occur of their own accuracy)
        and, of more than TOP classes, `top5`, in percent; `cross_entropy` in nats.
      confusion: how many pictures of class i (rows) were taken for class j.
    """

    metrics: dict[str, float]
    confusion: Int[np.ndarray, "c c"]


def evaluate(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " m"]) -> Classified:
    """Measures of pictures of which each has a class.

    Ties count against the model: a picture is right if its class alone has the highest logit, and
    among the first five if fewer than five others have as high a one. In `confusion` a tie goes to
    a wrong class.

    Args:
      logits: of each class.
      labels: the true classes, 0 to c - 1.

    Raises:
      EvaluationError: no pictures, as many labels as there are not, one that is no class, or logits
        that are not finite.
    """
    count, classes = logits.shape
    if not count or labels.shape != (count,):
        raise EvaluationError(
            f"logits of {count} pictures and {len(labels)} labels; there must be as many of both, "
            "and one at least"
        )
    if not np.isfinite(logits).all():
        bad = int(np.argmin(np.isfinite(logits).all(axis=1)))
        raise EvaluationError(f"the logits of picture {bad} are not finite")
    if labels.min() < 0 or labels.max() >= classes:
        bad = int(np.argmax((labels < 0) | (labels >= classes)))
        raise EvaluationError(
            f"the label of picture {bad} is {labels[bad]}; classes are 0 to {classes - 1}"
        )
    logits = logits.astype(np.float64)
    rows = np.arange(count)
    own = logits[rows, labels][:, None]
    rivals = logits.copy()
    rivals[rows, labels] = -np.inf
    above = (rivals >= own).sum(axis=1)
    told = np.where(above == 0, labels, rivals.argmax(axis=1))
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, told), 1)
    occurring = confusion.sum(axis=1)
    shares = confusion.diagonal()[occurring > 0] / occurring[occurring > 0]
    highest = logits.max(axis=1)
    log_total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    metrics = {
        "accuracy": 100 * float(np.mean(above == 0)),
        "per_class": 100 * float(np.mean(shares)),
        "cross_entropy": float(np.mean(log_total - own[:, 0])),
    }
    if classes > TOP:
        metrics["top5"] = 100 * float(np.mean(above < TOP))
    return Classified(metrics, confusion)
