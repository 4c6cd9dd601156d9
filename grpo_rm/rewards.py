"""Rewards: one number per (site, candidate). A site is an image, or a pixel of a dense task."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The candidates of N sites, which is what a reward sees.

    Attributes:
        targets: (N,) integer labels, or (N, K) bool: whether each output is a label of the site. A site without a label
            (below 0) may be rewarded anyhow: it does not count.
        outputs: (N, k) integers: which output each candidate is. All K of them in order, unless candidates are chosen.
        old_log_probs: (N, k) log-probabilities of the old policy over the candidates; float32 or float64.
        classes: The names of the K outputs.
    """

    targets: Tensor
    outputs: Tensor
    old_log_probs: Tensor
    classes: tuple[str, ...] = ()


Reward = Callable[[Group], Tensor]


def accuracy_reward(group: Group) -> Tensor:
    """Reward 1 for a labeled output and 0 for every other one (paper: the accuracy reward): (N, k) float32."""
    if group.targets.ndim == 2:
        return group.targets.gather(1, group.outputs).float()
    return (group.targets.unsqueeze(-1) == group.outputs).float()


def uniformity_reward(group: Group) -> Tensor:
    """Reward each candidate with minus its old probability (ours: the paper's exact formula is not public).

    It has to depend on the candidate: whatever is constant over the output set cancels in the group mean. Together
    with the accuracy reward it makes the reward `1[k = y] - pi_old(k)`, cross-entropy's error.

    Returns:
        (N, k), values in [-1, 0].
    """
    return -group.old_log_probs.exp()


@dataclass(frozen=True)
class MatrixReward:
    """Look the reward up by label and output (ours).

    Attributes:
        matrix: (K, K), a row per label, a column per output.
    """

    matrix: Tensor

    def __call__(self, group: Group) -> Tensor:
        """Return (N, k)."""
        return self.matrix.to(group.outputs.device)[group.targets.clamp(min=0).unsqueeze(-1), group.outputs]
