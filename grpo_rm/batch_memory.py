"""Memory that the processes of a loader share and use again, batch after batch.

New shared memory for every batch, as the DataLoader would take it, costs a fifth of the time in which small images are
decoded: it is filled with zeros, and handed over through a socket.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

PREFETCH = 2  # batches that a worker is asked for ahead
SLOTS = PREFETCH + 1  # of a worker: while it fills one, as many may be waiting, or about to be copied


class Place(NamedTuple):
    """Where a batch is: which worker's memory, which part of it, and how many images."""

    worker: int
    slot: int
    images: int


class BatchMemory:
    """The batches that are under way, (workers, slots, batch, *shape). Workers inherit it.

    Args:
        workers: How many there are.
        batch_size: Images of the largest batch.
        shape: Of an image, or a mask.
        dtype: Of an image, or a mask.
    """

    def __init__(self, workers: int, batch_size: int, shape: Sequence[int], dtype: torch.dtype = torch.uint8) -> None:
        self._slots = torch.empty((workers, SLOTS, batch_size, *shape), dtype=dtype)
        self._slots.share_memory_()  # type: ignore[no-untyped-call]
        self._last = 0

    def put(self, images: Iterable[NDArray[np.generic]]) -> Place:
        """Write a batch, in a worker. Its oldest slot has been read: else it would not have been asked for a batch."""
        info = get_worker_info()
        assert info is not None
        self._last = (self._last + 1) % SLOTS
        slot, count = self._slots[info.id, self._last].numpy(), 0
        for image in images:
            slot[count] = image
            count += 1
        return Place(info.id, self._last, count)

    def take(self, place: Place) -> Tensor:
        """Copy a batch, in the main process, before it asks for the next one."""
        batch = self._slots[place.worker, place.slot, : place.images]
        return torch.empty(batch.shape, dtype=batch.dtype, pin_memory=torch.cuda.is_available()).copy_(batch)
