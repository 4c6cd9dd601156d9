"""What is measured on the validation images while a model trains."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from grpo_rm.datasets import Batch, EvaluationBatches
from grpo_rm.devices import Processes
from grpo_rm.evaluation.knn import knn_predictions
from grpo_rm.head import PrototypeHead
from grpo_rm.history import Metrics
from grpo_rm.inference import Predictions, predict
from grpo_rm.model import VisionModel
from grpo_rm.policy import entropy, log_policy
from grpo_rm.recipe import Recipe

KNN_NEIGHBORS, KNN_TEMPERATURE = 20, 0.07
COLLAPSED = 0.99  # the share of one predicted class from which on a policy has collapsed


class Validator:
    """Measures a model while it trains.

    Args:
        val: Validation batches.
        gallery: The training images as they are evaluated.
        recipe: When to measure nearest neighbors.
        processes: Each measures its part of the images.
        device: Where.
        pause: Called after every batch.

    Raises:
        ValueError: `recipe.monitor` is not measured.
    """

    names: tuple[str, ...] = ("val_accuracy", "val_nll")  # of the metrics, but for k-NN

    def __init__(
        self,
        val: EvaluationBatches,
        gallery: EvaluationBatches | None,
        recipe: Recipe,
        processes: Processes,
        *,
        device: torch.device,
        pause: Callable[[], None],
    ) -> None:
        self.val, self.recipe, self.processes, self.device, self.pause = val, recipe, processes, device, pause
        self._gallery = gallery
        measured = [*self.names] + ([knn_name(self.gallery.length)] if recipe.knn_every else [])
        if recipe.monitor not in measured:
            unmeasured = f"; with knn_every also {knn_name(gallery.length)}" if gallery and not recipe.knn_every else ""
            raise ValueError(
                f"monitor is {recipe.monitor!r}, expected a metric of this training: {', '.join(measured)}{unmeasured}"
            )

    @property
    def gallery(self) -> EvaluationBatches:
        """The training images as they are evaluated."""
        if self._gallery is None:
            raise ValueError("nearest neighbors and class prototypes need the training images: give `gallery`")
        return self._gallery

    def measure(self, model: VisionModel, *, epoch: int) -> tuple[Metrics, str | None]:
        """Return the metrics after an epoch, and a warning where the policy has collapsed."""
        predictions = self._predict(model, self.val)
        metrics = validation_metrics(predictions)
        if self.recipe.knn_every and (epoch % self.recipe.knn_every == 0 or epoch == self.recipe.epochs):
            metrics |= knn_metrics(*self._embed_gallery(model), predictions, device=self.device)
        warning = _warning(predictions, model.config.classes)
        return self.processes.from_first(metrics), warning  # other processors may round otherwise

    def set_prototypes(self, model: VisionModel) -> None:
        """Move class prototypes, where the model has them, to where the classes are now."""
        if isinstance(model.head, PrototypeHead):
            model.head.set_prototypes(*self._embed_gallery(model))

    def close(self) -> None:
        """End the processes that decode."""
        self.val.close()
        if self._gallery:
            self._gallery.close()

    def _predict(self, model: VisionModel, batches: EvaluationBatches) -> Predictions:
        mine = predict(model, self._pausing(batches), device=self.device)
        return Predictions(*self._together(mine.embeddings, mine.logits, mine.labels))

    def _embed_gallery(self, model: VisionModel) -> tuple[Tensor, Tensor]:
        """Return embeddings (N, D) and labels (N,) of the gallery, on the CPU."""
        mine = predict(model, self._pausing(self.gallery), device=self.device)
        embeddings, labels = self._together(mine.embeddings, mine.labels)
        return torch.from_numpy(embeddings), torch.from_numpy(labels)

    def _together(self, *arrays: NDArray[Any]) -> list[NDArray[Any]]:
        """Return each array with the parts of all processes, in the order of the split."""
        return [np.concatenate(parts) for parts in zip(*self.processes.gather(arrays), strict=True)]

    def _pausing(self, batches: EvaluationBatches) -> Iterator[Batch]:
        mine = batches.epoch(0)
        for _ in range(len(batches)):  # all processes pause equally often, even if one has a batch less
            batch = next(mine, None)
            if batch is not None:
                yield batch
            self.pause()


def validation_metrics(predictions: Predictions) -> Metrics:
    """Return `val_accuracy` and `val_nll`; of an image with several labels any is right, and the NLL is their mean."""
    log_probs, labels = log_policy(torch.from_numpy(predictions.logits)), torch.from_numpy(predictions.labels)
    members = labels if labels.ndim == 2 else F.one_hot(labels, log_probs.shape[1])
    shares = members / members.sum(dim=1, keepdim=True)
    is_right = members.gather(1, log_probs.argmax(dim=1, keepdim=True)) > 0
    nll = -torch.where(members > 0, shares * log_probs, 0).sum(dim=1)
    return {"val_accuracy": is_right.double().mean().item(), "val_nll": nll.mean().item()}


def knn_name(num_images: int) -> str:
    """Return the name of the metric with this many training images."""
    return f"val_knn_top1_k{_neighbors(num_images)}_t{KNN_TEMPERATURE}"


def _neighbors(num_images: int) -> int:
    return min(KNN_NEIGHBORS, num_images)


def knn_metrics(embeddings: Tensor, labels: Tensor, predictions: Predictions, *, device: torch.device) -> Metrics:
    """Return the accuracy of `KNN_NEIGHBORS` nearest neighbors; k and T are in its name.

    Args:
        embeddings: (N, D) of the training images.
        labels: (N,).
        predictions: Of the validation images.
        device: Where to compute.
    """
    k = _neighbors(len(labels))
    nearest = knn_predictions(
        embeddings.to(device),
        labels.to(device),
        torch.from_numpy(predictions.embeddings).to(device),
        ks=[k],
        temperature=KNN_TEMPERATURE,
        num_classes=predictions.logits.shape[1],
    )[k]
    is_right = nearest.cpu() == torch.from_numpy(predictions.labels)
    return {knn_name(len(labels)): is_right.float().mean().item()}


def signal_warning(metrics: Metrics) -> str | None:
    """Return in words that the rewards of an epoch carried no signal, where it is so."""
    if metrics.get("frac_reward_zero_std", 0) <= COLLAPSED:
        return None
    return (
        f"the rewards carry no signal: at {metrics['frac_reward_zero_std']:.0%} of the sites every output is "
        "rewarded the same, so nothing is learned there; look at objective.rewards"
    )


def collapse_warning(name: str, predicted: float, labeled: float, *, is_certain: bool, of: str) -> str | None:
    """Return in words that a policy has collapsed, where it is so.

    Args:
        name: Of the class that is predicted most.
        predicted: The share of validation images, or pixels, for which it is.
        labeled: The share of which it is the label.
        is_certain: Whether the policy is, in the mean.
        of: "images" or "pixels".
    """
    if not (predicted >= COLLAPSED > labeled and is_certain):
        return None
    return (
        f"the policy has collapsed: it is certain of {name!r} for {predicted:.0%} of the validation {of}, "
        f"and {labeled:.0%} are; lower learning_rate, or look at objective.rewards"
    )


def _warning(predictions: Predictions, classes: list[str]) -> str | None:
    predicted = predictions.logits.argmax(axis=1)
    most = int(np.bincount(predicted).argmax())
    is_labeled = predictions.labels[:, most] if predictions.labels.ndim == 2 else predictions.labels == most
    shares = float(np.mean(predicted == most)), float(np.mean(is_labeled))
    return collapse_warning(classes[most], *shares, is_certain=_is_certain(predictions), of="images")


def _is_certain(predictions: Predictions) -> bool:
    """Whether the mean entropy is less than a tenth of the greatest there is."""
    log_probs = log_policy(torch.from_numpy(predictions.logits))
    return entropy(log_probs).mean().item() < 0.1 * math.log(log_probs.shape[1])
