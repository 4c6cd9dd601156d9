"""Embeddings and logits of a whole split."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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


def predict(model: nn.Module, batches: Iterable[Batch], *, device: torch.device) -> Predictions:
    """Run one model; see `predict_all`."""
    return predict_all({"": model}, batches, device=device)[""]


@torch.inference_mode()
def predict_all(
    models: Mapping[str, nn.Module], batches: Iterable[Batch], *, device: torch.device
) -> dict[str, Predictions]:
    """Run models in evaluation mode over the same batches, which are read once. Their modes are restored afterwards.

    Args:
        models: By name, from images (B, H, W, C) uint8 to embeddings (B, D) and logits (B, K), as a `Model`.
        batches: Images and labels.
        device: Where the models are.
    """
    modes = {name: model.training for name, model in models.items()}
    labels: list[Tensor] = []
    said: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
    for images, targets in batches:
        on_device = images.to(device, non_blocking=True)
        labels.append(targets)
        for name, model in models.items():
            embedding, scores = model(on_device)
            said[name].append((embedding.float().cpu(), scores.float().cpu()))  # a GPU might not hold those of all
    for name, model in models.items():
        model.train(modes[name])
    return {name: _join(said.pop(name), labels) for name in list(said)}  # each is held twice for a moment only


def _join(parts: Sequence[tuple[Tensor, Tensor]], labels: Sequence[Tensor]) -> Predictions:
    embeddings, logits = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    return Predictions(embeddings, logits, torch.cat(list(labels)).numpy())
