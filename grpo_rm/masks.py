"""Mask files to class indices."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from grpo_rm.shards import Files
from grpo_rm.transforms import ImageError, open_mask

VOID = -1  # the class index of pixels that are no class; they never count

Mask = NDArray[np.int16]  # (H, W) class indices, VOID where there is none; a quarter of int64's memory

UNKNOWN = -2
VALUES = 65_536  # of a mask of 16 bits


def class_table(mask_values: Sequence[int], void_index: int | None) -> Mask:
    """Return the class index of each value that a mask may have: (65536,), UNKNOWN for a value of no class.

    Args:
        mask_values: The value of each class, as in dataset.json.
        void_index: The value that is no class, or None.
    """
    table = np.full(VALUES, UNKNOWN, dtype=np.int16)
    table[list(mask_values)] = np.arange(len(mask_values))
    if void_index is not None:
        table[void_index] = VOID
    return table


def read_mask(data: bytes, table: Mask) -> Mask:
    """Decode a mask file to class indices, (H, W), by `class_table`.

    Raises:
        ImageError: It is no mask, or has a value of no class.
    """
    values = np.asarray(open_mask(data)).astype(np.uint16, copy=False)  # of 1 bit, numpy makes bool
    mask: Mask = table[values]
    if (mask == UNKNOWN).any():
        raise ImageError(
            f"the mask has the value {values[mask == UNKNOWN][0]}, expected one of dataset.json's mask_values or its "
            "void_index: run `dvc repro prepare`"
        )
    return mask


class Masks:
    """The masks of a split. One is read and decoded when it is asked for."""

    def __init__(self, files: Files | Sequence[bytes], table: Mask) -> None:
        self._files, self._table = files, table
        self.num_classes = int(table.max()) + 1

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Mask:
        """Return the mask of an image: (H, W)."""
        return read_mask(self._files[index], self._table)

    def size(self, index: int) -> tuple[int, int]:
        """Return (H, W) of the mask of an image."""
        width, height = open_mask(self._files[index]).size
        return height, width
