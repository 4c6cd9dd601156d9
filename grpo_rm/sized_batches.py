"""Images and masks at their own sizes: batches of images that have one size, for validation and evaluation."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from grpo_rm.batch_memory import PREFETCH
from grpo_rm.datasets import Batch, end_workers, leave_group, read_batches, unchanged
from grpo_rm.dense_datasets import DenseSplit
from grpo_rm.dense_transforms import whole_view
from grpo_rm.masks import Mask
from grpo_rm.transforms import Pixels

ELEMENTS = 2**24  # logits of a batch: 64 MiB in float32


class SizedBatches:
    """The batches of a split, without augmentation: as many images of one size as their logits leave room for.

    Args:
        split: What to read.
        channels: 1 or 3.
        workers: Processes that decode; 0 decodes in this one.
        cache_gib: GiB of decoded images that they keep in memory, all of them together; 0 keeps none.
        rank: Which process of the training this is.
        processes: How many there are. Each gets its part of the images.
    """

    def __init__(
        self,
        split: DenseSplit,
        *,
        channels: int,
        workers: int = 0,
        cache_gib: float = 0.0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.length = len(split.files)
        parts = [_group_by_size(split, range(part, self.length, processes)) for part in range(processes)]
        self.rows = [row for batch in parts[rank] for row in batch]  # in the order of the batches
        self._most = max(map(len, parts))
        images = split.images(_whole, channels=channels, seed=0, cache_limit=int(cache_gib * 2**30) // max(1, workers))
        self._images = images
        self._loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=[[(0, row) for row in batch] for batch in parts[rank]],
            collate_fn=unchanged,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=leave_group,
            generator=torch.Generator(),  # not the global one: dropout would depend on the number of workers
        )

    def __len__(self) -> int:
        """How many batches there are; in the process that has most of them."""
        return self._most

    def epoch(self, number: int) -> Iterator[Batch]:  # noqa: ARG002
        """Yield this process's batches."""
        yield from read_batches(self._loader, self._images)

    def close(self) -> None:
        """End the processes that decode; the next epoch starts new ones."""
        end_workers(self._loader)


def _group_by_size(split: DenseSplit, rows: Sequence[int]) -> list[list[int]]:
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in rows:
        by_size[split.masks.size(row)].append(row)
    batches = []
    for (height, width), members in by_size.items():
        count = max(1, ELEMENTS // (height * width * split.masks.num_classes))
        batches += [members[start : start + count] for start in range(0, len(members), count)]
    return batches


def _whole(image: Image.Image, mask: Mask, rng: np.random.Generator) -> tuple[Pixels, Mask]:  # noqa: ARG001
    return whole_view(image, mask)
