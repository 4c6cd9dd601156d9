"""Does an image find others of its class? Retrieval from the set itself, leaving the query out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_rm.evaluation.inputs import FloatArray, IntArray, check_embeddings, check_labels

RECALL_KS = (1, 5, 10)
BLOCK_ELEMENTS = 4_000_000  # similarities held at once; each takes about 20 bytes in all
RESOLUTION = 2**20  # float32 tells cosine similarities apart to about 1e-6

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Retrieval:
    """How well each image finds those of its class among all others.

    Attributes:
        average_precision: (N,), each in [0, 1]; the mean is the mAP.
        recall: k to (N,) of 0 and 1; the mean is the recall@k.
    """

    average_precision: Scores
    recall: dict[int, Scores]


@torch.no_grad()
def retrieve(
    embeddings: FloatArray,
    labels: IntArray,
    *,
    ks: Sequence[int] = RECALL_KS,
    block_elements: int = BLOCK_ELEMENTS,
) -> Retrieval:
    """Rank, for each image, the other N - 1 by falling cosine similarity; those of its class are relevant.

    Average precision is the mean, over the relevant images, of the share of relevant ones down to that rank: over the
    whole ranking and without interpolation. Recall@k is 1 where at least one of the k nearest is relevant, as in metric
    learning (Song et al. 2016). Both are 0 for an image that is the only one of its class: nothing can be found, and
    the divisor is the same for every model.

    Similarities are computed in float32 and rounded to 2^-20, below which they are rounding error. Among equals those
    of another class come first, so that neither the order of the images nor a constant embedding gains anything.

    Args:
        embeddings: (N, D), NumPy, N >= 2; an embedding of norm 0 stays 0, equally far from everything.
        labels: (N,) integer class indices, NumPy.
        ks: numbers of nearest images, at least 1; one that is N or more means all others.
        block_elements: similarities held at once.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, fewer than two images, a k below 1.
    """
    check_embeddings(embeddings, min_images=2)
    check_labels(labels, num_images=len(embeddings))
    if not ks or min(ks) < 1:
        raise ValueError(f"got k = {list(ks)}; expected one or more numbers from 1: {list(RECALL_KS)} are usual")
    average_precision: list[Scores] = []
    recall: dict[int, list[Scores]] = {k: [] for k in ks}
    for is_relevant in _rankings(embeddings, labels, block_elements):
        average_precision.append(_average_precision(is_relevant))
        for k, blocks in recall.items():
            blocks.append(np.asarray(is_relevant[:, :k].any(axis=1), dtype=np.float64))
    return Retrieval(np.concatenate(average_precision), {k: np.concatenate(blocks) for k, blocks in recall.items()})


def _rankings(embeddings: FloatArray, labels: IntArray, block_elements: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield for each block of B queries (B, N - 1): is the image of that rank of the query's class?"""
    points = F.normalize(torch.tensor(embeddings, dtype=torch.float32), dim=1)
    classes = torch.tensor(labels, dtype=torch.int64)
    for queries in torch.split(torch.arange(len(points)), max(1, block_elements // len(points))):
        keys = _sort_keys(points[queries] @ points.T, classes[queries, None] == classes)
        keys[torch.arange(len(queries)), queries] = torch.iinfo(keys.dtype).max  # the query itself comes last
        ordered = keys.numpy()
        ordered.sort(axis=1)  # NumPy sorts integers with AVX, many times as fast as torch
        yield (ordered[:, :-1] & 1).astype(np.bool_)


def _sort_keys(similarities: Tensor, is_same_class: Tensor) -> Tensor:
    """Return int32 that rise as similarities fall; by the last bit other classes come first among equals."""
    steps = similarities.mul_(-RESOLUTION).round_().to(torch.int32)
    return steps.mul_(2).add_(is_same_class)


def _average_precision(is_relevant: npt.NDArray[np.bool_]) -> Scores:
    """Return the mean precision (B,) at the ranks that are relevant, 0 where none is."""
    ranks = np.arange(1, is_relevant.shape[1] + 1, dtype=np.float32)
    precision = np.cumsum(is_relevant, axis=1, dtype=np.float32)  # exact below 2^24 images
    precision /= ranks
    sums = np.einsum("ij,ij->i", precision, is_relevant, dtype=np.float64)
    return np.asarray(sums / np.maximum(is_relevant.sum(axis=1), 1), dtype=np.float64)
