"""Do stored answers of a dense model agree with the prepared masks, with themselves, and with an ONNX file?"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from grpo_rm.config import Config
from grpo_rm.dense_datasets import DenseSplit
from grpo_rm.dense_sites import site_targets
from grpo_rm.evaluation.boundary import boundary_f1
from grpo_rm.evaluation.pixels import confusion_per_image, pixel_sums
from grpo_rm.inference import Predictions
from grpo_rm.masks import Mask
from pipelines.dense_predictions import Classes, DenseOutputs, decode_classes
from pipelines.patches import middle_window, places_per_image, sample_places

ROUNDING = 0.02  # of the largest logit: a GPU multiplies with 10 bits (TF32), the ONNX file with 23
IN_MEAN = 0.1  # of that: rounding errors cancel out in a mean over the pixels of an image


def find_other_masks(outputs: DenseOutputs, split: DenseSplit) -> str | None:
    """Return in words how what is stored contradicts the prepared masks, or itself; None where it does not.

    Raises:
        ValueError: A stored mask is damaged.
    """
    num_classes = outputs.boundary.shape[1]
    if num_classes != split.masks.num_classes:
        return f"they are of {num_classes} classes, expected {split.masks.num_classes}"
    for row, id_ in enumerate(split.ids):
        said, truth = decode_classes(outputs.masks[row]), split.masks[row]
        if said.shape != truth.shape or said.max() >= num_classes:
            return f"the mask of {id_} is {said.shape} up to class {said.max()}, expected {truth.shape}, {num_classes}"
        confusion = confusion_per_image(said[None], truth[None].astype(np.int64), num_classes)[0]
        if not np.array_equal(confusion, outputs.sums.confusion[row]):
            return f"the mask of {id_} and its confusion counts differ"
    return _find_inner_difference(outputs, split.ids)


def _find_inner_difference(outputs: DenseOutputs, ids: Sequence[str]) -> str | None:
    """Compare bins and confusion counts, which are of the same pixels."""
    sums = outputs.sums
    right = np.trace(sums.confusion, axis1=1, axis2=2)
    is_sound = (sums.count.sum(axis=1) == sums.confusion.sum(axis=(1, 2))) & (sums.right.sum(axis=1) == right)
    is_sound &= np.isfinite(sums.nll) & np.isfinite(sums.confidence).all(axis=1)
    return None if is_sound.all() else f"NLL, confidence or counts of {ids[int(np.argmin(is_sound))]} are impossible"


def find_other_boundary(outputs: DenseOutputs, split: DenseSplit) -> str | None:
    """Return in words of which image the boundary F1 is not what follows from the stored mask; None where it is."""
    num_classes = outputs.boundary.shape[1]
    for row, id_ in enumerate(split.ids):
        truth = split.masks[row].astype(np.int64)
        again = boundary_f1(decode_classes(outputs.masks[row])[None], truth[None], num_classes)[0]
        if not np.allclose(again, outputs.boundary[row], rtol=0, atol=1e-9, equal_nan=True):
            return f"the boundary F1 of {id_} is not that of its mask"
    return None


def find_other_places(
    ids: Sequence[str], places: Predictions, split: DenseSplit, name: str, config: Config
) -> str | None:
    """Return in words how places are not those that stage evaluate takes of a split; None where they are."""
    stride, window = config.segmentation.strides[0], config.segmentation.window
    expected_ids, labels = [], []
    counts = places_per_image(split.ids, name, seed=config.seed)
    for row in counts:
        mask = middle_window(torch.from_numpy(split.masks[row])[None], window)
        targets = site_targets(mask, stride)
        (taken,) = sample_places(targets, {row: split.ids[row]}, counts, seed=config.seed)
        labels.append(targets.numpy().ravel()[taken])
        expected_ids += [split.ids[row]] * len(taken)
    if list(ids) != expected_ids or not np.array_equal(places.labels, np.concatenate(labels)):
        return "of other places or labels than the prepared data have"
    return None if np.isfinite(places.embeddings).all() else "NaN or infinite: it diverged"


def find_difference(outputs: DenseOutputs, logits: Tensor, mask: Mask, *, max_abs_error: float) -> str | None:
    """Return in words how what is stored of one image is not what these logits say; None where it is.

    A logit may be off by rounding, so at each pixel the stored class has to have the largest logit but for twice that.

    Args:
        outputs: Of the image alone.
        logits: (1, K, H, W) of another run of the model.
        mask: (H, W) of the image.
        max_abs_error: By which a logit may be off where logits are small.
    """
    said, limit = decode_classes(outputs.masks[0]), max(max_abs_error, ROUNDING * float(logits.abs().max()))
    if said.shape != logits.shape[2:]:
        return f"the mask is {said.shape}, expected {tuple(logits.shape[2:])}"
    gap = _largest_gap(said, logits)
    if not gap <= 2 * limit:  # NaN is not
        return f"a pixel has a class whose logit is {gap:.4g} below the largest, expected at most {2 * limit:.4g}"
    again = pixel_sums(logits, torch.from_numpy(mask.astype(np.int64))[None])
    pixels = max(1, int(again.count.sum()))
    for what in ("nll", "confidence"):
        difference = abs(float(getattr(outputs.sums, what).sum() - getattr(again, what).sum())) / pixels
        if not difference <= IN_MEAN * limit:
            return f"mean {what} differs by {difference:.4g}, expected at most {IN_MEAN * limit:.4g}"
    return None


def _largest_gap(said: Classes, logits: Tensor) -> float:
    chosen = logits.gather(1, torch.from_numpy(said)[None, None])
    return float((logits.amax(dim=1, keepdim=True) - chosen).max())
