"""Accuracy, macro F1 and the confusion matrix against goldens, loops and the definition."""

import numpy as np
import pytest

from grpo_rm.evaluation.classification import classification_metrics, confusion_counts


def one_hot(predictions, num_classes):
    return np.eye(num_classes, dtype=np.float32)[predictions]


def naive_f1_macro(predictions, labels, num_classes):
    scores = []
    for k in range(num_classes):
        true_positives = sum(p == k and y == k for p, y in zip(predictions, labels, strict=True))
        claimed, actual = sum(p == k for p in predictions), sum(y == k for y in labels)
        scores.append(2 * true_positives / (claimed + actual) if claimed + actual else 0.0)
    return sum(scores) / num_classes


def test_golden():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predictions = np.array([0, 0, 1, 1, 2, 2])
    # F1: class 0 4/5, class 1 1/2, class 2 2/3
    metrics = classification_metrics(one_hot(predictions, 3), labels)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["f1_macro"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert confusion_counts(predictions, labels, 3).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_absent_class_keeps_the_divisor():
    labels = np.array([0, 1, 0, 1])
    metrics = classification_metrics(one_hot(labels, 4), labels)
    assert metrics == {"accuracy": 1.0, "f1_macro": 0.5}


@pytest.mark.parametrize("seed", range(5))
def test_naive_reference(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(40, 6)).astype(np.float32)
    labels = rng.integers(0, 5, size=40)  # class 5 never occurs in the labels
    predictions = logits.argmax(axis=1)
    metrics = classification_metrics(logits, labels)
    assert metrics["f1_macro"] == pytest.approx(naive_f1_macro(predictions, labels, 6))
    counts = confusion_counts(predictions, labels, 6)
    assert counts.shape == (6, 6)
    assert counts.dtype == np.int64
    assert all(counts[y, p] == sum((labels == y) & (predictions == p)) for y in range(6) for p in range(6))
    assert metrics["accuracy"] == pytest.approx(counts.trace() / counts.sum())


def test_order_of_images_does_not_matter():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 4)), rng.integers(0, 4, size=30)
    order = rng.permutation(30)
    assert classification_metrics(logits[order], labels[order]) == classification_metrics(logits, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "at least 1 image"),
        (np.zeros((2, 1)), np.zeros(2, int), "2 classes"),
        (np.zeros((2, 3)), np.zeros(3, int), r"shape \(3,\) for 2 images"),
        (np.zeros((2, 3)), np.array([0, 3]), "from 0 to 3; expected 0 to 2"),
        (np.zeros((2, 3)), np.array([0, -1]), "unlabelled"),
        (np.zeros((2, 3)), np.zeros(2), "expected integers"),
        (np.array([[0.0, np.nan], [0, 1], [np.inf, 0]]), np.zeros(3, int), "2 of 3 images"),
    ],
)
def test_bad_input_is_explained(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(logits, labels)


def test_bad_predictions_are_explained():
    with pytest.raises(ValueError, match="from 0 to 4; expected 0 to 2"):
        confusion_counts(np.array([0, 4]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="no image"):
        confusion_counts(np.zeros(0, int), np.zeros(0, int), 3)
