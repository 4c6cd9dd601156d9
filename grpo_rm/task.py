"""What training has to know of a task: where the policy chooses, and how it is validated."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_rm.datasets import EvaluationBatches
from grpo_rm.dense_sites import site_targets, upsample
from grpo_rm.dense_validation import DenseValidator
from grpo_rm.devices import Processes
from grpo_rm.recipe import Recipe
from grpo_rm.validation import Validator

PLACES_PER_SIDE = 8  # of an image, where its embeddings are compared


@dataclass(frozen=True)
class Classification:
    """The policy chooses once per image."""

    uses_all_weights = True
    places_per_image = 1

    def site_targets(self, labels: Tensor) -> Tensor:
        """Return the labels of the sites: those of the images, (B,) or (B, K)."""
        return labels

    def site_logits(self, logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return the logits of the sites: those of the images, (B, K)."""
        return logits

    def weigh(self, weights: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Return how much each site counts by its class, of `site_weights`: the same."""
        return weights

    def place_targets(self, labels: Tensor) -> Tensor:
        """Return the labels of the places where embeddings are compared: those of the images."""
        return labels

    def place_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings there: those of the images, (B, D)."""
        return embeddings

    def create_validator(
        self,
        val: EvaluationBatches,
        gallery: EvaluationBatches | None,
        recipe: Recipe,
        processes: Processes,
        *,
        device: torch.device,
        pause: Callable[[], None],
    ) -> Validator:
        """Return what measures a model while it trains; see `Validator`."""
        return Validator(val, gallery, recipe, processes, device=device, pause=pause)


@dataclass(frozen=True)
class Segmentation:
    """The policy chooses at each pixel, or at every n-th one each way.

    Attributes:
        stride: Of the model's logits, in pixels.
        site_stride: Of the sites: a divisor of it; 1 is every pixel.
        class_weights: (K,) by which a site counts beside its share in the image; None: 1.
        window: See `pixel_logits`; of the validation.
    """

    stride: int
    site_stride: int = 1
    class_weights: Tensor | None = None
    window: int | None = None
    uses_all_weights = False  # some encoders have weights that the chosen strides do not depend on
    places_per_image = PLACES_PER_SIDE**2

    def site_targets(self, masks: Tensor) -> Tensor:
        """Bring masks (B, H, W) to the sites, (B, h, w): see `dense_sites.site_targets`."""
        return site_targets(masks, self.site_stride)

    def site_logits(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Bring logits (B, K, h, w) at the model's stride to the sites, bilinear: see `upsample`."""
        return upsample(logits, (masks.shape[-2], masks.shape[-1]), self.stride, site_stride=self.site_stride)

    def weigh(self, weights: Tensor, targets: Tensor) -> Tensor:
        """Return how much each site counts by its class, of `site_weights` (B, h, w); their sum may be another."""
        if self.class_weights is None:
            return weights
        return weights * self.class_weights.to(weights.device)[targets.clamp(min=0)]

    def place_targets(self, masks: Tensor) -> Tensor:
        """Return the labels of the places where embeddings are compared: some at the model's stride, evenly spread.

        Args:
            masks: (B, H, W).

        Returns:
            (B, p, q), neither more than `PLACES_PER_SIDE`.
        """
        targets = site_targets(masks, self.stride)
        return _spread(_spread(targets, 1), 2)

    def place_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings there, of (B, D, h, w): (B, p, q, D)."""
        return _spread(_spread(embeddings, 2), 3).movedim(1, -1)

    def create_validator(
        self,
        val: EvaluationBatches,
        gallery: EvaluationBatches | None,  # noqa: ARG002
        recipe: Recipe,
        processes: Processes,
        *,
        device: torch.device,
        pause: Callable[[], None],
    ) -> Validator:
        """Return what measures a model while it trains; see `DenseValidator`."""
        return DenseValidator(val, None, recipe, processes, device=device, pause=pause, window=self.window)


def _spread(values: Tensor, dim: int) -> Tensor:
    """Take at most `PLACES_PER_SIDE` of a dimension, as far from each other as from its ends."""
    step = math.ceil(values.shape[dim] / PLACES_PER_SIDE)
    return values.index_select(dim, torch.arange(step // 2, values.shape[dim], step, device=values.device))


Task = Classification | Segmentation
CLASSIFICATION = Classification()


def balanced_weights(pixels: Tensor, balance: float) -> Tensor | None:
    """Return the weight of each class: its share of the pixels to the power of -balance, 1 in the mean of all pixels.

    Args:
        pixels: (K,) how many each class has in the training masks.
        balance: 0 for None, no weights; 1 lets all classes count the same, as inverse frequencies do; 0.5 is between.

    Returns:
        (K,) float32; 0 for a class without pixels.
    """
    if balance == 0:
        return None
    shares = pixels.double() / pixels.sum()
    weights = torch.where(shares > 0, shares.clamp(min=1e-12) ** -balance, 0.0)
    return (weights / (shares * weights).sum()).float()
