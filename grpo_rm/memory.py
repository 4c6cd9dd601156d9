"""The images that were last learned from: what their embeddings were, and their labels."""

from typing import Any

import torch
from torch import Tensor


class Memory:
    """A queue, first in, first out. It grows up to its size; what is in it was embedded by earlier weights.

    Attributes:
        embeddings: (M, D) float32, as they came.
        labels: (M,) int64, or (M, K) bool.

    Args:
        size: The greatest M.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1 image to remember")
        self.size = size
        self.embeddings, self.labels = torch.empty(0, 0), torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Return M, how many images there are."""
        return len(self.labels)

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Remember images, and forget the oldest where there are too many.

        Args:
            embeddings: (N, D).
            labels: (N,) integers, or (N, K) bool; an image without a label is not remembered.
        """
        has_label = labels.any(dim=1) if labels.ndim == 2 else labels >= 0
        embeddings, labels = embeddings.detach().float()[has_label], labels[has_label]
        if len(self):
            embeddings, labels = torch.cat([self.embeddings, embeddings]), torch.cat([self.labels, labels])
        self.embeddings, self.labels = embeddings[-self.size :], labels[-self.size :]

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered."""
        return {"embeddings": self.embeddings, "labels": self.labels}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.embeddings, self.labels = state["embeddings"], state["labels"]
