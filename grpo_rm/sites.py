"""The places where the policy chooses: an image in classification, a pixel at the head's stride in a dense task.

Losses see sites only, never a task. What a site counts is one number, so that a batch may be cut into micro-batches and
over processes at will: the parts of a loss add up to the loss.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from grpo_rm.memory import Places

MANY_OUTPUTS = 64  # of a site, next to each other in memory: as fast as sites next to each other

Aggregation = Literal["per_image", "per_site", "constant"]


class Sites(NamedTuple):
    """What the policy says at each site, and what is known there. The shapes are those of torch's cross_entropy.

    Attributes:
        logits: (B, K) or (B, K, *space) over the output set.
        targets: (B,) or (B, *space) labels; below 0 where there is none. Or (B, K), (B, K, *space): for each output
            whether it is a label of the site.
        weights: (B,) or (B, *space) float32: how much each site counts; 0 where it does not. See `site_weights`.
        old_logits: Of the old policy, shaped as `logits`; None where it is the present one.
        reference_logits: Of the frozen reference, shaped as `logits`.
        places: What the embedding says at some places, and what is remembered, for a loss that looks there.
    """

    logits: Tensor
    targets: Tensor
    weights: Tensor
    old_logits: Tensor | None = None
    reference_logits: Tensor | None = None
    places: Places | None = None


def valid_sites(targets: Tensor) -> Tensor:
    """Return which sites have a label: (B, *space) integer labels or (B, K, *space) bool to (B, *space) bool."""
    return targets.any(dim=1) if targets.dtype == torch.bool else targets >= 0


def site_count(valid: Tensor, aggregation: Aggregation) -> Tensor:
    """Return what the weights of these sites are divided by: () float32. Counts of parts of a batch add up.

    It is the number of images with a valid site (`per_image`), of valid sites (`per_site`), of all sites (`constant`).
    """
    if aggregation == "per_image":
        return valid.flatten(1).any(dim=1).sum().float() if valid.ndim > 1 else valid.sum().float()
    if aggregation == "per_site":
        return valid.sum().float()
    if aggregation == "constant":
        return torch.tensor(float(valid.numel()), device=valid.device)
    raise ValueError(f'aggregation is {aggregation!r}, expected "per_image", "per_site" or "constant"')


def site_weights(valid: Tensor, aggregation: Aggregation = "per_image", *, count: Tensor | None = None) -> Tensor:
    """Return how much each site counts: (B, *space) float32.

    `per_image` is the mean over the valid sites of an image, then over the images that have one (GRPO); `per_site` the
    mean over the valid sites of the batch (DAPO); `constant` divides by the number of all sites, valid or not
    (Dr. GRPO). With one site an image, all valid, the three are equal.

    Args:
        valid: (B, *space) bool.
        aggregation: One of the three.
        count: `site_count` of the whole batch, where `valid` is only a part of it.

    Raises:
        ValueError: `aggregation` is none of the three.
    """
    count = site_count(valid, aggregation) if count is None else count
    weights = valid.float()
    if aggregation == "per_image" and valid.ndim > 1:
        sites = weights.flatten(1).sum(dim=1).clamp(min=1)
        weights = weights / sites.view(-1, *[1] * (valid.ndim - 1))
    return weights / count.clamp(min=1)


def site_rows(sites: Sites) -> Sites:
    """Return the same sites with the space flattened, and nothing left of what does not count.

    Returns:
        logits (N, K), float32 or float64; targets (N,) int64 or (N, K) bool; weights (N,). Where the weight is 0 the
        logits are 0, whatever they were, and a label is -1.

    Raises:
        ValueError: The shapes do not fit each other, or memberships are not bool.
    """
    check_sites(sites)
    weights = sites.weights.reshape(-1)
    is_member = sites.targets.shape == sites.logits.shape
    targets = _rows(sites.targets) if is_member else sites.targets.reshape(-1).long().masked_fill(weights == 0, -1)
    old_logits, reference_logits = (
        None if logits is None else _logit_rows(logits.detach(), weights)
        for logits in (sites.old_logits, sites.reference_logits)
    )
    return Sites(_logit_rows(sites.logits, weights), targets, weights, old_logits, reference_logits)


def site_images(weights: Tensor) -> Tensor:
    """Return which image of the batch each site is of, in the order of `site_rows`: (B, *space) to (N,) int64."""
    images = torch.arange(weights.shape[0], device=weights.device)
    return images.repeat_interleave(weights[:1].numel())


def clear_void(values: Tensor, weights: Tensor) -> Tensor:
    """Set the rows of `values` (N, k) to 0 where the weight is 0: NaN would stay NaN under a weight of 0."""
    is_void = weights == 0
    if not weights.is_cuda and not is_void.any():  # on a GPU, to look would be to wait
        return values
    return values.masked_fill(is_void.unsqueeze(-1), 0)


def _logit_rows(logits: Tensor, weights: Tensor) -> Tensor:
    # here and not in each term of a loss: their gradients are added up before they are rounded to half precision
    return clear_void(_rows(logits).to(torch.promote_types(logits.dtype, torch.float32)), weights)


def _rows(values: Tensor) -> Tensor:
    """(B, K, *space) to (N, K).

    With few outputs, what sums over those of a site is several times as fast on a CPU where the sites are next to each
    other in memory. One site an image is an image: it is computed to the same bits.
    """
    outputs, space = values.shape[1], values.shape[2:].numel()
    if space > 1 and (outputs < MANY_OUTPUTS or values.stride(1) != 1):
        columns = values.transpose(0, 1).reshape(outputs, -1)
        return (columns if columns.stride(1) == 1 else columns.contiguous()).T
    return values if values.ndim == 2 else values.movedim(1, -1).reshape(-1, outputs)


def check_sites(sites: Sites) -> None:
    """See that the shapes fit.

    Raises:
        ValueError: See `site_rows`.
    """
    logits, shape = sites.logits, tuple(sites.weights.shape)
    if logits.ndim < 2 or shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"logits are {tuple(logits.shape)} and weights {shape}, expected (B, K, *space) and (B, *space)"
        )
    if sites.targets.shape == logits.shape:
        if sites.targets.dtype != torch.bool:
            raise ValueError(f"memberships are {sites.targets.dtype}, expected bool: a label of the site or none")
    elif tuple(sites.targets.shape) != shape:
        raise ValueError(
            f"targets are {tuple(sites.targets.shape)}, expected labels {shape} or memberships {tuple(logits.shape)}"
        )
    for name in ("old_logits", "reference_logits"):
        other: Tensor | None = getattr(sites, name)
        if other is not None and other.shape != logits.shape:
            raise ValueError(f"{name} are {tuple(other.shape)}, expected {tuple(logits.shape)} as the logits")
