"""How far the loss over chosen candidates is from the loss over all outputs; prints a Markdown table.

Run with `python -m benchmarks.candidates`. Logits are drawn: rivals that fall off geometrically over a floor of noise,
as trained classifiers have them; half of the images have their label first, the others among the first twenty.
"""

import platform
import statistics
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_rm.losses import Objective, grpo_rm_loss
from grpo_rm.rewards import accuracy_reward, uniformity_reward
from grpo_rm.sites import Sites, site_weights

REPEATS, IMAGES = 5, 64
POLICIES = {"sharp": (12.0, 0.8), "flat": (1.0, 0.97)}  # height of the first rival over the floor, and fall to the next
CANDIDATES = {1000: (10, 50, 100, 500), 21_841: (10, 100, 1000, 5000)}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "policy": {"weighting": "policy", "statistics": "policy"},
}


def draw_logits(num_outputs: int, policy: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    height, fall = POLICIES[policy]
    ranked = height * fall ** torch.arange(num_outputs) + torch.randn(IMAGES, num_outputs, generator=generator)
    ranks = torch.randint(20, (IMAGES,), generator=generator)
    ranks[: IMAGES // 2] = 0
    order = torch.stack([torch.randperm(num_outputs, generator=generator) for _ in range(IMAGES)])
    labels = order.gather(1, ranks.unsqueeze(1)).squeeze(1)
    # the candidate of rank r becomes output order[r]
    return torch.empty_like(ranked).scatter_(1, order, ranked), labels


def evaluate(logits: Tensor, labels: Tensor, **settings: Any) -> tuple[float, Tensor, float]:
    """Return the loss, its gradient at the logits (N, K), and the mass of the candidates."""
    objective = Objective(
        rewards={"accuracy": accuracy_reward, "uniformity": uniformity_reward},
        reward_weights={"accuracy": 1.0, "uniformity": 1.0},
        eps=0.01,
        **settings,
    )
    leaf = logits.clone().requires_grad_()
    # an old policy a step away: with a fresh one the loss is 0 whatever the candidates
    old_logits = logits + 0.05 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    output = grpo_rm_loss(Sites(leaf, labels, site_weights(labels >= 0), old_logits), objective)
    (gradient,) = torch.autograd.grad(output.loss, leaf)
    return output.loss.item(), gradient, output.stats.get("candidate_mass", torch.ones(())).item()


def compare(num_outputs: int, policy: str, settings: dict[str, Any], candidates: int, seed: int) -> dict[str, float]:
    """Return how far candidates alone are from the whole set, in one draw."""
    logits, labels = draw_logits(num_outputs, policy, seed)
    loss, gradient, _ = evaluate(logits, labels, **settings)
    near_loss, near, mass = evaluate(logits, labels, **settings, candidates=candidates)
    size = near.norm() / gradient.norm()
    return {
        "mass": mass,
        "loss": near_loss - loss,
        "cosine": F.cosine_similarity(near, gradient).mean().item(),
        "norm": size.item(),
        "distance": ((near - gradient).norm() / gradient.norm()).item(),
        "distance, rescaled": ((near / size - gradient).norm() / gradient.norm()).item(),
    }


def spread(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation."""
    return f"{statistics.mean(values):.3g} ({statistics.stdev(values):.1g})"


def main() -> None:
    """Print the table."""
    columns = ("mass", "loss", "cosine", "norm", "distance", "distance, rescaled")
    print(f"{platform.machine()}, torch {torch.__version__}, {REPEATS} draws of {IMAGES} images\n")
    print(f"| K | policy | settings | candidates | {' | '.join(columns)} |")
    print("| --- " * (4 + len(columns)) + "|")
    for num_outputs, counts in CANDIDATES.items():
        for policy in POLICIES:
            for name, settings in SETTINGS.items():
                for count in counts:
                    draws = [compare(num_outputs, policy, settings, count, seed) for seed in range(REPEATS)]
                    cells = " | ".join(spread([draw[column] for draw in draws]) for column in columns)
                    print(f"| {num_outputs} | {policy} | {name} | {count} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
