"""Metrics of a head that are no means over images, as functions of sums over images: a resample measures them anew."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo_rm.evaluation.calibration import NUM_BINS, bin_index, per_image_brier, per_image_nll
from grpo_rm.evaluation.inputs import FloatArray, IntArray, check_labels, check_logits
from grpo_rm.evaluation.resampling import MetricSums, Sums, mean_sums


def classifier_sums(logits: FloatArray, labels: IntArray) -> dict[str, MetricSums]:
    """Return all metrics that follow from logits alone: accuracy, NLL, Brier score, and `head_sums`.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    return _mean_metrics(logits, labels) | head_sums(logits, labels)


def _mean_metrics(logits: FloatArray, labels: IntArray) -> dict[str, MetricSums]:
    means = {
        "accuracy": logits.argmax(axis=1) == labels,
        "nll": per_image_nll(logits, labels),
        "brier": per_image_brier(logits, labels),
    }
    return {name: mean_sums(scores, is_share=name == "accuracy") for name, scores in means.items()}


def head_sums(logits: FloatArray, labels: IntArray) -> dict[str, MetricSums]:
    """Return the metrics of the head that are no means over images, under their names in evaluation.json.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    check_logits(logits, labels)
    predictions, num_classes = logits.argmax(axis=1), logits.shape[1]
    return {
        "f1_macro": f1_macro_sums(predictions, labels, num_classes),
        "worst_class_accuracy": worst_class_accuracy_sums(predictions, labels, num_classes),
        "ece": ece_sums(logits, labels),
    }


def constant_sums(labels: IntArray, num_classes: int) -> MetricSums:
    """Return macro F1 of the model that always says the most frequent class."""
    most_frequent = np.bincount(labels, minlength=num_classes).argmax()
    return f1_macro_sums(np.full(len(labels), most_frequent), labels, num_classes)


def extra_set_sums(logits: FloatArray, labels: IntArray) -> dict[str, MetricSums]:
    """Return what a model is measured by on a set that may lack classes: accuracy, NLL, Brier score, and macro F1 over
    the classes that it has.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    check_logits(logits, labels)
    classes = np.unique(labels)
    f1 = f1_macro_sums(logits.argmax(axis=1), labels, logits.shape[1], classes=classes)
    return _mean_metrics(logits, labels) | {"f1_macro": f1}


def f1_macro_sums(
    predictions: IntArray, labels: IntArray, num_classes: int, *, classes: IntArray | None = None
) -> MetricSums:
    """Return macro F1 with the conventions of `classification_metrics`: a class that does not occur counts as 0.

    Args:
        predictions: (N,) class indices.
        labels: (N,) class indices.
        num_classes: K.
        classes: The classes that the mean is over; None: all K.

    Raises:
        ValueError: see `inputs.check_labels`.
    """
    chosen = np.arange(num_classes) if classes is None else classes
    right, labeled, predicted = (counts[chosen] for counts in _counts(predictions, labels, num_classes))

    def finish(sums: Sums) -> Sums:
        hits, others = sums[: len(chosen)], sums[len(chosen) :]
        f1 = 2 * hits / np.maximum(others, 1)  # hits are 0 where nothing is labeled or predicted
        return np.asarray(f1.mean(axis=0))

    return MetricSums(_stack(right, labeled + predicted), finish)


def worst_class_accuracy_sums(predictions: IntArray, labels: IntArray, num_classes: int) -> MetricSums:
    """Return the lowest accuracy (recall) of a class, among the classes that a resample has.

    Raises:
        ValueError: see `inputs.check_labels`.
    """
    right, labeled, _ = _counts(predictions, labels, num_classes)
    return _worst_sums(right, labeled)


def worst_group_accuracy_sums(predictions: IntArray, labels: IntArray, groups: Sequence[str]) -> MetricSums | None:
    """Return the lowest accuracy of a group, among the groups that a resample has; None where no image has a group.

    Args:
        predictions: (N,) class indices.
        labels: (N,) class indices.
        groups: N names; an image of "" has no group and does not count.
    """
    from scipy.sparse import csr_array

    names, places = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    images, shape = np.arange(len(places)), (len(names), len(places))
    in_group = csr_array((np.ones(len(places)), (places, images)), shape=shape)[names != ""]
    right = csr_array(((predictions == labels).astype(np.float64), (places, images)), shape=shape)[names != ""]
    return _worst_sums(right, in_group) if in_group.shape[0] else None


def _worst_sums(right: Any, present: Any) -> MetricSums:
    """Return the lowest share of right images of a class or group, of (K, N) sparse ones."""
    num_parts = right.shape[0]

    def finish(sums: Sums) -> Sums:
        hits, totals = sums[:num_parts], sums[num_parts:]
        return np.asarray(np.where(totals > 0, hits / np.maximum(totals, 1), 1.0).min(axis=0))  # 1: lowers none

    return MetricSums(_stack(right, present), finish)


def ece_sums(logits: FloatArray, labels: IntArray) -> MetricSums:
    """Return the expected calibration error of `calibration_metrics`: sum_b |sum of (confidence - right)| / N.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    from scipy.sparse import csr_array

    check_logits(logits, labels)
    bins, confidences, is_right = bin_index(logits, labels)
    num_images = len(labels)
    gaps = confidences.astype(np.float64) - is_right
    terms = csr_array((gaps, (bins, np.arange(num_images))), shape=(NUM_BINS, num_images))
    return MetricSums(terms, lambda sums: np.asarray(np.abs(sums).sum(axis=0) / num_images))


def _counts(predictions: IntArray, labels: IntArray, num_classes: int) -> tuple[Any, Any, Any]:
    """Return (K, N) sparse ones: where label k was predicted rightly, where it is the label, where it was predicted."""
    from scipy.sparse import csr_array

    for classes in (predictions, labels):
        check_labels(classes, num_images=len(labels), num_classes=num_classes)
    images, shape = np.arange(len(labels)), (num_classes, len(labels))
    is_right = predictions == labels
    rows = ((labels[is_right], images[is_right]), (labels, images), (predictions, images))
    right, labeled, predicted = (csr_array((np.ones(len(where[0])), where), shape=shape) for where in rows)
    return right, labeled, predicted


def _stack(*blocks: Any) -> Any:
    from scipy.sparse import vstack

    return vstack(blocks, format="csr")
