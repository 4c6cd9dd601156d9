"""What a batch asks of the policy. The trainer and the losses see sites only, never a task."""

from typing import NamedTuple

from torch import Tensor

from grpo_rm.model import Model
from grpo_rm.policy import log_policy


class Sites(NamedTuple):
    """The places where the policy chooses: one per image in classification.

    Attributes:
        log_probs: (N, K) over the output set.
        targets: (N,) labels.
        valid: (N,) bool, or None where every site counts.
    """

    log_probs: Tensor
    targets: Tensor
    valid: Tensor | None


def classification_sites(model: Model, images: Tensor, labels: Tensor) -> Sites:
    """One site per image: (B, H, W, C) uint8 images and (B,) labels."""
    _, logits = model(images)
    return Sites(log_policy(logits), labels, None)
