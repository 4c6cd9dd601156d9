"""The sites of a dense task: logits at the head's stride and masks of the image's size, brought to one stride."""

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_rm.dense import Size, places
from grpo_rm.sites import Aggregation, Sites, site_weights, valid_sites


def upsample(logits: Tensor, size: Size, stride: int, *, site_stride: int = 1) -> Tensor:
    """Bring logits (B, K, h, w) at `stride` to `site_stride`, bilinear: (B, K, H, W) by default.

    They stay where their pixels are: where H is no multiple of the stride the last place reaches beyond the image, and
    what lies beyond is cropped. To stretch (h, w) over (H, W) would shift them by up to a stride.

    Args:
        logits: Of places, as `places(size, stride)` counts them.
        size: (H, W) of the image.
        stride: Of the logits.
        site_stride: A divisor of it.

    Raises:
        ValueError: The logits are not of that many places, or the strides do not divide.
    """
    if site_stride < 1 or stride % site_stride:
        raise ValueError(f"site_stride is {site_stride}, expected a divisor of the head's stride {stride}")
    if tuple(logits.shape[-2:]) != places(size, stride):
        raise ValueError(
            f"logits are {tuple(logits.shape)}, expected (B, K, {', '.join(map(str, places(size, stride)))}) for "
            f"images of {size[0]} x {size[1]} at stride {stride}"
        )
    if site_stride == stride:
        return logits
    factor = stride // site_stride
    whole = (logits.shape[-2] * factor, logits.shape[-1] * factor)
    height, width = places(size, site_stride)
    if logits.device.type == "cpu":  # there and back three times as fast
        logits = logits.contiguous(memory_format=torch.channels_last)
    return F.interpolate(logits, size=whole, mode="bilinear", align_corners=False)[..., :height, :width]


def site_targets(masks: Tensor, site_stride: int) -> Tensor:
    """Bring masks (B, H, W) to a stride, nearest neighbor: each place takes the pixel in the middle of what it covers.

    Where that is between two pixels, places take the one before and the one after it by turns: always the same one
    would have a model learn masks that are half a pixel off.

    Returns:
        (B, h, w) as `places` counts them.
    """
    rows, columns = (_middles(length, site_stride, masks.device) for length in masks.shape[-2:])
    return masks[:, rows.unsqueeze(1), columns]


def dense_sites(
    logits: Tensor,
    masks: Tensor,
    *,
    stride: int,
    site_stride: int,
    aggregation: Aggregation = "per_image",
    count: Tensor | None = None,
    old_logits: Tensor | None = None,
    reference_logits: Tensor | None = None,
) -> Sites:
    """Return the sites of images: each place of `site_stride`, whose weight is 0 where the mask is void.

    Args:
        logits: (B, K, h, w) at the head's stride.
        masks: (B, H, W) class indices; below 0 is void.
        stride: The head's.
        site_stride: That of the sites: `stride` itself, or a divisor; 1 is every pixel.
        aggregation: See `site_weights`.
        count: See `site_weights`; `site_count` of `site_targets` of the whole batch.
        old_logits: Of the old policy, at the head's stride.
        reference_logits: Of the reference, at the head's stride.

    Raises:
        ValueError: The shapes or strides do not fit.
    """
    size = (masks.shape[-2], masks.shape[-1])
    now, old, reference = (
        None if one is None else upsample(one, size, stride, site_stride=site_stride)
        for one in (logits, old_logits, reference_logits)
    )
    assert now is not None
    targets = site_targets(masks, site_stride)
    return Sites(now, targets, site_weights(valid_sites(targets), aggregation, count=count), old, reference)


def _middles(length: int, stride: int, device: torch.device) -> Tensor:
    starts = torch.arange(0, length, stride, device=device)
    turns = torch.arange(1, len(starts) + 1, device=device) % 2
    return (starts + (starts + stride).clamp(max=length) - turns) // 2
