"""The k-NN that `benchmarks.evaluation` measures. `python -m benchmarks.knn` prints the most MB its process had."""

from pathlib import Path

import torch
from torch import Tensor

from grpo_rm.evaluation.knn import BLOCK_ELEMENTS, knn_predictions

NUM_TRAIN, NUM_TEST, DIMENSIONS, NUM_CLASSES = 50_000, 10_000, 512, 100
KS, TEMPERATURE = [10, 20, 100, 200], 0.07  # those of DINOv2


def make_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return train embeddings, their labels, and test embeddings: noise."""
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(NUM_TRAIN, DIMENSIONS, generator=generator)
    labels = torch.randint(NUM_CLASSES, (NUM_TRAIN,), generator=generator)
    return train, labels, torch.randn(NUM_TEST, DIMENSIONS, generator=generator)


def run_ours(train: Tensor, labels: Tensor, test: Tensor) -> None:
    """Classify as the evaluation does, checks and normalization included."""
    knn_predictions(train, labels, test, ks=KS, temperature=TEMPERATURE, num_classes=NUM_CLASSES)


def run_bare(points: Tensor, queries: Tensor) -> None:
    """Find the nearest, and nothing else, in blocks of the same size: the whole product would take 2 GB."""
    for block in queries.split(BLOCK_ELEMENTS // NUM_TRAIN):
        (block @ points.T).topk(max(KS), dim=1)


if __name__ == "__main__":
    run_ours(*make_inputs())
    # Not ru_maxrss, which counts what the parent had before the exec.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6)
