"""Surrogate objectives over an enumerated output set, one value per site.

How they depart from GRPO for language models:
- the group is the whole output set, so nothing is sampled and every mean is an exact sum (paper);
- no reference model and no KL term by default (paper);
- the group may be averaged with equal weights or with the old policy's (ours);
- the log-ratio is clamped, since `min` leaves the ratio of a rare candidate with a negative advantage unbounded (ours).
"""

from typing import Literal

import torch
from torch import Tensor

from grpo_rm.policy import expectation

Weighting = Literal["uniform", "policy"]

MAX_LOG_RATIO = 5.0


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    weighting: Weighting = "uniform",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_cap: float | None = None,
) -> Tensor:
    """Return the clipped surrogate of each site: (N, K) to (N,).

    J = sum_k w_k min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) with rho = pi / pi_old (GRPO).
    w_k = 1/K is the group mean (GRPO), w_k = pi_old(k) the expectation that sampling would estimate (ours).
    """
    ratio = (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if ratio_cap is not None:
        ratio = ratio.clamp(max=ratio_cap)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    return surrogate.mean(dim=-1) if weighting == "uniform" else expectation(surrogate, old_log_probs)
