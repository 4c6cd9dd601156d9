"""The metrics of a training: averages over the steps of an epoch, a row per epoch, which epoch is best."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from grpo_rm.devices import Processes

Metrics = dict[str, float]


def best_epochs(history: Sequence[Metrics], monitor: str) -> list[Metrics]:
    """Return the rows from best to worst by a validation metric; ties: the lower NLL, then the earlier epoch.

    Of a metric whose name has "nll" in it the lowest is best. Rows without the metric do not count.
    """
    sign = 1 if "nll" in monitor else -1
    rows = [row for row in history if monitor in row]
    return sorted(rows, key=lambda row: (sign * row[monitor], row["val_nll"], row["epoch"]))


def epochs_without_progress(history: Sequence[Metrics], monitor: str) -> int:
    """Return how many epochs that measured it came after the best one; 0 before there is one."""
    best = best_epochs(history, monitor)
    return sum(row["epoch"] > best[0]["epoch"] for row in best)


class Averages:
    """Means over the steps of an epoch, of names that begin with "max_" the greatest; they stay on the device.

    Args:
        state: Of an earlier one.
        device: Where to go on with it.
    """

    def __init__(self, state: Mapping[str, Any] | None = None, *, device: torch.device | None = None) -> None:
        self.names: list[str] = []
        self.steps = 0
        self.sums, self.maxima = torch.zeros(0), torch.zeros(0)
        vars(self).update(state or {})
        self.sums, self.maxima = self.sums.to(device), self.maxima.to(device)

    @classmethod
    def of(cls, stats: Mapping[str, Tensor]) -> Self:
        """Return those of one step."""
        averages = cls()
        averages.add(stats)
        return averages

    def add(self, stats: Mapping[str, Tensor]) -> None:
        """Count the statistics of one step."""
        values = torch.stack([value.detach().float() for value in stats.values()])
        if not self.names:
            self.names = list(stats)
            self.sums, self.maxima = torch.zeros_like(values), torch.full_like(values, -torch.inf)
        self.steps += 1
        self.sums = self.sums + values
        self.maxima = torch.maximum(self.maxima, values)

    def read(self, processes: Processes) -> Metrics:
        """Return the averages over the steps and the processes; empty before the first step."""
        if not self.steps:
            return {}
        means = (processes.mean(self.sums) / self.steps).tolist()
        maxima = processes.max(self.maxima).tolist()
        both = zip(self.names, means, maxima, strict=True)
        return {name: maximum if name.startswith("max_") else mean for name, mean, maximum in both}

    def state(self) -> dict[str, Any]:
        """Return all that it holds, on the CPU."""
        return vars(self) | {"sums": self.sums.cpu(), "maxima": self.maxima.cpu()}
