"""The order of the images in an epoch, and the random numbers of each: they follow from (seed, epoch, index) alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Key = tuple[int, int]  # epoch, index

AUGMENTATION = 1  # its random numbers are others than those of the order


class Generators:
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


class EpochOrder(Sampler[Key]):
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
