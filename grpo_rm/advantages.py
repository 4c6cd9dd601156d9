"""Group-relative advantages. The group of a site is its whole output set, so its statistics are exact."""

import math
from typing import Literal

import torch
from torch import Tensor

from grpo_rm.policy import expectation

Scale = Literal["group", "none"]

NO_SPREAD = 1e-6  # rewards of a group that differ by less are equal: far above rounding, far below any use of a reward


def group_advantages(
    rewards: Tensor, *, scale: Scale = "group", eps: float = 1e-4, old_log_probs: Tensor | None = None
) -> Tensor:
    """Center the rewards of each group, and divide by the group's standard deviation.

    `scale="group"` is GRPO's `(r - mean) / (std + eps)`, `scale="none"` is Dr. GRPO's `r - mean`. The standard
    deviation is the population's: the group is the whole output set, not a sample of it (ours). Weighting the
    statistics by the old policy is ours too.

    Args:
        rewards: (N, K).
        scale: "group" or "none".
        eps: Added to the standard deviation. An image whose rewards spread by less than this stops counting.
        old_log_probs: (N, K). Where given, mean and standard deviation are expectations under the old policy, else
            every candidate weighs the same.

    Returns:
        (N, K).

    Raises:
        ValueError: `scale` is neither "group" nor "none", `eps` is negative, or the shapes differ.
    """
    if scale not in ("group", "none"):
        raise ValueError(f'scale is {scale!r}, expected "group" or "none"')
    if not eps >= 0:
        raise ValueError(f"eps is {eps}, expected 0 or more")
    if old_log_probs is not None and old_log_probs.shape != rewards.shape:
        raise ValueError(
            f"old_log_probs are {tuple(old_log_probs.shape)}, expected {tuple(rewards.shape)} as the rewards"
        )
    if old_log_probs is None:
        centered = rewards - rewards.mean(dim=-1, keepdim=True)
    else:
        centered = rewards - expectation(rewards, old_log_probs).unsqueeze(-1)
    if scale == "none":
        return centered
    std = _std(centered, old_log_probs)
    advantages = centered / (std + eps)
    if eps > 0:
        return advantages
    # without an eps a group of equal rewards has nothing to learn from, rather than 0 / 0 or its rounding
    spread = rewards.amax(dim=-1, keepdim=True) - rewards.amin(dim=-1, keepdim=True)
    return advantages.masked_fill((std == 0) | (spread < NO_SPREAD), 0)


def _std(centered: Tensor, old_log_probs: Tensor | None) -> Tensor:
    if old_log_probs is None:
        return _norm(centered) / math.sqrt(centered.shape[-1])
    return expectation(centered.square(), old_log_probs).sqrt().unsqueeze(-1)


def _norm(values: Tensor) -> Tensor:
    # on a CPU 40 times as fast as std: the first where outputs are next to each other in memory, else the second
    if values.stride(-1) == 1:
        norm: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        return norm
    return values.square().sum(dim=-1, keepdim=True).sqrt()
