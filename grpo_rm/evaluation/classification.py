"""How often a classifier is right, overall, by class and by group; the confusion matrix; what its decisions cost."""

import warnings
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from grpo_rm.evaluation.inputs import FloatArray, IntArray, check_labels, check_logits

Scores = npt.NDArray[np.float64]

TOP = 5


class ClassRow(TypedDict):
    """One class. Its recall is its accuracy: the share of its images that are classified right."""

    label: int
    precision: float
    recall: float
    f1: float
    support: int  # images


def per_image_accuracy(logits: FloatArray, labels: IntArray) -> Scores:
    """Return 1 where the greatest logit is the label's, else 0: (N,) float64.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    check_logits(logits, labels)
    return np.asarray(logits.argmax(axis=1) == labels, dtype=np.float64)


def per_image_top5(logits: FloatArray, labels: IntArray) -> Scores:
    """Return 1 where the label is among the five greatest logits, else 0: (N,) float64. With K <= 5 it always is.

    Of equal logits the first counts as the greater, as arg-max has it, so top-5 is never below top-1.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    check_logits(logits, labels)
    own = logits[np.arange(len(labels)), labels][:, None]
    is_earlier = np.arange(logits.shape[1]) < labels[:, None]
    num_ahead = ((logits > own) | ((logits == own) & is_earlier)).sum(axis=1)
    return np.asarray(num_ahead < TOP, dtype=np.float64)


def f1_macro(logits: FloatArray, labels: IntArray) -> float:
    """Return the unweighted mean of the F1 of all K classes, in [0, 1] (scikit-learn).

    K is the number of logits and not the number of classes that happen to occur. A class absent from both labels and
    predictions counts as F1 = 0: the divisor is then the same for every model, and a split that lacks m classes has a
    ceiling of (K - m) / K.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    return float(np.mean([row["f1"] for row in per_class_metrics(logits, labels)]))


def per_class_metrics(logits: FloatArray, labels: IntArray) -> list[ClassRow]:
    """Measure the arg-max predictions class by class (scikit-learn): K rows, in the order of the logits.

    What would be 0 / 0 is 0: the precision of a class that is never predicted, the recall of one that never occurs.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    check_logits(logits, labels)
    classes = np.arange(logits.shape[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")  # few images per class are no fault
        columns = precision_recall_fscore_support(labels, logits.argmax(axis=1), labels=classes, zero_division=0.0)
    return [
        {"label": label, "precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(count)}
        for label, (precision, recall, f1, count) in enumerate(zip(*columns, strict=True))
    ]


def worst_class_accuracy(logits: FloatArray, labels: IntArray) -> float:
    """Return the accuracy on the images of the class that fares worst, of the classes that occur in the labels.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    return _least_mean(per_image_accuracy(logits, labels), labels)


def worst_group_accuracy(logits: FloatArray, labels: IntArray, groups: Sequence[str]) -> float | None:
    """Return the accuracy on the images of the group that fares worst; None where no image has a group.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.
        groups: N names; an image of "" has no group and does not count.

    Raises:
        ValueError: see `inputs.check_logits`; another number of groups than of images.
    """
    is_right, names = per_image_accuracy(logits, labels), np.asarray(groups, dtype=np.str_)
    if names.shape != is_right.shape:
        raise ValueError(
            f"got groups of shape {names.shape} for {len(is_right)} images; expected ({len(is_right)},): "
            'pass one name per image, "" where it has no group'
        )
    has_group = names != ""
    return _least_mean(is_right[has_group], names[has_group]) if has_group.any() else None


def confusion_counts(predictions: IntArray, labels: IntArray, num_classes: int) -> npt.NDArray[np.int64]:
    """Count the images of each true class (row) that were given each predicted class (column).

    Args:
        predictions: (N,) class indices in range(num_classes), NumPy.
        labels: (N,) class indices in range(num_classes), NumPy.
        num_classes: K.

    Returns:
        (K, K) int64; the sum is N and row k sums to the number of images of class k.

    Raises:
        ValueError: no image, lengths that differ, an index outside range(num_classes).
    """
    if len(labels) == 0:
        raise ValueError("got no image; expected at least one: pass the predictions of a split that is not empty")
    check_labels(labels, num_images=len(labels), num_classes=num_classes)
    check_labels(predictions, num_images=len(labels), num_classes=num_classes)
    cells = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def per_image_cost(logits: FloatArray, labels: IntArray, costs: FloatArray) -> Scores:
    """Return what the arg-max prediction of each image costs: (N,) float64. The mean is the expected cost.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.
        costs: (K, K), NumPy, a row per true class, a column per predicted one (see `cost_matrix.read_cost_matrix`).

    Raises:
        ValueError: see `inputs.check_logits`; costs of another shape or not finite.
    """
    _check_costs(logits, labels, costs)
    return np.asarray(costs[labels, logits.argmax(axis=1)], dtype=np.float64)


def per_image_bayes_cost(logits: FloatArray, labels: IntArray, costs: FloatArray) -> Scores:
    """Return what each image costs if not the likeliest class but that of least expected cost is chosen: (N,) float64.

    The choice is argmin_j sum_i p(i) * costs[i, j] under the softmax probabilities p (Elkan 2001). It is best only if
    they are right: pass logits divided by the temperature. So a model that was not trained for the costs can heed
    them all the same, which is what one that was trained for them has to beat.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.
        costs: (K, K), as in `per_image_cost`.

    Raises:
        ValueError: see `per_image_cost`.
    """
    from scipy.special import softmax

    _check_costs(logits, labels, costs)
    expected = softmax(logits.astype(np.float64), axis=1) @ costs.astype(np.float64)  # (N, K)
    return np.asarray(costs[labels, expected.argmin(axis=1)], dtype=np.float64)


def _least_mean(scores: Scores, keys: npt.NDArray[Any]) -> float:
    """Return the least of the mean scores of the images of one key."""
    _, members = np.unique(keys, return_inverse=True)
    return float((np.bincount(members, scores) / np.bincount(members)).min())


def _check_costs(logits: FloatArray, labels: IntArray, costs: FloatArray) -> None:
    check_logits(logits, labels)
    num_classes = logits.shape[1]
    if costs.shape != (num_classes, num_classes):
        raise ValueError(
            f"got costs of shape {costs.shape} for {num_classes} classes; expected ({num_classes}, {num_classes}): "
            "pass a row per true class and a column per predicted one"
        )
    if not np.isfinite(costs).all():
        raise ValueError("got NaN or infinite costs; expected finite numbers: write a large cost instead")
