"""From embedding to logits over the output set: a linear layer, or the cosine to the mean of each class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PrototypeHead(nn.Module):
    """Logits are cosine(embedding, prototype) / temperature; nothing in it is trained, `set_prototypes` sets it (ours).

    The policy then asks for a geometry: what pulls an image towards its class mean, and away from the others, moves the
    embedding alone. Until prototypes are set, all logits are 0.

    Args:
        dim: D, the length of the embedding.
        num_outputs: K.
        temperature: The smaller, the sharper the policy; logits reach from -1 / temperature to 1 / temperature.
    """

    def __init__(self, dim: int, num_outputs: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.prototypes: Tensor
        self.register_buffer("prototypes", torch.zeros(num_outputs, dim))

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (B, D) to the logits (B, K)."""
        return F.linear(F.normalize(embedding, dim=-1), self.prototypes) / self.temperature

    def set_prototypes(self, embeddings: Tensor, labels: Tensor) -> None:
        """Take the class means of these images for prototypes: see `class_means`."""
        self.prototypes.copy_(class_means(embeddings, labels, len(self.prototypes)))


@torch.no_grad()
def class_means(embeddings: Tensor, labels: Tensor, num_outputs: int) -> Tensor:
    """Return the mean direction of each class: the normalized mean of its L2-normalized embeddings.

    Args:
        embeddings: (N, D).
        labels: (N,) integers below `num_outputs`; an image below 0 does not count.
        num_outputs: K.

    Returns:
        (K, D) float32, of length 1.

    Raises:
        ValueError: A class has no image.
    """
    valid = labels >= 0
    embeddings, labels = embeddings[valid].float(), labels[valid].to(embeddings.device)
    counts = torch.bincount(labels, minlength=num_outputs)
    if empty := (counts == 0).nonzero().flatten().tolist():
        raise ValueError(
            f"class {', '.join(map(str, empty))} (counted from 0) has no image, expected at least one of each of the "
            f"{num_outputs} classes: a class without images has no mean"
        )
    sums = embeddings.new_zeros(num_outputs, embeddings.shape[1])
    return F.normalize(sums.index_add_(0, labels, F.normalize(embeddings, dim=-1)), dim=-1)


def create_head(kind: str, dim: int, num_outputs: int, *, temperature: float) -> nn.Module:
    """Return a head, (B, D) to (B, K).

    Args:
        kind: "linear", or "prototypes" for a `PrototypeHead`.
        dim: D.
        num_outputs: K.
        temperature: Of the prototypes.

    Raises:
        ValueError: There is no such head.
    """
    if kind == "linear":
        return nn.Linear(dim, num_outputs)
    if kind == "prototypes":
        return PrototypeHead(dim, num_outputs, temperature)
    raise ValueError(f'head is {kind!r}, expected "linear" or "prototypes"')
