"""Surrogate objectives over an enumerated output set, one value per site, to be maximized.

How they depart from GRPO for language models:
- the group is the whole output set, so nothing is sampled and every mean is an exact sum (paper);
- no reference model and no KL term by default (paper);
- the group may be averaged with equal weights or with the old policy's (ours);
- the log-ratio is clamped, since `min` leaves the ratio of a rare candidate with a negative advantage unbounded (ours).
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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

    With a `ratio_cap` the first rho is min(rho, ratio_cap), as TRL's `delta` (INTELLECT-2). The log-ratio is clamped to
    +-5 in both places (ours, after Graph-GRPO). A candidate beyond the clamp, the cap or the clip has no gradient of
    its own.

    Raises:
        ValueError: The shapes are not one (N, K), or `ratio_cap` is under 1 + clip_high: it would be the clip.
    """
    if ratio_cap is not None and not ratio_cap >= 1 + clip_high:
        raise ValueError(f"ratio_cap is {ratio_cap}, expected at least 1 + clip_high = {1 + clip_high:g}, or None")
    _check(log_probs, old_log_probs, advantages)
    # a clamp, a clip and a minimum whose gradients are one pass each: on a CPU four times as fast as torch's own
    ratio = F.hardtanh(log_probs - old_log_probs, -MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped = ratio.detach().clamp(1 - clip_low, 1 + clip_high) * advantages  # constant wherever it is the lesser
    if ratio_cap is not None:
        ratio = ratio.clamp(max=ratio_cap)
    gain = ratio * advantages
    return _group_mean(gain - F.relu(gain - clipped), old_log_probs, weighting)


def fresh_surrogate(log_probs: Tensor, advantages: Tensor, *, weighting: Weighting = "uniform") -> Tensor:
    """Return the clipped surrogate where the old policy is the present one: (N, K) to (N,).

    There rho = 1 and neither clip, cap nor clamp acts: the value is sum_k w_k A_k, and since d rho = d log pi the
    gradient at `log_probs` is w_k A_k, whatever the settings (derived). `clipped_surrogate(log_probs,
    log_probs.detach(), advantages)` is the same in three times as many passes over the candidates.
    """
    _check(log_probs, advantages)
    slopes = advantages if weighting == "uniform" else log_probs.detach().exp() * advantages
    gain: Tensor = _Linear.apply(log_probs, slopes)
    return gain / log_probs.shape[-1] if weighting == "uniform" else gain


class _Linear(torch.autograd.Function):
    """The sum of the slopes, (N, K) to (N,), as a function of which they are the gradient."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, slopes: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(slopes)
        return slopes.sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None]:
        return incoming.unsqueeze(-1) * ctx.saved_tensors[0], None


def regressive_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    weighting: Weighting = "uniform",
    statistics: Weighting = "uniform",
    eps: float = 1e-4,
) -> Tensor:
    """Return minus the error of regressing the log-ratio onto the advantage: (N, K) to (N,).

    J = -sum_k w_k (A_k - B_k)^2 with B = (rho - mean rho) / std rho and rho = log(pi / pi_old) (Reg-GRPO of
    DeepVideo-R1). Nothing is clipped. `statistics` weights the mean and the standard deviation of rho as `weighting`
    does the sum; over the whole output set they are exact.

    std = sqrt(var + eps^2) (ours), as at pi = pi_old rho is 0. There J = -sum_k w_k A_k^2, and with v the weights of
    the statistics dJ/drho_j = 2 / eps (w_j A_j - v_j sum_k w_k A_k): for v = w and centered advantages the gradient of
    the clipped surrogate times 2 / eps. It sums to 0 over j, so it is the gradient at the logits, too (derived).

    Args:
        log_probs: (N, K).
        old_log_probs: (N, K).
        advantages: (N, K).
        weighting: See `clipped_surrogate`.
        statistics: "uniform" or "policy".
        eps: More than 0. The first step from pi_old is 2 / eps long: for an optimizer that minds, take a large one.

    Raises:
        ValueError: The shapes are not one (N, K).
    """
    _check(log_probs, old_log_probs, advantages)
    log_ratio = log_probs - old_log_probs
    centered = log_ratio - _group_mean(log_ratio, old_log_probs, statistics).unsqueeze(-1)
    std = (_group_mean(centered.square(), old_log_probs, statistics) + eps**2).sqrt()
    return -_group_mean((advantages - centered / std.unsqueeze(-1)).square(), old_log_probs, weighting)


def _group_mean(values: Tensor, old_log_probs: Tensor, weighting: Weighting) -> Tensor:
    if weighting == "uniform":
        return values.sum(dim=-1) / values.shape[-1]  # as mean, whose gradient takes a pass more over the outputs
    return expectation(values, old_log_probs)


def _check(*tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"log_probs, old_log_probs and advantages are {shapes}, expected one shape (N, K)")
