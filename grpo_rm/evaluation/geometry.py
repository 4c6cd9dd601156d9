"""How embeddings lie in space: alignment, uniformity, effective rank. The labels and embeddings are torch tensors."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_rm.evaluation.inputs import check_embeddings, check_labels


@torch.no_grad()
def alignment(embeddings: Tensor, labels: Tensor) -> float:
    """Return the mean of ||f(x) - f(y)||^2 over all pairs of distinct images of one class.

    Wang & Isola 2020 with alpha = 2. f is the L2-normalised embedding. Every pair counts once, so a class of n images
    has weight n (n - 1) / 2. Exact and linear in the number of images: over the pairs of one class the sum is
    n * sum_x ||f(x) - class mean||^2.

    Args:
        embeddings: (N, D) torch tensor; an embedding of norm 0 stays 0.
        labels: (N,) int64 on the same device.

    Returns:
        A number in [0, 4]; lower is better, 0 where each class is one point.

    Raises:
        ValueError: no class with two images; shapes that do not fit; values that are not finite.
    """
    check_embeddings(embeddings)
    check_labels(labels, num_images=len(embeddings))
    points = F.normalize(embeddings.double(), dim=1)
    _, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    num_pairs = int((counts * (counts - 1) // 2).sum())
    if num_pairs == 0:
        raise ValueError(
            f"got {len(labels)} image(s) of {len(counts)} classes, no class with two; alignment is a mean over pairs "
            "within a class: pass at least two images of some class"
        )
    means = points.new_zeros(len(counts), points.shape[1]).index_add_(0, classes, points) / counts[:, None]
    spreads = (points - means[classes]).square().sum(dim=1)  # (N,)
    return float((counts[classes] * spreads).sum() / num_pairs)


@torch.no_grad()
def uniformity(embeddings: Tensor, *, block_size: int = 512) -> float:
    """Return log mean exp(-2 ||f(x) - f(y)||^2) over all pairs of distinct images (Wang & Isola 2020, t = 2).

    f is the L2-normalised embedding. Exact, in float64 and in log space.

    Args:
        embeddings: (N, D) torch tensor, N >= 2; an embedding of norm 0 stays 0.
        block_size: rows compared with all at once; the distances take 8 * block_size * N bytes.

    Returns:
        A number from -4 N / (N - 1), which only the regular simplex has, to 0, where all embeddings coincide; lower is
        better.

    Raises:
        ValueError: fewer than two images; values that are not finite.
    """
    check_embeddings(embeddings, min_images=2)
    points = F.normalize(embeddings.double(), dim=1)
    starts = range(0, len(points), block_size)
    log_sums = torch.stack([_log_sum_of_pairs(points[start:], block_size) for start in starts])
    num_pairs = len(points) * (len(points) - 1) // 2
    return float(log_sums.logsumexp(dim=0)) - math.log(num_pairs)


def _log_sum_of_pairs(points: Tensor, block_size: int) -> Tensor:
    """Return log sum exp(-2 d^2) over the pairs of one of the first `block_size` points with any later point."""
    squares = points.square().sum(dim=1)
    exponents = 4.0 * (points[:block_size] @ points.T)  # (B, N); -2 d^2 = 4 x.y - 2 |x|^2 - 2 |y|^2
    exponents -= 2.0 * squares
    exponents -= 2.0 * squares[:block_size, None]
    exponents.clamp_(max=0.0)
    is_counted_before = torch.ones_like(exponents, dtype=torch.bool).tril_()
    return exponents.masked_fill_(is_counted_before, -math.inf).flatten().logsumexp(dim=0)


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> float:
    """Return exp of the entropy of the singular values divided by their sum (Roy & Vetterli 2007).

    The embeddings are centred, so the mean does not count as a direction, and not L2-normalised (centring: ours).
    Shifting, scaling and rotating all embeddings leaves the value as it is.

    Args:
        embeddings: (N, D) torch tensor.

    Returns:
        A number from 1 to min(N - 1, D), the number of directions in use; 0 where all embeddings coincide.

    Raises:
        ValueError: no image; values that are not finite.
    """
    check_embeddings(embeddings)
    points = embeddings.double()
    values = torch.linalg.svdvals(points - points.mean(dim=0))
    # What centring leaves of coinciding points is rounding error, not a direction.
    rounding = max(points.shape) * torch.finfo(points.dtype).eps * torch.linalg.norm(points)
    values = values[values > rounding]
    return float(torch.special.entr(values / values.sum()).sum().exp()) if len(values) else 0.0
