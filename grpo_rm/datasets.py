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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from grpo_rm.batch_memory import PREFETCH, BatchMemory, Place
from grpo_rm.shards import Files, Ids, open_shard
from grpo_rm.transforms import Pixels, decode

Key = tuple[int, int]  # epoch, index
Batch = tuple[Tensor, Tensor]  # images (B, H, W, C) uint8, labels (B,) int64
View = Callable[[Image.Image, np.random.Generator], Pixels]

AUGMENTATION = 1  # its random numbers are others than those of the order
PIXEL_BYTES = {1: 1, 3: 4}  # of a decoded image with as many channels, as Pillow has it in memory


@dataclass(frozen=True)
class Split:
    """One split of the prepared data. `ids`, `files` and `labels` have one entry per image, in one order."""

    ids: Sequence[str]
    files: Sequence[bytes]
    labels: NDArray[np.int64]


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
    shards = [open_shard(path) for path in _paths(prepared, name)]
    return Split(Ids(shards), Files(shards), np.concatenate([shard.labels for shard in shards]))


def read_ids(prepared: Path, name: str) -> list[str]:
    """Read the ids of a split alone, in the order of `read_split`."""
    return list(Ids([open_shard(path) for path in _paths(prepared, name)]))


def _paths(prepared: Path, name: str) -> list[Path]:
    paths = sorted((prepared / name).glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"no Parquet file in {prepared / name}: run `dvc repro prepare` first")
    return paths


class _Images(Dataset[Any]):
    """The images, a batch at a time: what is done once per batch is not done once per image."""

    def __init__(self, split: Split, view: View, *, channels: int, seed: int, cache_limit: int) -> None:
        self.split, self.view, self.channels, self.seed = split, view, channels, seed
        self.cache_limit = cache_limit
        self.decoded: dict[int, Image.Image] = {}
        self.cached_bytes = 0
        self.generators: _Generators | None = None
        self.memory: BatchMemory | None = None  # where there are workers

    def __len__(self) -> int:
        return len(self.split.files)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor | Place, NDArray[np.int64]]:
        epoch, indices = keys[0][0], [index for _, index in keys]
        if self.generators is None or self.generators.epoch != epoch:
            self.generators = _Generators(self.seed, epoch)
        views = (self.view(self._decoded(index), self.generators.of(index)) for index in indices)
        images = self.memory.put(views) if self.memory else torch.from_numpy(np.stack(list(views)))
        return images, self.split.labels[indices]

    def share_memory(self, workers: int, batch_size: int) -> None:
        """Have workers leave their batches in memory that they share with this process. All images have one shape."""
        if self.memory is None:
            self.generators = _Generators(self.seed, 0)
            image = self.view(decode(self.split.files[0], channels=self.channels), self.generators.of(0))
            self.memory = BatchMemory(workers, batch_size, image.shape)

    def _decoded(self, index: int) -> Image.Image:
        if index in self.decoded:
            return self.decoded[index]
        image = decode(self.split.files[index], channels=self.channels)
        size = image.width * image.height * PIXEL_BYTES[self.channels]
        if self.cached_bytes + size <= self.cache_limit:
            self.cached_bytes += size
            self.decoded[index] = image
        return image


class _Generators:
    """The generator of each image in an epoch. It is always the same one, set to where the image's numbers begin: a new
    one would take as long as the rest of a small image.
    """

    def __init__(self, seed: int, epoch: int) -> None:
        self.epoch = epoch
        self._bits = np.random.Philox(seed=(seed, epoch, AUGMENTATION))
        self._state: Any = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def of(self, index: int) -> np.random.Generator:
        """Return it; it is another image's from the next call on."""
        self._state["state"]["counter"][1] = index  # each has 2 ** 64 blocks of numbers of its own
        self._bits.state = self._state
        return self._generator


class _Epoch(Sampler[Key]):
    """The images of this process in an epoch.

    In training, every global batch is cut into a piece per process; else the whole split is.
    """

    def __init__(
        self, length: int, *, seed: int, is_training: bool, batch_size: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.length, self.seed, self.is_training = length, seed, is_training
        self.batch_size, self.rank, self.processes = batch_size, rank, processes
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return len(self._order())

    def __iter__(self) -> Iterator[Key]:
        mine = self._order()[self.start * self.batch_size // self.processes :]
        return iter((self.epoch, int(index)) for index in mine)

    def _order(self) -> NDArray[np.int64]:
        if not self.is_training:
            return np.array_split(np.arange(self.length), self.processes)[self.rank]
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        whole = order[: self.length // self.batch_size * self.batch_size]
        return whole.reshape(-1, self.processes, self.batch_size // self.processes)[:, self.rank].reshape(-1)


class Batches:
    """The batches of a split, epoch by epoch.

    Args:
        split: What to read.
        view: Decoded image and generator to an array (size, size, channels) uint8.
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
        split: Split,
        view: View,
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
        self._images = images = _Images(split, view, channels=channels, seed=seed, cache_limit=cache_limit)
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
        self._sampler = _Epoch(
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
            collate_fn=_as_is,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and not workers,  # what they decode is copied there anyway
            worker_init_fn=_leave_group,
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
        try:
            for images, labels in self._loader:
                yield self._images.memory.take(images) if self._images.memory else images, torch.from_numpy(labels)
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise ChildProcessError(
                f"{error}: a process that reads images was killed, as the system does when memory runs out. Lower "
                "loader.cache_gib, loader.workers or batch_size"
            ) from error

    def close(self) -> None:
        """End the worker processes; the next epoch starts new ones.

        Left to the garbage collector, each would be waited for 5 s.
        """
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:  # only workers persist
            iterator._shutdown_workers()  # type: ignore[attr-defined]


def _as_is(batch: Any) -> Any:
    return batch


def _leave_group(worker: int) -> None:  # noqa: ARG001
    """Let the signals of a whole process group (Ctrl-C, a cancelled flow) reach the main process alone.

    It finishes its step and ends the workers; a worker that died first would end it in the middle of one. A worker
    whose main process is gone ends by itself within seconds.
    """
    os.setpgid(0, 0)
