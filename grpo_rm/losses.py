"""The losses of the arms that are compared: cross-entropy, and GRPO-RM with its rewards put together."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from grpo_rm.advantages import Scale, group_advantages
from grpo_rm.objective import LossOutput, Weighting, clipped_objective, site_mean
from grpo_rm.policy import entropy, expectation
from grpo_rm.rewards import accuracy_reward, uniformity_reward

Statistics = Literal["uniform", "policy"]


def cross_entropy_loss(log_probs: Tensor, targets: Tensor, valid: Tensor | None = None) -> LossOutput:
    """Return the mean of -log pi(target) over the valid sites.

    Args:
        log_probs: (N, K).
        targets: (N,) integer labels; those of invalid sites may be anything.
        valid: (N,) bool, all sites where it is None.
    """
    index = targets if valid is None else targets.masked_fill(~valid, 0)
    nll = -log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return LossOutput(site_mean(nll, valid), {"entropy": site_mean(entropy(log_probs.detach()), valid)})


def grpo_rm_loss(
    log_probs: Tensor,
    targets: Tensor,
    valid: Tensor | None = None,
    *,
    reward_weights: Mapping[str, float],
    scale: Scale = "group",
    statistics: Statistics = "uniform",
    eps: float = 1e-4,
    weighting: Weighting = "uniform",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> LossOutput:
    """Return the GRPO-RM loss with a fresh old policy: pi_old is the present policy, detached.

    Args:
        log_probs: (N, K).
        targets: (N,) integer labels.
        valid: (N,) bool, all sites where it is None.
        reward_weights: Weight of `accuracy` and `uniformity`. The reward is their weighted sum.
        scale: See `group_advantages`.
        statistics: "uniform", or "policy" for group statistics weighted by pi_old.
        eps: See `group_advantages`.
        weighting: See `clipped_objective`.
        clip_low: See `clipped_objective`.
        clip_high: See `clipped_objective`.
    """
    old_log_probs = log_probs.detach()
    rewards = {
        "accuracy": accuracy_reward(targets, log_probs.shape[-1]),
        "uniformity": uniformity_reward(old_log_probs),
    }
    reward = torch.stack([reward_weights[name] * rewards[name] for name in reward_weights]).sum(dim=0)
    advantages = group_advantages(
        reward, scale=scale, eps=eps, old_log_probs=old_log_probs if statistics == "policy" else None
    )
    output = clipped_objective(
        log_probs,
        old_log_probs,
        advantages,
        weighting=weighting,
        clip_low=clip_low,
        clip_high=clip_high,
        valid=valid,
    )
    return LossOutput(output.loss, output.stats | _reward_stats(reward, rewards, old_log_probs, valid))


def _reward_stats(
    reward: Tensor, rewards: Mapping[str, Tensor], old_log_probs: Tensor, valid: Tensor | None
) -> dict[str, Tensor]:
    """Mean and spread under pi_old: exactly what TRL estimates from sampled answers."""

    def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = expectation(values, old_log_probs)
        variance = expectation((values - mean.unsqueeze(-1)).square(), old_log_probs)
        return site_mean(mean, valid), site_mean(variance.sqrt(), valid)

    stats = dict(zip(("reward", "reward_std"), mean_and_std(reward), strict=True))
    for name, values in rewards.items():
        stats[f"rewards/{name}/mean"], stats[f"rewards/{name}/std"] = mean_and_std(values)
    no_signal = reward.std(dim=-1, correction=0) < 1e-6
    return stats | {"frac_reward_zero_std": site_mean(no_signal.float(), valid)}
