"""How good are dense predictions? Metrics of all pixels of a set of images, from the sums of each image.

So a resample of the images measures them anew. `pixels` sums up; the boundary F1 is in `boundary`.
"""

from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from grpo_rm.evaluation.calibration import ReliabilityBin
from grpo_rm.evaluation.pixels import Counts, PixelSums
from grpo_rm.evaluation.resampling import MetricSums, Sums


class ClassIou(TypedDict):
    """One class. IoU is None where it occurs in neither truth nor prediction, accuracy where it is not in the truth."""

    label: int
    iou: float | None
    accuracy: float | None
    pixels: int  # of the truth


def pixel_metrics(sums: PixelSums) -> dict[str, MetricSums]:
    """Return all metrics of the pixels, but for the IoU of each class (`class_iou_sums`).

    Raises:
        ValueError: all pixels are void.
    """
    count = sums.count.sum(axis=1)
    return {
        "miou": mean_iou_sums(sums.confusion),
        "pixel_accuracy": pixel_accuracy_sums(sums.confusion),
        "mean_class_accuracy": mean_class_accuracy_sums(sums.confusion),
        "nll": ratio_sums(sums.nll, count),
        "ece": _ece_sums(sums),
    }


def mean_iou_sums(confusion: Counts) -> MetricSums:
    """Return the mean IoU of ONE confusion matrix, that of all images, over the classes that occur.

    A class occurs where it is in the truth or in the prediction of an image of the set, or of the resample. One that
    is in neither is left out of the mean (torchmetrics' MulticlassJaccardIndex); one that is predicted and never true
    counts as 0. As a resample may lack a rare class, the mean can be over fewer classes there.

    Args:
        confusion: (N, K, K), see `pixels.confusion_per_image`.

    Raises:
        ValueError: all pixels are void.
    """
    hits, labeled, predicted = _class_counts(confusion)
    return _mean_of_classes(hits, labeled + predicted - hits)


def constant_iou_sums(confusion: Counts) -> MetricSums:
    """Return the mean IoU of the model that always says the most frequent class.

    Args:
        confusion: (N, K, K) of any model on the same images, see `pixels.confusion_per_image`.

    Raises:
        ValueError: all pixels are void.
    """
    labeled = confusion.sum(axis=2)
    constant = np.zeros_like(confusion)
    constant[:, :, labeled.sum(axis=0).argmax()] = labeled
    return mean_iou_sums(constant)


def mean_class_accuracy_sums(confusion: Counts) -> MetricSums:
    """Return the mean accuracy (recall) of the classes that occur in the truth (scikit-learn's balanced accuracy).

    Args:
        confusion: (N, K, K), see `pixels.confusion_per_image`.

    Raises:
        ValueError: all pixels are void.
    """
    hits, labeled, _ = _class_counts(confusion)
    return _mean_of_classes(hits, labeled)


def pixel_accuracy_sums(confusion: Counts) -> MetricSums:
    """Return the share of pixels that are right: each pixel counts the same, so an image with less void counts more.

    Args:
        confusion: (N, K, K), see `pixels.confusion_per_image`.

    Raises:
        ValueError: all pixels are void.
    """
    hits, labeled, _ = _class_counts(confusion)
    return ratio_sums(hits.sum(axis=1), labeled.sum(axis=1))


def class_iou_sums(confusion: Counts) -> list[MetricSums]:
    """Return the IoU of each class in order; 0 in a resample that lacks it in truth and prediction.

    So two models differ by 0 wherever a class is not in the truth.

    Args:
        confusion: (N, K, K), see `pixels.confusion_per_image`.

    Raises:
        ValueError: all pixels are void.
    """
    hits, labeled, predicted = _class_counts(confusion)
    union = labeled + predicted - hits
    return [ratio_sums(hits[:, label], union[:, label]) for label in range(hits.shape[1])]


def class_ious(confusion: Counts) -> list[ClassIou]:
    """Measure class by class, all images together: K rows, in the order of the classes.

    Args:
        confusion: (N, K, K), see `pixels.confusion_per_image`.

    Raises:
        ValueError: all pixels are void.
    """
    columns = (counts.sum(axis=0).tolist() for counts in _class_counts(confusion))
    return [
        {
            "label": label,
            "iou": hits / union if (union := labeled + predicted - hits) else None,
            "accuracy": hits / labeled if labeled else None,
            "pixels": labeled,
        }
        for label, (hits, labeled, predicted) in enumerate(zip(*columns, strict=True))
    ]


def pixel_reliability(sums: PixelSums) -> list[ReliabilityBin]:
    """Return the points of the reliability diagram of the pixels, by rising confidence; empty bins are left out."""
    totals = zip(*(part.sum(axis=0).tolist() for part in (sums.confidence, sums.right, sums.count)), strict=True)
    return [
        {"confidence": confidence / count, "accuracy": right / count, "count": count}
        for confidence, right, count in totals
        if count
    ]


def _class_counts(confusion: Counts) -> tuple[Counts, Counts, Counts]:
    """Return (N, K) right pixels of each class, pixels that have it as their truth, and pixels it is predicted for."""
    if confusion.sum() == 0:
        raise ValueError("got void pixels alone; expected pixels with a class: check the masks and data.void_index")
    return np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2), confusion.sum(axis=1)


def _mean_of_classes(hits: Counts, totals: Counts) -> MetricSums:
    """Return the mean of hits / totals, each (N, K), over the classes whose total is not 0."""
    num_classes = hits.shape[1]

    def finish(sums: Sums) -> Sums:
        own, all_ = sums[:num_classes], sums[num_classes:]
        shares = own / np.maximum(all_, 1)  # of a total of 0: 0
        return np.asarray(shares.sum(axis=0) / np.maximum((all_ > 0).sum(axis=0), 1))

    return _metric(finish, hits, totals)


def ratio_sums(parts: npt.NDArray[Any], totals: Counts) -> MetricSums:
    """Return the sum of parts / the sum of totals, each (N,); 0 in a resample whose totals are all 0."""
    return _metric(lambda sums: np.asarray(sums[0] / np.maximum(sums[1], 1)), parts[:, None], totals[:, None])


def _ece_sums(sums: PixelSums) -> MetricSums:
    """Return sum_b |sum of (confidence - right)| / pixels (Guo et al. 2017), of the top class, 15 bins."""
    gaps = sums.confidence - sums.right

    def finish(totals: Sums) -> Sums:
        return np.asarray(np.abs(totals[:-1]).sum(axis=0) / np.maximum(totals[-1], 1))

    return _metric(finish, gaps, sums.count.sum(axis=1, keepdims=True))


def _metric(finish: Callable[[Sums], Sums], *columns: npt.NDArray[Any]) -> MetricSums:
    """Return the metric whose terms are the columns (N, S) of each image."""
    from scipy.sparse import csr_array

    return MetricSums(csr_array(np.concatenate(columns, axis=1).T.astype(np.float64)), finish)
