"""Weighted k-nearest-neighbour accuracy of frozen embeddings."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_rm.evaluation.inputs import check_embeddings, check_labels

BLOCK_ELEMENTS = 2**24  # similarities held at once: 64 MiB. Larger blocks were no faster


@torch.no_grad()
def knn_predictions(
    train_embeddings: Tensor,
    train_labels: Tensor,
    test_embeddings: Tensor,
    *,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
    block_elements: int = BLOCK_ELEMENTS,
) -> dict[int, Tensor]:
    """Classify each test image by its k nearest train images (the protocol of DINOv2, Oquab et al. 2023).

    Embeddings are L2-normalised in float32; the k neighbors of greatest cosine similarity vote for their class with the
    weight softmax(similarity / temperature) over the k. An embedding of norm 0 stays 0, equally far from everything.

    Args:
        train_embeddings: (N, D) torch tensor.
        train_labels: (N,) int64 in range(num_classes), on the same device.
        test_embeddings: (M, D), on the same device.
        ks: numbers of neighbors, each from 1 to N.
        temperature: softmax temperature, above 0; 0.07 is usual.
        num_classes: number of classes.
        block_elements: similarities held at once, 4 bytes each; at least those of one test image are.

    Returns:
        For each k the predicted classes (M,) int64.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, k, temperature or labels out of range.
    """
    _check_arguments(train_embeddings, test_embeddings, ks, temperature)
    check_labels(train_labels, num_images=len(train_embeddings), num_classes=num_classes)
    train = F.normalize(train_embeddings.float(), dim=1)
    test = F.normalize(test_embeddings.float(), dim=1)
    votes: dict[int, list[Tensor]] = {k: [] for k in ks}
    num_rows = min(len(test), max(1, block_elements // len(train)))
    products = train.new_empty(num_rows, len(train))  # one for all blocks: fresh memory costs a tenth of the time
    for block in torch.split(test, num_rows):
        nearest = torch.mm(block, train.T, out=products[: len(block)]).topk(max(ks), dim=1)
        similarities, neighbors = nearest  # (B, max k), falling
        for k, blocks in votes.items():
            blocks.append(_vote(similarities[:, :k], train_labels[neighbors[:, :k]], temperature, num_classes))
    return {k: torch.cat(blocks) for k, blocks in votes.items()}


def _vote(similarities: Tensor, neighbor_labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Return the class (B,) of the greatest weight among the neighbors (B, k)."""
    weights = F.softmax(similarities / temperature, dim=1)
    votes = weights.new_zeros(len(weights), num_classes)
    return votes.scatter_add_(1, neighbor_labels, weights).argmax(dim=1)


def _check_arguments(train: Tensor, test: Tensor, ks: Sequence[int], temperature: float) -> None:
    check_embeddings(train)
    check_embeddings(test)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"got train embeddings of {train.shape[1]} and test embeddings of {test.shape[1]} dimensions; expected the "
            "same number: embed both with one encoder"
        )
    if not ks or min(ks) < 1 or max(ks) > len(train):
        raise ValueError(
            f"got k = {list(ks)} with {len(train)} train images; expected one or more numbers from 1 to {len(train)}: "
            "use smaller k or more train images"
        )
    if not temperature > 0:
        raise ValueError(f"got temperature = {temperature}; expected a number above 0: 0.07 is usual")
