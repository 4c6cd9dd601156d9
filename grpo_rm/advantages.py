"""Group-relative advantages. The group of a site is the whole output set, so its statistics are exact."""

from typing import Literal

from torch import Tensor

from grpo_rm.policy import expectation

Scale = Literal["group", "none"]


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
        ValueError: `scale` is neither "group" nor "none", or `eps` is negative.
    """
    if scale not in ("group", "none"):
        raise ValueError(f'scale is {scale!r}, expected "group" or "none"')
    if eps < 0:
        raise ValueError(f"eps is {eps}, expected 0 or more")
    centered = rewards - _group_mean(rewards, old_log_probs)
    if scale == "none":
        return centered
    std = _group_mean(centered.square(), old_log_probs).sqrt()
    # without an eps a group of equal rewards has nothing to learn from, rather than 0 / 0
    return (centered / (std + eps)).masked_fill(std + eps == 0, 0)


def _group_mean(values: Tensor, old_log_probs: Tensor | None) -> Tensor:
    if old_log_probs is None:
        return values.mean(dim=-1, keepdim=True)
    return expectation(values, old_log_probs).unsqueeze(-1)
