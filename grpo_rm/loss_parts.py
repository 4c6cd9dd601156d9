"""What a loss is, and how to compute it part by part where there are many sites: pixels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_rm.loss_statistics import add_up
from grpo_rm.sites import Sites, check_sites

PART = 1 << 18  # logits of a part: on a CPU a tensor of this size stays in the cache of a core


@dataclass(frozen=True)
class LossOutput:
    """A loss and what to log beside it.

    Attributes:
        loss: Scalar, differentiable.
        stats: Detached scalars by name. Names are TRL's where the thing is the same. Over the parts of a batch they
            add up, as the loss does; of a name that begins with "max_" the greatest counts.
    """

    loss: Tensor
    stats: dict[str, Tensor]


Loss = Callable[[Sites], LossOutput]


def loss_in_parts(loss: Loss, sites: Sites) -> LossOutput:
    """Return what `loss(sites)` does, for a loss that looks at each site alone.

    A loss is dozens of passes over the logits. On a CPU they are made part by part, each in the cache, and the gradient
    of a part is taken at once: nothing of the size of the logits is kept but their gradient. On a GPU this would be
    many small kernels, and the sites stay together.
    """
    check_sites(sites)
    flat = _flat(sites)
    places = list(_places(flat)) if sites.logits.device.type == "cpu" else []
    if len(places) < 2:
        return loss(sites)
    is_differentiating = torch.is_grad_enabled() and sites.logits.requires_grad
    gradient = torch.empty_like(flat.logits) if is_differentiating else None
    losses, stats = [], []
    for images, space in places:
        part = _map(flat, itemgetter((images, ..., space)))
        part.logits.requires_grad_(is_differentiating)
        output = loss(part)
        if gradient is not None:
            gradient[images, ..., space] = torch.autograd.grad(output.loss, part.logits)[0]
        losses.append(output.loss.detach())
        stats.append(output.stats)
    total = torch.stack(losses).sum()
    if gradient is not None:
        total = _Known.apply(sites.logits, total, gradient.view(sites.logits.shape))
    return LossOutput(total, add_up(stats))


class _Known(torch.autograd.Function):
    """A loss whose gradient at the logits is known."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG004
        ctx.gradient = gradient
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.gradient if incoming == 1 else ctx.gradient * incoming.to(ctx.gradient.dtype)), None, None


def _flat(sites: Sites) -> Sites:
    """Return (B, K, sites), (B, sites) and so on, without a gradient."""
    images, outputs = sites.logits.shape[:2]

    def flatten(values: Tensor) -> Tensor:
        shape = (images, outputs, -1) if values.shape == sites.logits.shape else (images, -1)
        return values.detach().reshape(shape)

    return _map(sites, flatten)


def _map(sites: Sites, change: Callable[[Tensor], Tensor]) -> Sites:
    old, reference = (None if one is None else change(one) for one in (sites.old_logits, sites.reference_logits))
    return Sites(change(sites.logits), change(sites.targets), change(sites.weights), old, reference)


def _places(flat: Sites) -> Iterator[tuple[slice, slice]]:
    """Yield which images, and which sites of each: some sites of one image, or all of some images."""
    images, outputs, space = flat.logits.shape
    size = max(PART // outputs, 1)  # in sites
    step = max(size // max(space, 1), 1)  # in images
    for image in range(0, images, step):
        for site in range(0, space, size):
            yield slice(image, image + step), slice(site, site + size)
