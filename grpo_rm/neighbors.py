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

from grpo_rm.loss_parts import LossOutput
from grpo_rm.loss_statistics import sum_over_sites
from grpo_rm.memory import Places
from grpo_rm.policy import log_policy

EPS = 0.01  # added to the standard deviation of the rewards, of which a right candidate is worth 1


def neighbor_loss(places: Places, *, temperature: float) -> LossOutput:
    """Return the GRPO-RM loss of the policy over what is remembered, weighted over the places (ours).

    Every class in the memory counts the same, where an image has one label: candidate j has the weight
    w_j = 1 / (number of its class), made to add up to 1. With W the weight of all candidates of the place's class,
    policy and reward of candidate j are

        pi(j) ~ w_j exp(cos(j) / temperature),    r(j) = 1[same class] - W pi_old(j) / w_j
        A = r / (std r + 0.01),    J = P sum_j w_j A_j log pi(j),    P = sum of pi_old over the class

    where pi_old is the present policy, and mean and std are weighted by w; the mean is 0. The push ends where the
    policy is that of the weights over the class, and 0 elsewhere; unscaled, without P and with equal weights it would
    be that of the supervised contrastive loss (Khosla et al. 2020) times W. By P a place that lies among another class,
    as one does whose label is wrong, is hardly pulled.

    Args:
        places: With several labels, one in common is the same class, and a candidate has the mean weight of its
            labels. Where nothing of its class is remembered, a place does not count.
        temperature: Of the cosines.

    Returns:
        The loss, and the mean of P, `neighbor_accuracy`.
    """
    embeddings, weights, memory = places.embeddings.flatten(0, -2), places.weights.flatten(), places.memory
    targets = places.targets
    targets = targets.flatten(0, -2) if targets.dtype == torch.bool else targets.flatten()
    if not len(memory):
        return LossOutput(embeddings.new_zeros((), dtype=torch.float32), {"neighbor_accuracy": weights.new_zeros(())})
    directions, others = (F.normalize(each.float(), dim=-1) for each in (embeddings, memory.embeddings))
    candidate_weights = balanced_weights(memory.labels)
    log_probs = log_policy(directions @ others.T / temperature + candidate_weights.log())
    probs = log_probs.detach().exp()
    is_same = _shares_label(targets, memory.labels).float()
    rewards = is_same - (is_same @ candidate_weights).unsqueeze(-1) * probs / candidate_weights
    variances = rewards.square() @ candidate_weights  # their mean is 0
    advantages = rewards / (variances.sqrt() + EPS).unsqueeze(-1)
    accuracy = (is_same * probs).sum(dim=-1)  # 0 where nothing of the class is remembered
    gain = accuracy * (candidate_weights * advantages * log_probs).sum(dim=-1)
    return LossOutput(-(weights * gain).sum(), sum_over_sites({"neighbor_accuracy": accuracy}, weights))


def balanced_weights(labels: Tensor) -> Tensor:
    """Return weights that add up to 1, every class with the same: (M,) labels to (M,) float32.

    Of (M, K) bool labels a candidate has the mean over its labels, so classes have nearly the same.
    """
    if labels.ndim == 2:
        members = labels.float()
        weights = members @ (1 / members.sum(dim=0).clamp(min=1)) / members.sum(dim=1)
    else:
        weights = 1 / labels.bincount()[labels].float()
    return weights / weights.sum()


def _shares_label(targets: Tensor, labels: Tensor) -> Tensor:
    """(N,) and (M,), or (N, K) and (M, K), to (N, M) bool."""
    if targets.ndim == 2:
        return targets.float() @ labels.float().T > 0
    return targets.unsqueeze(1) == labels
