"""Prepared data to batches of uint8 images.

Order and augmentation of an image depend on (seed, epoch, index) alone: not on the number of workers, nor on what was
trained before. That is what makes two arms comparable and a run repeatable.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from grpo_rm.batch_memory import PREFETCH, BatchMemory, Place
from grpo_rm.batch_order import EpochOrder, Generators, Key
from grpo_rm.shards import Files, Ids, open_shard
from grpo_rm.transforms import Pixels, decode

Batch = tuple[Tensor, Tensor]  # images (B, H, W, C) uint8, labels (B,) int64; in segmentation masks (B, H, W) int64
View = Callable[[Image.Image, np.random.Generator], Pixels]

V = TypeVar("V")
ViewT = TypeVar("ViewT", contravariant=True)

PIXEL_BYTES = {1: 1, 3: 4}  # of a decoded image with as many channels, as Pillow has it in memory


@dataclass(frozen=True)
class Split:
    """One split of the prepared data. `ids`, `files` and `labels` have one entry per image, in one order."""

    ids: Sequence[str]
    files: Sequence[bytes]
    labels: NDArray[np.int64]

    def images(self, view: View, *, channels: int, seed: int, cache_limit: int) -> "ImageReader":
        """Return what reads batches of it."""
        return _Images(self, view, channels=channels, seed=seed, cache_limit=cache_limit)


def read_dataset(prepared: Path) -> dict[str, Any]:
    """Read dataset.json: task, name, classes, counts, mean, std."""
    path = prepared / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: run `dvc repro prepare` (or `dvc checkout`) first")
    description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return description


def read_split(prepared: Path, name: str) -> Split:
    """Open all shards of the split `name` ("train", "val" or "test"). An image is read when it is asked for.

    Raises:
        FileNotFoundError: The split has no shard.
        ValueError: A shard was not written by stage prepare, or is of a segmentation set.
    """
    shards = [open_shard(path) for path in shard_paths(prepared, name)]
    return Split(Ids(shards), Files(shards), np.concatenate([shard.labels for shard in shards]))


def read_ids(prepared: Path, name: str) -> list[str]:
    """Read the ids of a split alone, in the order of `read_split`."""
    return list(Ids([open_shard(path) for path in shard_paths(prepared, name)]))


def shard_paths(prepared: Path, name: str) -> list[Path]:
    """Return the shards of a split.

    Raises:
        FileNotFoundError: There is none.
    """
    paths = sorted((prepared / name).glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"no Parquet file in {prepared / name}: run `dvc repro prepare` first")
    return paths


class ImageReader(Dataset[Any]):
    """Reads the images of a split, a batch at a time: what is done once per batch is not done once per image.

    Each task has its own.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        """Read a batch, in a worker where there are any."""
        raise NotImplementedError

    def share_memory(self, workers: int, batch_size: int) -> None:
        """Have workers leave their batches in memory that they share with this process. All images have one shape."""
        raise NotImplementedError

    def take(self, read: Any) -> Batch:
        """Return a batch that was read, in the main process, before the next one is asked for."""
        raise NotImplementedError


class Readable(Protocol[ViewT]):
    """A split, of whatever task."""

    def images(self, view: ViewT, *, channels: int, seed: int, cache_limit: int) -> ImageReader:
        """Return what reads batches of it."""


class EvaluationBatches(Protocol):
    """The batches of a split as they are evaluated: `Batches`, or of images at their own sizes `SizedBatches`."""

    @property
    def length(self) -> int:
        """How many images the split has."""

    def __len__(self) -> int:
        """How many batches there are; in the process that has most of them."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield this process's batches."""

    def close(self) -> None:
        """End the processes that decode."""


class _Images(ImageReader):
    """The images with their labels."""

    def __init__(self, split: Split, view: View, *, channels: int, seed: int, cache_limit: int) -> None:
        self.split, self.view, self.channels, self.seed = split, view, channels, seed
        self.cache_limit = cache_limit
        self.decoded: dict[int, Image.Image] = {}
        self.cached_bytes = 0
        self.generators: Generators | None = None
        self.memory: BatchMemory | None = None  # where there are workers

    def __len__(self) -> int:
        return len(self.split.files)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor | Place, NDArray[np.int64]]:
        epoch, indices = keys[0][0], [index for _, index in keys]
        if self.generators is None or self.generators.epoch != epoch:
            self.generators = Generators(self.seed, epoch)
        views = (self.view(self._decoded(index), self.generators.of(index)) for index in indices)
        images = self.memory.put(views) if self.memory else torch.from_numpy(np.stack(list(views)))
        return images, self.split.labels[indices]

    def share_memory(self, workers: int, batch_size: int) -> None:
        if self.memory is None:
            self.generators = Generators(self.seed, 0)
            image = self.view(decode(self.split.files[0], channels=self.channels), self.generators.of(0))
            self.memory = BatchMemory(workers, batch_size, image.shape)

    def take(self, read: tuple[Any, NDArray[np.int64]]) -> Batch:
        images, labels = read
        return self.memory.take(images) if self.memory else images, torch.from_numpy(labels)

    def _decoded(self, index: int) -> Image.Image:
        if index in self.decoded:
            return self.decoded[index]
        image = decode(self.split.files[index], channels=self.channels)
        size = image.width * image.height * PIXEL_BYTES[self.channels]
        if self.cached_bytes + size <= self.cache_limit:
            self.cached_bytes += size
            self.decoded[index] = image
        return image


