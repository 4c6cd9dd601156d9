"""What was last learned from: embeddings and labels of places. A place is an image, or a site of a dense task."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Memory:
    """A queue, first in, first out. It grows up to its size; what is in it was embedded by earlier weights.

    Attributes:
        embeddings: (M, D) float32, as they came.
        labels: (M,) int64, or (M, K) bool.

    Args:
        size: The greatest M.
        device: Where it is kept; the CPU by default.

    Raises:
        ValueError: The size is below 1.
    """

    def __init__(self, size: int, *, device: torch.device | None = None) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1 place to remember")
        self.size, self.device = size, device or torch.device("cpu")
        self.embeddings = torch.empty(0, 0, device=self.device)
        self.labels = torch.empty(0, dtype=torch.int64, device=self.device)

    def __len__(self) -> int:
        """Return M, how many places there are."""
        return len(self.labels)

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Remember places, and forget the oldest where there are too many.

        Args:
            embeddings: (..., D).
            labels: (...) integers, or (..., K) bool; a place without a label is not remembered.
        """
        embeddings, labels = embeddings.detach().float().flatten(0, -2).to(self.device), labels.to(self.device)
        labels = labels.flatten(0, -2) if labels.dtype == torch.bool else labels.flatten().long()
        has_label = labels.any(dim=1) if labels.ndim == 2 else labels >= 0
        embeddings, labels = embeddings[has_label], labels[has_label]
        if len(self):
            embeddings, labels = torch.cat([self.embeddings, embeddings]), torch.cat([self.labels, labels])
        self.embeddings, self.labels = embeddings[-self.size :], labels[-self.size :]

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered."""
        return {"embeddings": self.embeddings, "labels": self.labels}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, which may be of another device."""
        self.embeddings, self.labels = (state[name].to(self.device) for name in ("embeddings", "labels"))


class Places(NamedTuple):
    """Where a loss looks at embeddings.

    Attributes:
        embeddings: (..., D).
        targets: (...) labels, below 0 where there is none; or (..., K) bool, for each output whether it is a label.
        weights: (...) float32: how much each place counts.
        memory: What is remembered.
    """

    embeddings: Tensor
    targets: Tensor
    weights: Tensor
    memory: Memory
