"""Which outputs are the candidates of a site, where not the whole output set is (ours)."""

import torch
from torch import Tensor


def candidate_outputs(old_logits: Tensor, targets: Tensor, others: int) -> Tensor:
    """Return the labeled output of each site and the `others` most probable other ones under the old policy.

    Labels come first, then by falling probability. Several labels share the `others` + 1 places with the other outputs;
    where they are more than that, the most probable of them are taken.

    Args:
        old_logits: (N, K).
        targets: (N,) int64 labels, below 0 for none, or (N, K) bool memberships.
        others: Below K - 1: otherwise the candidates are the whole output set.

    Returns:
        (N, others + 1) int64.
    """
    scores = old_logits.detach().float()
    scores = scores - scores.amax(dim=-1, keepdim=True)
    above_all = 1 - scores.amin(dim=-1, keepdim=True)  # labels come to lie over 0, in their order
    if targets.ndim == 2:
        scores = torch.where(targets, scores + above_all, scores)
    else:
        scores = scores.scatter_add(1, targets.clamp(min=0).unsqueeze(-1), above_all)
    return scores.topk(others + 1, dim=-1).indices


def candidate_mass(old_logits: Tensor, outputs: Tensor) -> Tensor:
    """Return the probability that the old policy over all outputs gives to the candidates: (N, K), (N, k) to (N,)."""
    logits = old_logits.detach().to(torch.promote_types(old_logits.dtype, torch.float32))
    return (logits.gather(1, outputs).logsumexp(dim=-1) - logits.logsumexp(dim=-1)).exp()
