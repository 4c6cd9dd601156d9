"""A second output set, for the embedding itself: the places that were last learned from (ours).

A place is an image, or a site of a dense task. Which of the others a place is near is a choice as well. The policy is
the softmax of the cosines over a temperature, as in neighborhood components analysis (Goldberger et al. 2004); a
candidate is right where it is of the place's class. From there on it is GRPO-RM: the group is known as a whole, its
advantages are relative to it. The paper's two rewards are here alignment and uniformity on the sphere (Wang & Isola
2020): to be near one's class, and not all at one place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_rm.advantages import group_advantages
from grpo_rm.loss_parts import LossOutput
from grpo_rm.loss_statistics import sum_over_sites
from grpo_rm.memory import Places
from grpo_rm.objective import fresh_surrogate
from grpo_rm.policy import log_policy

EPS = 0.01  # added to the standard deviation of the rewards, of which a right candidate is worth 1


def neighbor_loss(places: Places, *, temperature: float) -> LossOutput:
    """Return the GRPO-RM loss of the policy over what is remembered, weighted over the places (ours).

    With n of the M candidates of the place's class, the reward of candidate j is

        r(j) = 1[same class] - n pi_old(j),    A = r / (std r + 0.01),    J = 1/M sum_j A_j log pi(j)

    where pi_old is the present policy. The mean of r is 0. The push ends where the policy is equal over all of the
    class, and 0 elsewhere; unscaled it would be that of the supervised contrastive loss (Khosla et al. 2020).

    Args:
        places: With several labels, one in common is the same class. Where nothing of its class is remembered, a place
            does not count.
        temperature: Of the cosines.

    Returns:
        The loss, and the mean probability of a place's class, `neighbor_accuracy`.
    """
    embeddings, weights, memory = places.embeddings.flatten(0, -2), places.weights.flatten(), places.memory
    targets = places.targets
    targets = targets.flatten(0, -2) if targets.dtype == torch.bool else targets.flatten()
    if not len(memory):
        return LossOutput(embeddings.new_zeros((), dtype=torch.float32), {"neighbor_accuracy": weights.new_zeros(())})
    directions, others = (F.normalize(each.float(), dim=-1) for each in (embeddings, memory.embeddings))
    log_probs = log_policy(directions @ others.T / temperature)
    probs = log_probs.detach().exp()
    is_same = _shares_label(targets, memory.labels).float()
    rewards = is_same - is_same.sum(dim=-1, keepdim=True) * probs
    gain = fresh_surrogate(log_probs, group_advantages(rewards, scale="group", eps=EPS))
    counts = weights * is_same.any(dim=-1)
    stats = sum_over_sites({"neighbor_accuracy": (is_same * probs).sum(dim=-1)}, weights)
    return LossOutput(-(counts * gain).sum(), stats)


def _shares_label(targets: Tensor, labels: Tensor) -> Tensor:
    """(N,) and (M,), or (N, K) and (M, K), to (N, M) bool."""
    if targets.ndim == 2:
        return targets.float() @ labels.float().T > 0
    return targets.unsqueeze(1) == labels
