"""What the pixels of each image add to the metrics of dense predictions; void pixels add nothing.

An image adds its confusion counts, its NLL and its calibration bins, so its pixels need not be kept. Images may differ
in size from batch to batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from grpo_rm.evaluation.calibration import NUM_BINS
from grpo_rm.evaluation.inputs import IntArray
from grpo_rm.masks import VOID

Counts = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PixelSums:
    """What the pixels of N images add to the metrics.

    Attributes:
        confusion: (N, K, K) pixels of each true class (row) that were given each predicted class (column).
        nll: (N,) sums of -log p(truth), in nats.
        confidence: (N, bins) sums of the confidence of the pixels in each bin of confidence.
        right: (N, bins) pixels in each bin that are right.
        count: (N, bins) pixels in each bin.
    """

    confusion: Counts
    nll: Scores
    confidence: Scores
    right: Counts
    count: Counts


def pixel_sums(logits: Tensor, masks: Tensor) -> PixelSums:
    """Sum up a batch; `join_sums` joins the batches of a set.

    Args:
        logits: (B, K, H, W), at the size of the masks.
        masks: (B, H, W) class indices, `VOID` where a pixel does not count; on the device of the logits.

    Raises:
        ValueError: shapes that do not fit, NaN or infinite logits, see `check_masks`.
    """
    _check_logits(logits, masks)
    truth, predictions = masks.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
    confusion = confusion_per_image(predictions, truth, logits.shape[1])
    nll = cross_entropy(logits.float(), masks.long(), ignore_index=VOID, reduction="none")
    confidence = logits.float().softmax(dim=1).amax(dim=1)
    bins = _bin_sums(confidence.cpu().numpy(), predictions == truth, truth != VOID)
    return PixelSums(confusion, nll.cpu().numpy().sum(axis=(1, 2), dtype=np.float64), *bins)


def join_sums(parts: Sequence[PixelSums]) -> PixelSums:
    """Join the sums of the batches of a set, in their order.

    Raises:
        ValueError: no batch.
    """
    if not parts:
        raise ValueError("got no batch; expected at least one: pass the images of a split that is not empty")
    return PixelSums(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(PixelSums)))


def total_sums(sums: PixelSums) -> PixelSums:
    """Return the sums of all images together, as if they were one: where none is resampled, it takes less memory."""
    return PixelSums(*(getattr(sums, field.name).sum(axis=0, keepdims=True) for field in fields(PixelSums)))


def confusion_per_image(predictions: IntArray, masks: IntArray, num_classes: int) -> Counts:
    """Count the pixels of each true class (row) that were given each predicted class (column), in each image.

    Args:
        predictions: (N, H, W) class indices; what they are on void pixels does not matter.
        masks: (N, H, W) class indices, `VOID` where a pixel does not count.
        num_classes: K.

    Returns:
        (N, K, K) int64; the sum of an image is its number of pixels that are not void.

    Raises:
        ValueError: see `check_masks`.
    """
    check_masks(predictions, masks, num_classes)
    valid = masks != VOID
    rows = np.nonzero(valid)[0] * num_classes + masks[valid]  # of the matrices of all images, one below the other
    cells = rows * num_classes + predictions[valid]
    counts = np.bincount(cells, minlength=len(masks) * num_classes**2).astype(np.int64)
    return counts.reshape(len(masks), num_classes, num_classes)


def check_masks(predictions: IntArray, masks: IntArray, num_classes: int) -> None:
    """Accept integer masks (N, H, W) in range(num_classes) or `VOID`, and predictions of the same shape.

    Raises:
        ValueError: another shape, no image, a type that is not integer, a class outside range(num_classes); what is
            predicted on void pixels may be anything.
    """
    if masks.ndim != 3 or masks.size == 0 or predictions.shape != masks.shape:
        raise ValueError(
            f"got predictions of shape {predictions.shape} and masks of shape {masks.shape}; expected both as "
            "(images, height, width) with at least one pixel: scale the predictions to the size of the masks"
        )
    valid = masks != VOID
    for classes, name in ((masks, "masks"), (predictions, "predictions")):
        if not np.issubdtype(classes.dtype, np.integer):
            raise ValueError(f"got {name} of type {classes.dtype}; expected integers: convert them to class indices")
        low, high = classes.min(where=valid, initial=0), classes.max(where=valid, initial=0)
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"got {name} from {low} to {high}; expected 0 to {num_classes - 1} for {num_classes} classes: "
                f"give pixels without a class the index {VOID}, and check the number of classes"
            )


def _check_logits(logits: Tensor, masks: Tensor) -> None:
    if logits.ndim != 4 or logits.shape[1] < 2 or logits.shape[:1] + logits.shape[2:] != masks.shape:
        raise ValueError(
            f"got logits of shape {tuple(logits.shape)} and masks of shape {tuple(masks.shape)}; expected "
            "(images, classes, height, width) with at least 2 classes and (images, height, width): "
            "scale the logits to the size of the masks"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError(
            "got NaN or infinite logits; expected finite numbers: the model diverged or its input is damaged, look at "
            "its training curve"
        )


def _bin_sums(
    confidence: npt.NDArray[np.float32], is_right: npt.NDArray[np.bool_], valid: npt.NDArray[np.bool_]
) -> tuple[Scores, Counts, Counts]:
    """Return the sums (B, bins) of confidence, right pixels and pixels; the bins are those of `calibration`."""
    largest = np.nextafter(np.float32(1.0), np.float32(0.0))  # 1.0 belongs to the last bin
    edges = torch.linspace(0.0, 1.0, NUM_BINS + 1).numpy()
    chosen = np.minimum(confidence[valid], largest)
    shape = (len(valid), NUM_BINS)
    cells = np.nonzero(valid)[0] * NUM_BINS + np.searchsorted(edges, chosen, side="right") - 1

    def total(weights: npt.NDArray[Any] | None) -> Any:
        return np.bincount(cells, weights, minlength=shape[0] * shape[1]).reshape(shape)

    return total(chosen), total(is_right[valid]).astype(np.int64), total(None)
