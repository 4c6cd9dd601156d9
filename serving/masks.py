"""Logits of places to those of pixels, and their classes: `grpo_rm.dense_sites` without torch, held equal by a test."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]  # (H, W)
Mask = NDArray[np.integer[Any]]

BLOCK = 1 << 22  # logits of pixels in memory at once: 16 MB


def fitted(size: Size, fixed_size: int | None) -> Size:
    """Return the size to which an image is shrunk, so that no side is longer than `fixed_size`."""
    scale = 1.0 if fixed_size is None else max(1.0, max(size) / fixed_size)
    height, width = (max(1, round(length / scale)) for length in size)
    return height, width


def class_indices(logits: NDArray[np.float32], size: Size, stride: int) -> Mask:
    """Return the most probable class of every pixel: logits (K, h, w) to (H, W) uint8, or uint16 of many classes.

    In blocks of rows: the logits of all pixels of a large image would be gigabytes.
    """
    height, width = size
    step = max(1, BLOCK // (len(logits) * width))
    mask = np.empty(size, np.uint8 if len(logits) <= 256 else np.uint16)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        mask[top:bottom] = _rows(logits, top, bottom, width, stride).argmax(axis=0)
    return mask


def resize_nearest(pixels: NDArray[Any], size: Size) -> NDArray[Any]:
    """Bring (..., h, w) to (..., H, W): each pixel is the one below its center."""
    rows, columns = (
        ((2 * np.arange(new) + 1) * old) // (2 * new) for new, old in zip(size, pixels.shape[-2:], strict=True)
    )
    return pixels[..., rows[:, None], columns]


def _rows(logits: NDArray[np.float32], top: int, bottom: int, width: int, stride: int) -> NDArray[np.float32]:
    above, below, down = _neighbors(top, bottom, logits.shape[1], stride)
    left, right, across = _neighbors(0, width, logits.shape[2], stride)
    first = above[0]
    lines = logits[:, first : below[-1] + 1]
    lines = lines[..., left] * (1 - across) + lines[..., right] * across
    return lines[:, above - first] * (1 - down[:, None]) + lines[:, below - first] * down[:, None]


def _neighbors(
    start: int, stop: int, places: int, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the places before and after each pixel's center, and how much the latter counts."""
    centers = ((np.arange(start, stop) + 0.5) / stride - 0.5).clip(0, places - 1)
    before = centers.astype(np.int64)
    return before, np.minimum(before + 1, places - 1), (centers - before).astype(np.float32)
