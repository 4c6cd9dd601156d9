"""What the mIoU of an image gains by the prediction of one site, for all sites at once (ours)."""

from typing import NamedTuple

from torch import Tensor


class IouGains(NamedTuple):
    """What the mIoU of an image gains by a site that is predicted as an output, times its number of sites: (B, K) each.

    Attributes:
        right: The output is the site's label.
        wrong: It is not.
        kept: It is not, and is what the site is predicted as anyhow, so that `predictions` has it in the union.
    """

    right: Tensor
    wrong: Tensor
    kept: Tensor


def iou_gains(targets: Tensor, predictions: Tensor, images: Tensor, num_outputs: int) -> IouGains:
    """Count once, and leave one site out in closed form.

    With n valid sites, C classes in the truth and over the other sites the intersection I and the union U of each class
    (a site stays in the union of its label t), n times the gain is (derived)

        R(t) = n / (C U_t),    R(k) = -n / C * I_k / (U_k (U_k + 1)) for k != t,

    so 0 for a class that is not in the truth.

    Args:
        targets: (N,) int64 labels; below 0 a site is void and counts nowhere.
        predictions: (N,) int64 outputs.
        images: (N,) int64: which image each site is of.
        num_outputs: K.
    """
    num_images = int(images.max()) + 1

    def count(classes: Tensor, is_counted: Tensor) -> Tensor:
        cells = (images * num_outputs + classes)[is_counted]
        return cells.bincount(minlength=num_images * num_outputs).view(num_images, num_outputs).float()

    truth, hits = count(targets, targets >= 0), count(targets, (targets >= 0) & (predictions == targets))
    union = truth + count(predictions, targets >= 0) - hits
    share = truth.sum(dim=1, keepdim=True) / (truth > 0).sum(dim=1, keepdim=True).clamp(min=1)  # n / C
    # what is 0 here has no hits, or is of no site
    others = (union - 1).clamp(min=1)
    union = union.clamp(min=1)
    return IouGains(share / union, -share * hits / union / (union + 1), -share * hits / others / union)
