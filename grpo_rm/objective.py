"""The clipped surrogate objective over an enumerated output set.

How it departs from GRPO for language models:
- the group is the whole output set, so nothing is sampled and every mean is an exact sum (paper);
- no reference model and no KL term (paper);
- the group may be averaged with equal weights or with the old policy's (ours);
- the log-ratio is clamped, since `min` leaves the ratio of a rare candidate with a negative advantage unbounded (ours).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_rm.policy import entropy, expectation, kl_divergence

Weighting = Literal["uniform", "policy"]

MAX_LOG_RATIO = 5.0


@dataclass(frozen=True)
class LossOutput:
    """A loss and what to log beside it.

    Attributes:
        loss: Scalar, differentiable.
        stats: Detached scalars by name. Names are TRL's where the thing is the same.
    """

    loss: Tensor
    stats: dict[str, Tensor]


def clipped_objective(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    weighting: Weighting = "uniform",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    valid: Tensor | None = None,
) -> LossOutput:
    """Return minus the clipped surrogate, averaged over the valid sites.

    J = sum_k w_k min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) with rho = pi / pi_old (GRPO).
    w_k = 1/K is the group mean (GRPO), w_k = pi_old(k) the expectation that sampling would estimate (ours).

    Args:
        log_probs: (N, K) of the policy, with gradient.
        old_log_probs: (N, K) of the old policy. No gradient flows into it.
        advantages: (N, K). No gradient flows into it.
        weighting: "uniform" or "policy".
        clip_low: How far below 1 the ratio counts.
        clip_high: How far above 1 the ratio counts.
        valid: (N,) bool. Sites that are False count nowhere, whatever their values. All sites count where it is None.

    Returns:
        The loss (0 where no site is valid) and the statistics `entropy`, `old_kl` = KL(pi_old || pi), and the shares
        of clipped candidates `clip_ratio/low_mean`, `clip_ratio/high_mean`, `clip_ratio/region_mean`.

    Raises:
        ValueError: Shapes differ, `weighting` is unknown, or a clip range is negative.
    """
    _check(log_probs, old_log_probs, advantages, weighting, clip_low, clip_high, valid)
    log_probs, old_log_probs, advantages = _masked(valid, log_probs, old_log_probs.detach(), advantages.detach())

    ratio = (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    per_site = surrogate.mean(dim=-1) if weighting == "uniform" else expectation(surrogate, old_log_probs)
    loss = -site_mean(per_site, valid)

    with torch.no_grad():
        low = (ratio < 1 - clip_low) & (advantages < 0)
        high = (ratio > 1 + clip_high) & (advantages > 0)
        stats = {
            "entropy": site_mean(entropy(log_probs), valid),
            "old_kl": site_mean(kl_divergence(old_log_probs, log_probs), valid),
            "clip_ratio/low_mean": site_mean(low.float().mean(dim=-1), valid),
            "clip_ratio/high_mean": site_mean(high.float().mean(dim=-1), valid),
            "clip_ratio/region_mean": site_mean((low | high).float().mean(dim=-1), valid),
        }
    return LossOutput(loss, stats)


def site_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Average (N,) values over the valid sites: () and 0 where there is none."""
    if valid is None:
        return values.mean()
    return values.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)


def _masked(valid: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Widen to float32 at least, and zero the sites that do not count: even a NaN there gets no gradient."""
    wide = tuple(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)
    return wide if valid is None else tuple(tensor.masked_fill(~valid.unsqueeze(-1), 0) for tensor in wide)


def _check(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weighting: str,
    clip_low: float,
    clip_high: float,
    valid: Tensor | None,
) -> None:
    shapes = [tuple(t.shape) for t in (log_probs, old_log_probs, advantages)]
    if len(set(shapes)) != 1 or log_probs.ndim != 2:
        raise ValueError(f"log_probs, old_log_probs and advantages have shapes {shapes}, expected one shape (N, K)")
    if valid is not None and (valid.shape != log_probs.shape[:1] or valid.dtype != torch.bool):
        raise ValueError(f"valid is {valid.dtype} {tuple(valid.shape)}, expected bool {tuple(log_probs.shape[:1])}")
    if weighting not in ("uniform", "policy"):
        raise ValueError(f'weighting is {weighting!r}, expected "uniform" or "policy"')
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low is {clip_low} and clip_high {clip_high}, expected 0 or more")
