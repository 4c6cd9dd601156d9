"""An example of a reward of one's own: classes that have an order, such as digits, ages or grades."""

from torch import Tensor

from grpo_rm.rewards import Group


def ordinal_reward(group: Group) -> Tensor:
    """Reward minus the distance to the label, as a share of the greatest there is: (N, k), values in [-1, 0]."""
    distance = (group.outputs - group.targets.unsqueeze(-1)).abs()
    return -distance.float() / (len(group.classes) - 1)
