"""Rewards: one number per (site, candidate). A site is an image, or a pixel of a dense task."""

import torch
from torch import Tensor


def accuracy_reward(targets: Tensor, num_outputs: int) -> Tensor:
    """Reward 1 for the labeled output and 0 for every other one (paper: the accuracy reward).

    Args:
        targets: (N,) integer labels. A label outside range(num_outputs), such as a void pixel, is rewarded nowhere.
        num_outputs: K, the size of the output set.

    Returns:
        (N, K) float32.
    """
    return (targets.unsqueeze(-1) == torch.arange(num_outputs, device=targets.device)).float()


def uniformity_reward(old_log_probs: Tensor) -> Tensor:
    """Reward each candidate with minus its old probability (ours: the paper's exact formula is not public).

    It has to depend on the candidate: whatever is constant over the output set cancels in the group mean. Together
    with the accuracy reward it makes the reward `1[k = y] - pi_old(k)`, cross-entropy's error.

    Args:
        old_log_probs: (N, K) log-probabilities of the old policy.

    Returns:
        (N, K), values in [-1, 0].
    """
    return -old_log_probs.exp()
