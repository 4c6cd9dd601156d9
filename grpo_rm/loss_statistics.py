"""What the loss reports beside itself, site by site. Names are TRL's where the thing is the same."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from grpo_rm.advantages import NO_SPREAD

CLIP_STATISTICS = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


def add_up(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the statistics of a batch from those of its parts: of a name that begins with "max_" the greatest."""
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    return {name: values.amax(0) if name.startswith("max_") else values.sum(0) for name, values in stacked.items()}


def sum_over_sites(values: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """Return the weighted sum of each (N,), which over the parts of a batch adds up: () by name."""
    sums = (torch.stack(list(values.values())) * weights).sum(dim=-1)
    return dict(zip(values, sums.unbind(), strict=True))


def max_abs_logit(logits: Tensor) -> Tensor:
    """Return the greatest |logit|: () float32."""
    logits = logits.detach()
    return torch.maximum(-logits.amin(), logits.amax()).float()  # aminmax would copy what is not in rows


@torch.no_grad()
def reward_statistics(reward: Tensor, rewards: Mapping[str, Tensor], old_probs: Tensor) -> dict[str, Tensor]:
    """Return mean and spread of the rewards under pi_old, exactly what TRL estimates from sampled answers.

    `frac_reward_zero_std` is 1 where all candidates are rewarded alike, so that there is nothing to learn. It goes by
    their greatest difference: at K = 21841 the standard deviation of an accuracy reward is .007.

    Args:
        reward: (N, k), the weighted sum of the rewards.
        rewards: (N, k) by name.
        old_probs: (N, k).

    Returns:
        (N,) by name.
    """
    stats = dict(zip(("reward", "reward_std"), _mean_and_std(reward, old_probs), strict=True))
    for name, values in rewards.items():
        stats[f"rewards/{name}/mean"], stats[f"rewards/{name}/std"] = _mean_and_std(values, old_probs)
    is_equal = reward.amax(dim=-1) - reward.amin(dim=-1) < NO_SPREAD
    return stats | {"frac_reward_zero_std": is_equal.to(reward.dtype)}


def _mean_and_std(values: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each row; one temporary, as memory is what they cost."""
    products = probs * values
    mean = products.sum(dim=-1)
    torch.sub(values, mean.unsqueeze(-1), out=products)
    return mean, products.square_().mul_(probs).sum(dim=-1).sqrt()


@torch.no_grad()
def clip_statistics(log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> dict[str, Tensor]:
    """Return which share of the candidates the clip holds back: (N, k) to (N,) by name.

    Low: the advantage is negative and the ratio is under 1 - clip_low; high: positive and over 1 + clip_high.
    """
    lowest = math.log1p(-clip_low) if clip_low < 1 else -math.inf
    low = (_is_positive(lowest - log_ratio) * _is_positive(-advantages)).mean(dim=-1)
    high = (_is_positive(log_ratio - math.log1p(clip_high)) * _is_positive(advantages)).mean(dim=-1)
    return dict(zip(CLIP_STATISTICS, (low, high, low + high), strict=True))


def _is_positive(values: Tensor) -> Tensor:
    return values.sign().clamp_(min=0)  # 1 or 0; on a CPU several times as fast as to compare
