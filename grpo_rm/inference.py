"""Embeddings and logits of a whole split."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from grpo_rm.datasets import Batch


@dataclass(frozen=True)
class Predictions:
    """What a model says about N images: embeddings (N, D), logits (N, K) float32, labels (N,) int64."""

    embeddings: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]


def best_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def predict(model: nn.Module, batches: Iterable[Batch], *, device: torch.device) -> Predictions:
    """Run a model in evaluation mode over all batches. Its mode is restored afterwards.

    Args:
        model: From images (B, H, W, C) uint8 to embeddings (B, D) and logits (B, K), as a `Model`.
        batches: Images and labels.
        device: Where the model is.
    """
    was_training = model.training
    model.eval()
    embeddings, logits, labels = [], [], []
    for images, targets in batches:
        embedding, scores = model(images.to(device, non_blocking=True))
        embeddings.append(embedding.float().cpu())  # a GPU might not hold those of all images
        logits.append(scores.float().cpu())
        labels.append(targets)
    model.train(was_training)
    return Predictions(
        embeddings=torch.cat(embeddings).numpy(),
        logits=torch.cat(logits).numpy(),
        labels=torch.cat(labels).numpy(),
    )
