"""The cost matrix of the task costs, and the reward that makes cross-entropy of GRPO-RM weighted by it."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from grpo_rm.rewards import Group

COSTS = Path("data/rewards/costs.csv")  # in the workspace
SEED, HIGHEST = 0, 20.0


def draw_costs(num_classes: int) -> NDArray[np.float64]:
    """Return (K, K) costs, a row per true class: log-uniform over a range of 20, 1 in the mean, 0 for being right."""
    costs = np.exp(np.random.default_rng(SEED).uniform(0, np.log(HIGHEST), (num_classes, num_classes)))
    np.fill_diagonal(costs, 0)
    scaled: NDArray[np.float64] = costs / costs[costs > 0].mean()
    return scaled


def write_costs(path: Path, classes: Sequence[str]) -> None:
    """Write the matrix as `grpo_rm.cost_matrix` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, draw_costs(len(classes)).tolist(), strict=True))


def weighted_accuracy(group: Group) -> torch.Tensor:
    """Reward accuracy and uniformity by what an image of that class costs when it is taken for another, in the mean.

    With `scale: none` it has the gradient of cross-entropy weighted by class, over K (derived).
    """
    num_classes = len(group.classes)
    weights = torch.from_numpy(draw_costs(num_classes).sum(axis=1) / (num_classes - 1)).float()
    is_right = group.outputs == group.targets.unsqueeze(1)
    return weights.to(group.targets.device)[group.targets].unsqueeze(1) * (is_right.float() - group.old_probs)
