"""The losses of the arms that are compared: cross-entropy, and GRPO-RM with its rewards put together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_rm.advantages import Scale, group_advantages
from grpo_rm.objective import Weighting, clipped_surrogate
from grpo_rm.policy import entropy, expectation, kl_divergence, log_policy
from grpo_rm.rewards import Group, Reward
from grpo_rm.sites import Sites

Statistics = Literal["uniform", "policy"]


@dataclass(frozen=True)
class LossOutput:
    """A loss and what to log beside it.

    Attributes:
        loss: Scalar, differentiable.
        stats: Detached scalars by name. Names are TRL's where the thing is the same. Over the parts of a batch they
            add up, as the loss does; of a name that begins with "max_" the greatest counts.
    """

    loss: Tensor
    stats: dict[str, Tensor]


Loss = Callable[[Sites], LossOutput]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Settings of the GRPO-RM loss. What a setting does says `docs/objective.md`.

    Attributes:
        rewards: By name.
        reward_weights: By the same names. With weight 0 a reward is only logged.
        classes: Names of the outputs, for rewards that want them.
        surrogate: "clipped" (GRPO) or "regressive" (Reg-GRPO).
        scale: See `group_advantages`.
        statistics: "uniform", or "policy" for group statistics weighted by pi_old.
        eps: See `group_advantages`.
        weighting: See `clipped_surrogate`.
        clip_low: See `clipped_surrogate`.
        clip_high: See `clipped_surrogate`.
        ratio_cap: See `clipped_surrogate`.
        candidates: Only the labeled output and this many others count, the most probable ones under pi_old.
        beta: Weight of KL(pi || reference).
        entropy_weight: Weight of the entropy, as a bonus.
        supervised_weight: Weight of cross-entropy.
    """

    rewards: Mapping[str, Reward]
    reward_weights: Mapping[str, float]
    classes: tuple[str, ...] = ()
    surrogate: Literal["clipped", "regressive"] = "clipped"
    scale: Scale = "group"
    statistics: Statistics = "uniform"
    eps: float = 1e-4
    weighting: Weighting = "uniform"
    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio_cap: float | None = None
    candidates: int | None = None
    beta: float = 0.0
    entropy_weight: float = 0.0
    supervised_weight: float = 0.0


def cross_entropy_loss(sites: Sites) -> LossOutput:
    """Return -log pi(target), weighted over the sites."""
    log_probs, targets, weights = _rows(sites.logits), sites.targets.reshape(-1), sites.weights.reshape(-1)
    log_probs = log_policy(log_probs.masked_fill(weights.unsqueeze(-1) == 0, 0))
    nll = -log_probs.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    stats = {
        "entropy": (weights * entropy(log_probs.detach())).sum(),
        "max_abs_logit": sites.logits.detach().abs().amax().float(),
    }
    return LossOutput((weights * nll).sum(), stats)


def grpo_rm_loss(sites: Sites, objective: Objective) -> LossOutput:
    """Return the GRPO-RM loss, weighted over the sites."""
    weights = sites.weights.reshape(-1)
    is_void = weights.unsqueeze(-1) == 0
    logits = _rows(sites.logits).masked_fill(is_void, 0)
    old_logits = logits if sites.old_logits is None else _rows(sites.old_logits).masked_fill(is_void, 0)
    log_probs, old_log_probs = log_policy(logits), log_policy(old_logits.detach())
    outputs = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    group = Group(sites.targets.reshape(-1), outputs, old_log_probs, objective.classes)
    rewards = {name: reward(group) for name, reward in objective.rewards.items()}
    reward = torch.stack([objective.reward_weights[name] * values for name, values in rewards.items()]).sum(dim=0)
    advantages = group_advantages(
        reward,
        scale=objective.scale,
        eps=objective.eps,
        old_log_probs=old_log_probs if objective.statistics == "policy" else None,
    )
    surrogate = clipped_surrogate(
        log_probs,
        old_log_probs,
        advantages,
        weighting=objective.weighting,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
    )
    stats = {
        "entropy": (weights * entropy(log_probs.detach())).sum(),
        "old_kl": (weights * kl_divergence(old_log_probs, log_probs.detach())).sum(),
        "max_abs_logit": logits.detach().abs().amax().float(),
    }
    return LossOutput(-(weights * surrogate).sum(), stats | _reward_stats(reward, rewards, old_log_probs, weights))


def _rows(logits: Tensor) -> Tensor:
    """(B, K, *space) to (N, K)."""
    return logits if logits.ndim == 2 else logits.movedim(1, -1).reshape(-1, logits.shape[1])


def _reward_stats(
    reward: Tensor, rewards: Mapping[str, Tensor], old_log_probs: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """Mean and spread under pi_old: exactly what TRL estimates from sampled answers."""

    def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = expectation(values, old_log_probs)
        variance = expectation((values - mean.unsqueeze(-1)).square(), old_log_probs)
        return (weights * mean).sum(), (weights * variance.sqrt()).sum()

    stats = dict(zip(("reward", "reward_std"), mean_and_std(reward), strict=True))
    for name, values in rewards.items():
        stats[f"rewards/{name}/mean"], stats[f"rewards/{name}/std"] = mean_and_std(values)
    no_signal = reward.std(dim=-1, correction=0) < 1e-6
    return stats | {"frac_reward_zero_std": (weights * no_signal).sum()}
