"""Prepared data of segmentation to batches: images (B, H, W, C) uint8 and masks (B, H, W) int64.

All else is that of `grpo_rm.datasets`: `Batches` reads a `DenseSplit` as it reads a `Split`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from grpo_rm.batch_memory import BatchMemory, Place
from grpo_rm.batch_order import Generators, Key
from grpo_rm.datasets import PIXEL_BYTES, Batch, ImageReader, read_dataset, shard_paths
from grpo_rm.masks import Mask, Masks, class_table
from grpo_rm.shards import Files, Ids, open_dense_shard
from grpo_rm.transforms import Pixels, decode

DenseView = Callable[[Image.Image, Mask, np.random.Generator], tuple[Pixels, Mask]]


@dataclass(frozen=True)
class DenseSplit:
    """One split of the prepared data. `ids`, `files` and `masks` have one entry per image, in one order."""

    ids: Sequence[str]
    files: Sequence[bytes]
    masks: Masks

    def images(self, view: DenseView, *, channels: int, seed: int, cache_limit: int) -> ImageReader:
        """Return what reads batches of it."""
        return _DenseImages(self, view, channels=channels, seed=seed, cache_limit=cache_limit)


def read_dense_split(prepared: Path, name: str) -> DenseSplit:
    """Open all shards of the split `name` ("train", "val" or "test"). Image and mask are read when they are asked for.

    Raises:
        FileNotFoundError: The split has no shard, or there is no dataset.json.
        ValueError: A shard was not written by stage prepare, or is not of a segmentation set.
    """
    images, masks = zip(*(open_dense_shard(path) for path in shard_paths(prepared, name)), strict=True)
    description = read_dataset(prepared)
    table = class_table(description["mask_values"], description["void_index"])
    return DenseSplit(Ids(images), Files(images), Masks(Files(masks), table))


class _DenseImages(ImageReader):
    """The images with their masks, a batch at a time."""

    def __init__(self, split: DenseSplit, view: DenseView, *, channels: int, seed: int, cache_limit: int) -> None:
        self.split, self.view, self.channels, self.seed = split, view, channels, seed
        self.cache_limit = cache_limit
        self.decoded: dict[int, tuple[Image.Image, Mask]] = {}
        self.cached_bytes = 0
        self.generators: Generators | None = None
        self.memories: tuple[BatchMemory, BatchMemory] | None = None  # of images and masks, where there are workers

    def __len__(self) -> int:
        return len(self.split.files)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor | Place, Tensor | Place]:
        views = [self._view(epoch, index) for epoch, index in keys]
        if self.memories is None:
            images, masks = (np.stack(arrays) for arrays in zip(*views, strict=True))
            return torch.from_numpy(images), torch.from_numpy(masks)
        of_images, of_masks = self.memories
        return of_images.put(image for image, _ in views), of_masks.put(mask for _, mask in views)

    def share_memory(self, workers: int, batch_size: int) -> None:
        if self.memories is None:
            decoded = decode(self.split.files[0], channels=self.channels), self.split.masks[0]
            image, mask = self.view(*decoded, Generators(self.seed, 0).of(0))
            self.memories = (
                BatchMemory(workers, batch_size, image.shape),
                BatchMemory(workers, batch_size, mask.shape, torch.int16),
            )

    def take(self, read: tuple[Any, Any]) -> Batch:
        images, masks = read
        if self.memories:
            images, masks = (memory.take(place) for memory, place in zip(self.memories, read, strict=True))
        return images, masks.long()

    def _view(self, epoch: int, index: int) -> tuple[Pixels, Mask]:
        if self.generators is None or self.generators.epoch != epoch:
            self.generators = Generators(self.seed, epoch)
        return self.view(*self._decoded(index), self.generators.of(index))

    def _decoded(self, index: int) -> tuple[Image.Image, Mask]:
        if index in self.decoded:
            return self.decoded[index]
        image, mask = decode(self.split.files[index], channels=self.channels), self.split.masks[index]
        size = image.width * image.height * PIXEL_BYTES[self.channels] + mask.nbytes
        if self.cached_bytes + size <= self.cache_limit:
            self.cached_bytes += size
            self.decoded[index] = image, mask
        return image, mask
