"""Accuracy, macro F1 and the confusion matrix of a classifier."""

import numpy as np
import numpy.typing as npt

from grpo_rm.evaluation.inputs import FloatArray, IntArray, check_labels, check_logits


def classification_metrics(logits: FloatArray, labels: IntArray) -> dict[str, float]:
    """Measure the arg-max predictions (scikit-learn).

    `f1_macro` is the unweighted mean of the F1 of all K classes, K being the number of logits and not the number of
    classes that happen to occur. A class absent from both labels and predictions counts as F1 = 0: the divisor is then
    the same for every model, and a split that lacks m classes has a ceiling of (K - m) / K.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.

    Returns:
        `accuracy` and `f1_macro`, both shares in [0, 1].

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    from sklearn.metrics import accuracy_score, f1_score

    check_logits(logits, labels)
    predictions = logits.argmax(axis=1)
    classes = np.arange(logits.shape[1])
    f1_macro = f1_score(labels, predictions, labels=classes, average="macro", zero_division=0.0)
    return {"accuracy": float(accuracy_score(labels, predictions)), "f1_macro": float(f1_macro)}


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
