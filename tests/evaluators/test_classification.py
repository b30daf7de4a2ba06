"""Measures of classes, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn import metrics

from vse_jax.evaluators import classification
from vse_jax.evaluators.blocks import EvaluationError


def test_measures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    # Of the nine classes two do not occur.
    labels = rng.choice([0, 1, 2, 3, 5, 6, 8], 200)
    logits = rng.normal(size=(200, 9)) + 2 * np.eye(9)[labels]
    found = classification.evaluate(logits.astype(np.float32), labels)
    told = logits.argmax(axis=1)
    every = np.arange(9)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.metrics == pytest.approx(
        {
            "accuracy": 100 * metrics.accuracy_score(labels, told),
            # A class that is told but does not occur has no accuracy of its own.
            "per_class": 100 * metrics.recall_score(
                labels, told, labels=np.unique(labels), average="macro"
            ),
            "top5": 100 * metrics.top_k_accuracy_score(labels, logits, k=5, labels=every),
            "cross_entropy": metrics.log_loss(labels, shares, labels=every),
        },
        rel=1e-5,
    )  # fmt: skip
    np.testing.assert_array_equal(
        found.confusion, metrics.confusion_matrix(labels, told, labels=every)
    )


def test_ties_count_against_the_model():
    found = classification.evaluate(np.zeros((6, 6), np.float32), np.arange(6))
    assert found.metrics["accuracy"] == found.metrics["top5"] == 0
    assert found.confusion.diagonal().sum() == 0
    assert found.confusion.sum() == 6


def test_few_classes_have_no_top_five():
    assert "top5" not in classification.evaluate(np.eye(5, dtype=np.float32), np.arange(5)).metrics


@pytest.mark.parametrize(
    ("logits", "labels", "told"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "0 pictures"),
        (np.zeros((2, 3)), np.zeros(3, int), "2 pictures and 3 labels"),
        (np.array([[0, 1], [np.nan, 0]]), np.zeros(2, int), "picture 1 are not finite"),
        (np.zeros((2, 3)), np.array([0, 3]), "picture 1 is 3; classes are 0 to 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), "picture 0 is -1"),
    ],
)
def test_what_is_no_measure_is_an_error(logits, labels, told):
    with pytest.raises(EvaluationError, match=told):
        classification.evaluate(logits.astype(np.float32), labels)
