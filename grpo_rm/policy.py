"""The policy over the output set: softmax of the logits, in log space and at least float32."""

import torch
from torch import Tensor


def log_policy(logits: Tensor) -> Tensor:
    """Return the log-probabilities of the policy (paper: softmax of the task head).

    Args:
        logits: (..., K), any floating dtype.

    Returns:
        (..., K) in float32, or in float64 where the logits are float64.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if logits.ndim == 2 and logits.stride(1) != 1:  # sites are next to each other, and stay so
        return torch.log_softmax(logits.T, dim=0, dtype=dtype).T
    return torch.log_softmax(logits, dim=-1, dtype=dtype)


def entropy(log_probs: Tensor) -> Tensor:
    """Return the exact entropy of each policy in nats: (..., K) -> (...)."""
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def kl_divergence(log_probs: Tensor, other_log_probs: Tensor) -> Tensor:
    """Return the exact KL(policy || other) in nats, summed over the output set: (..., K) -> (...)."""
    return (log_probs.exp() * (log_probs - other_log_probs)).sum(dim=-1)


def expectation(values: Tensor, log_probs: Tensor) -> Tensor:
    """Return the mean of `values` under the policy, summed over the output set: (..., K) -> (...)."""
    return (log_probs.exp() * values).sum(dim=-1)
