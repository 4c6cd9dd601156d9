"""Every class in every split: units of images that are moved where a class would be missing."""

import numpy as np
from numpy.typing import NDArray


class ClassCoverage:
    """How many images of each class each split has, and what moving a unit changes.

    Attributes:
        missing: Classes that cannot be in all splits, with their numbers of images and of units.
        moved: The new split of each unit that has been moved.
    """

    def __init__(
        self,
        units: NDArray[np.int64],
        labels: NDArray[np.int64],
        splits: NDArray[np.int64],
        *,
        places: NDArray[np.float64],
        parts: dict[int, tuple[float, float]],
        classes: int,
    ) -> None:
        """Count.

        Args:
            units: (N,) of each image.
            labels: (N,)
            splits: (N,)
            places: (units,) in [0, 1); NaN where a unit must stay where it is.
            parts: The part of [0, 1) that each split has.
            classes: Their number.
        """
        self._places, self._parts = places, parts
        self._counts = np.zeros((classes, 3), dtype=np.int64)
        np.add.at(self._counts, (labels, splits), 1)
        pairs, self._images = np.unique(units * classes + labels, return_counts=True)
        self._units, self._labels = np.divmod(pairs, classes)  # ordered by unit
        self._splits = np.zeros(len(places), dtype=np.int64)
        self._splits[units] = splits
        self.moved: dict[int, int] = {}
        self.missing: dict[int, tuple[int, int]] = {}

    def fill(self) -> None:
        """Move the nearest unit to each split that lacks a class."""
        splits = list(self._parts)
        for label in np.flatnonzero((self._counts[:, splits] == 0).any(axis=1)).tolist():
            if not all(self._fill(label, split, splits[position:]) for position, split in enumerate(splits)):
                mine = self._labels == label
                self.missing[label] = int(self._images[mine].sum()), int(mine.sum())

    def _fill(self, label: int, split: int, later: list[int]) -> bool:
        if self._counts[label, split]:
            return True
        low, high = self._parts[split]
        units = self._units[self._labels == label]
        places = self._places[units]
        distances = np.maximum(low - places, places - high)
        for unit in units[np.argsort(distances, kind="stable")][: np.count_nonzero(~np.isnan(places))].tolist():
            if self._may_leave(unit, label, later):
                self._move(unit, split)
                return True
        return False

    def _rows(self, unit: int) -> slice:
        return slice(*np.searchsorted(self._units, [unit, unit + 1]))

    def _may_leave(self, unit: int, label: int, later: list[int]) -> bool:
        """Whether its split keeps an image of each class, this one aside where the split is filled later."""
        rows, split = self._rows(unit), self._splits[unit]
        left = self._counts[self._labels[rows], split] - self._images[rows]
        return bool(((left > 0) | ((self._labels[rows] == label) & (split in later))).all())

    def _move(self, unit: int, split: int) -> None:
        rows = self._rows(unit)
        self._counts[self._labels[rows], self._splits[unit]] -= self._images[rows]
        self._counts[self._labels[rows], split] += self._images[rows]
        self._splits[unit] = self.moved[unit] = split
