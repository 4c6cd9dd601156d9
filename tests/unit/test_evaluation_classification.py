"""Accuracies, macro F1, confusion matrix and costs against goldens, loops and the definition."""

import numpy as np
import pytest

from grpo_rm.evaluation.classification import (
    confusion_counts,
    f1_macro,
    per_class_metrics,
    per_image_accuracy,
    per_image_bayes_cost,
    per_image_cost,
    per_image_top5,
    worst_class_accuracy,
    worst_group_accuracy,
)

COSTS = np.array([[0.0, 1.0, 8.0], [2.0, 0.0, 1.0], [5.0, 3.0, -1.0]])


def example(seed, num_images=40, num_classes=6):
    """Noise, with the last class never in the labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_images, num_classes)).astype(np.float32)
    return logits, rng.integers(0, num_classes - 1, size=num_images)


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
    logits = one_hot(predictions, 3)
    assert per_image_accuracy(logits, labels).tolist() == [1, 1, 0, 1, 0, 1]
    assert f1_macro(logits, labels) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert confusion_counts(predictions, labels, 3).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    rows = per_class_metrics(logits, labels)
    assert rows[0] == pytest.approx({"label": 0, "precision": 1.0, "recall": 2 / 3, "f1": 4 / 5, "support": 3})
    assert rows[2] == pytest.approx({"label": 2, "precision": 1 / 2, "recall": 1.0, "f1": 2 / 3, "support": 1})
    assert worst_class_accuracy(logits, labels) == 1 / 2


def test_absent_class_keeps_the_divisor():
    labels = np.array([0, 1, 0, 1])
    assert f1_macro(one_hot(labels, 4), labels) == 0.5
    assert per_class_metrics(one_hot(labels, 4), labels)[3] == {
        "label": 3,
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 0,
    }


def test_absent_class_is_not_the_worst():
    labels = np.array([0, 1, 0, 1])
    assert worst_class_accuracy(one_hot(labels, 4), labels) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_naive_reference(seed):
    logits, labels = example(seed)
    predictions = logits.argmax(axis=1)
    assert f1_macro(logits, labels) == pytest.approx(naive_f1_macro(predictions, labels, 6))
    counts = confusion_counts(predictions, labels, 6)
    assert counts.shape == (6, 6)
    assert counts.dtype == np.int64
    assert all(counts[y, p] == sum((labels == y) & (predictions == p)) for y in range(6) for p in range(6))
    assert per_image_accuracy(logits, labels).mean() == pytest.approx(counts.trace() / counts.sum())
    recalls = [predictions[labels == k].tolist().count(k) / sum(labels == k) for k in range(5)]
    assert worst_class_accuracy(logits, labels) == pytest.approx(min(recalls))
    assert [row["recall"] for row in per_class_metrics(logits, labels)] == pytest.approx([*recalls, 0.0])


@pytest.mark.parametrize("seed", range(3))
def test_top5_against_scikit_learn_and_a_sort(seed):
    from sklearn.metrics import top_k_accuracy_score

    logits, labels = example(seed, num_images=200, num_classes=9)
    scores = per_image_top5(logits, labels)
    assert scores.mean() == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(9)))
    assert scores.tolist() == [
        label in sorted(range(9), key=lambda k: -row[k])[:5] for row, label in zip(logits, labels, strict=True)
    ]


def test_top5_of_ties_is_the_first_five_as_arg_max_is_the_first():
    labels = np.arange(8)
    assert per_image_top5(np.zeros((8, 8)), labels).tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    logits = np.random.default_rng(0).integers(0, 2, size=(300, 8)).astype(np.float32)
    labels = np.arange(300) % 8
    assert (per_image_top5(logits, labels) >= per_image_accuracy(logits, labels)).all()


def test_worst_group():
    labels = np.array([0, 0, 1, 1, 1, 0])
    logits = one_hot(np.array([0, 1, 1, 1, 0, 1]), 2)  # right: 1 0 1 1 0 0
    groups = ["day", "day", "night", "night", "night", ""]
    assert worst_group_accuracy(logits, labels, groups) == 1 / 2
    assert worst_group_accuracy(logits, labels, ["", "", "", "a", "", ""]) == 1.0
    assert worst_group_accuracy(logits, labels, [""] * 6) is None


def test_groups_of_another_number_are_explained():
    with pytest.raises(ValueError, match=r"shape \(1,\) for 2 images"):
        worst_group_accuracy(np.zeros((2, 3)), np.array([0, 1]), ["a"])


def test_cost_golden():
    """Probabilities .5 .4 .1: the costs to expect are 1.3, 0.8 and 4.3, so class 1 is chosen though 0 is likelier."""
    logits = np.log(np.array([[0.5, 0.4, 0.1]] * 3))
    labels = np.array([0, 1, 2])
    assert per_image_cost(logits, labels, COSTS).tolist() == [0, 2, 5]
    assert per_image_bayes_cost(logits, labels, COSTS).tolist() == [1, 0, 3]


@pytest.mark.parametrize("seed", range(3))
def test_cost_naive_reference(seed):
    logits, _ = example(seed, num_classes=3)
    labels = np.random.default_rng(seed).integers(0, 3, size=40)
    cheapest = []
    for row in np.exp(logits.astype(float)):
        expected = [sum(row[i] * COSTS[i, j] for i in range(3)) / row.sum() for j in range(3)]
        cheapest.append(expected.index(min(expected)))
    assert cheapest != logits.argmax(axis=1).tolist()
    assert per_image_bayes_cost(logits, labels, COSTS).tolist() == [
        COSTS[y, j] for y, j in zip(labels, cheapest, strict=True)
    ]
    likeliest = [row.argmax() for row in logits]
    assert per_image_cost(logits, labels, COSTS).tolist() == [
        COSTS[y, j] for y, j in zip(labels, likeliest, strict=True)
    ]


def test_equal_costs_of_all_confusions_are_the_error_rate():
    logits, labels = example(0)
    costs = 1.0 - np.eye(6)
    errors = 1.0 - per_image_accuracy(logits, labels)
    assert per_image_cost(logits, labels, costs).tolist() == errors.tolist()
    assert per_image_bayes_cost(logits, labels, costs).tolist() == errors.tolist()


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (np.zeros((3, 2)), r"shape \(3, 2\) for 3 classes"),
        (np.full((3, 3), np.nan), "NaN or infinite costs"),
    ],
)
def test_bad_costs_are_explained(costs, message):
    with pytest.raises(ValueError, match=message):
        per_image_cost(np.zeros((1, 3)), np.array([0]), costs)


def test_order_of_images_does_not_matter():
    logits, labels = example(0)
    order = np.random.default_rng(1).permutation(40)
    assert per_class_metrics(logits[order], labels[order]) == per_class_metrics(logits, labels)


def test_a_class_per_image_warns_nobody():
    assert f1_macro(np.eye(30), np.arange(30)) == 1.0


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
    for function in (per_image_accuracy, per_image_top5, per_class_metrics, f1_macro, worst_class_accuracy):
        with pytest.raises(ValueError, match=message):
            function(logits, labels)


def test_bad_predictions_are_explained():
    with pytest.raises(ValueError, match="from 0 to 4; expected 0 to 2"):
        confusion_counts(np.array([0, 4]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="no image"):
        confusion_counts(np.zeros(0, int), np.zeros(0, int), 3)
