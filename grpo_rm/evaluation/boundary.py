"""Are the outlines of a segmentation where they should be? The boundary F1 of Csurka et al. (BMVC 2013)."""

import numpy as np
import numpy.typing as npt

from grpo_rm.evaluation.inputs import IntArray
from grpo_rm.evaluation.pixels import check_masks
from grpo_rm.evaluation.resampling import MetricSums, Sums
from grpo_rm.masks import VOID

TOLERANCE = 0.0075  # of the diagonal of the image

Scores = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.bool_]  # (H, W)


def boundary_f1(predictions: IntArray, masks: IntArray, num_classes: int) -> Scores:
    """Measure the outline of each class in each image.

    The boundary of a class is its pixels that share an edge with a pixel of another class; the rim of the image is
    none. Precision is the share of the predicted boundary that is at most 0.75 % of the diagonal of the image away
    from the true one, recall the share of the true one that is as near to the predicted one (Euclidean, from pixel to
    pixel, not rounded: below a diagonal of 134 pixels they have to coincide). Where the classes meet is unknown at
    void pixels, so neither they nor the eight neighbors of each belong to a boundary, in truth or prediction.

    Args:
        predictions: (N, H, W) class indices; what they are on void pixels does not matter.
        masks: (N, H, W) class indices, `VOID` where a pixel does not count.
        num_classes: K.

    Returns:
        (N, K); NaN where a class has a boundary in neither, 0 where it has one in either.

    Raises:
        ValueError: see `pixels.check_masks`.
    """
    check_masks(predictions, masks, num_classes)
    pairs = zip(predictions, masks, strict=True)
    return np.array([_image_f1(predicted, mask, num_classes) for predicted, mask in pairs])


def has_boundary(mask: IntArray) -> bool:
    """Say whether two classes meet in a mask (H, W), away from void pixels. Masks whose outlines are void have none."""
    return bool((_outline(mask) & ~_near_void(mask)).any())


def boundary_f1_sums(scores: Scores) -> MetricSums:
    """Return the mean over images of the mean over the classes that have a boundary in the image.

    Args:
        scores: (N, K), see `boundary_f1`. An image without any boundary does not count.

    Raises:
        ValueError: no image has a boundary.
    """
    from scipy.sparse import csr_array

    is_measured = ~np.isnan(scores)
    if not is_measured.any():
        raise ValueError("got no boundary in any image; expected two classes that meet in one: check the masks")
    means = np.nansum(scores, axis=1) / np.maximum(is_measured.sum(axis=1), 1)
    terms = csr_array(np.stack([means, is_measured.any(axis=1)]))

    def finish(sums: Sums) -> Sums:
        return np.asarray(sums[0] / np.maximum(sums[1], 1))  # 0 in a resample without a boundary

    return MetricSums(terms, finish)


def _image_f1(predictions: IntArray, mask: IntArray, num_classes: int) -> list[float]:
    tolerance = TOLERANCE * float(np.hypot(*mask.shape))
    excluded = _near_void(mask)
    outlines = [_outline(classes) & ~excluded for classes in (predictions, mask)]
    return [
        _f1(outlines[0] & (predictions == label), outlines[1] & (mask == label), tolerance)
        for label in range(num_classes)
    ]


def _near_void(mask: IntArray) -> Pixels:
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(mask == VOID, np.ones((3, 3))), dtype=np.bool_)


def _outline(classes: IntArray) -> Pixels:
    """Return where one of the four neighbors in the image has another class."""
    is_outline = np.zeros(classes.shape, dtype=np.bool_)
    for differs, first, second in (
        (classes[1:] != classes[:-1], is_outline[1:], is_outline[:-1]),
        (classes[:, 1:] != classes[:, :-1], is_outline[:, 1:], is_outline[:, :-1]),
    ):
        first |= differs
        second |= differs
    return is_outline


def _f1(predicted: Pixels, true: Pixels, tolerance: float) -> float:
    if not (predicted.any() and true.any()):
        return 0.0 if predicted.any() or true.any() else float("nan")
    precision, recall = _share_near(predicted, true, tolerance), _share_near(true, predicted, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share_near(pixels: Pixels, others: Pixels, tolerance: float) -> float:
    """Return the share of pixels that are at most the tolerance away from one of the others."""
    from scipy.ndimage import distance_transform_edt

    return float((distance_transform_edt(~others)[pixels] <= tolerance).mean())