class Batches:
    """The batches of a split, epoch by epoch.

    Args:
        split: What to read, such as a `Split`.
        view: Decoded image and generator to an array (size, size, channels) uint8; in segmentation see `DenseView`.
        channels: 1 or 3.
        batch_size: Images per batch, of all processes together; all images where the split has fewer.
        seed: Of the order and the augmentation.
        is_training: Shuffle, and drop the last, incomplete batch.
        workers: Processes that decode; 0 decodes in this one.
        cache_gib: GiB of decoded images that they keep in memory, all of them together; 0 keeps none.
        rank: Which process of the training this is.
        processes: How many there are. Each gets its part of every batch; outside of training, of the split.

    Raises:
        ValueError: The batch cannot be cut into equal parts.
    """

    def __init__(
        self,
        split: Readable[V],
        view: V,
        *,
        channels: int,
        batch_size: int,
        seed: int = 0,
        is_training: bool = False,
        workers: int = 0,
        cache_gib: float = 1.0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        cache_limit = int(cache_gib * 2**30) // max(1, workers)
        self._images = images = split.images(view, channels=channels, seed=seed, cache_limit=cache_limit)
        if len(images) < processes:
            raise ValueError(
                f"{len(images)} images for {processes} processes, expected one for each: use fewer processes"
            )
        self.batch_size = min(batch_size, len(images) // processes * processes)
        if is_training and self.batch_size % processes:
            raise ValueError(
                f"batch_size is {batch_size} with {len(images)} images and {processes} processes, expected a multiple "
                f"of {processes}: change batch_size or the number of processes"
            )
        self._sampler = EpochOrder(
            len(images),
            seed=seed,
            is_training=is_training,
            batch_size=self.batch_size,
            rank=rank,
            processes=processes,
        )
        self._local_batch_size = max(1, self.batch_size // processes)
        self._loader: DataLoader[Any] = DataLoader(
            images,
            batch_size=self._local_batch_size,
            sampler=self._sampler,
            collate_fn=unchanged,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and not workers,  # what they decode is copied there anyway
            worker_init_fn=leave_group,
            generator=torch.Generator(),  # not the global one: dropout would depend on the number of workers
        )

    def __len__(self) -> int:
        """How many batches an epoch has; in the process that has most of them."""
        if self._sampler.is_training:
            return self.length // self.batch_size
        return math.ceil(math.ceil(self.length / self._sampler.processes) / self._local_batch_size)

    @property
    def length(self) -> int:
        """How many images the split has."""
        return self._sampler.length

    def epoch(self, number: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield this process's batches of epoch `number`, without decoding those before batch `start`.

        Raises:
            ChildProcessError: A worker was killed.
        """
        self._sampler.epoch, self._sampler.start = number, start
        if self._loader.num_workers:
            self._images.share_memory(self._loader.num_workers, self._local_batch_size)
        yield from read_batches(self._loader, self._images)

    def close(self) -> None:
        """End the worker processes; the next epoch starts new ones."""
        end_workers(self._loader)


def read_batches(loader: DataLoader[Any], images: ImageReader) -> Iterator[Batch]:
    """Yield what a loader reads.

    Raises:
        ChildProcessError: A worker was killed.
    """
    try:
        for read in loader:
            yield images.take(read)
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise ChildProcessError(
            f"{error}: a process that reads images was killed, as the system does when memory runs out. Lower "
            "loader.cache_gib, loader.workers or batch_size"
        ) from error


def end_workers(loader: DataLoader[Any]) -> None:
    """End the worker processes of a loader. Left to the garbage collector, each would be waited for 5 s."""
    iterator, loader._iterator = loader._iterator, None
    if iterator is not None:  # only workers persist
        iterator._shutdown_workers()  # type: ignore[attr-defined]


def unchanged(batch: Any) -> Any:
    """Return a batch as it was read, in place of the loader's own way to put images together."""
    return batch


def leave_group(worker: int) -> None:  # noqa: ARG001
    """Let the signals of a whole process group (Ctrl-C, a cancelled flow) reach the main process alone.

    It finishes its step and ends the workers; a worker that died first would end it in the middle of one. A worker
    whose main process is gone ends by itself within seconds.
    """
    os.setpgid(0, 0)
