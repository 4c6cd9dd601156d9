"""Logits of every pixel, of whole images or from windows that slide over them."""

import torch
from torch import Tensor

from grpo_rm.dense_model import DenseModel
from grpo_rm.dense_sites import upsample


@torch.inference_mode()
def pixel_logits(model: DenseModel, images: Tensor, *, window: int | None = None) -> Tensor:
    """Return the logits of every pixel: images (B, H, W, C) uint8 on the model's device to (B, K, H, W) float32.

    Args:
        model: In evaluation mode.
        images: Of any size that the encoder takes.
        window: Side of square windows, such as that of the training's crops. They overlap by half, and where they do
            the logits are averaged. None: the model is given whole images.

    Raises:
        ValueError: The encoder takes images of one size, and these or the window are larger.
    """
    size = (images.shape[1], images.shape[2])
    if window is None or window >= max(size):
        return _whole(model, images)
    total = images.new_zeros(len(images), len(model.config.classes), *size, dtype=torch.float32)
    count = images.new_zeros(size, dtype=torch.float32)
    for top in window_starts(size[0], window):
        for left in window_starts(size[1], window):
            place = (..., slice(top, top + window), slice(left, left + window))
            total[place] += _whole(model, images[:, place[1], place[2]])
            count[place] += 1
    return total / count


def window_starts(length: int, window: int) -> list[int]:
    """Return where windows begin that cover a side: half a window apart or less, the last one ends with the side."""
    if window >= length:
        return [0]
    steps = -(-(length - window) // max(1, window // 2))
    return [round(step * (length - window) / steps) for step in range(steps + 1)]


def _whole(model: DenseModel, images: Tensor) -> Tensor:
    _, logits = model(images)
    return upsample(logits.float(), (images.shape[1], images.shape[2]), model.stride)
