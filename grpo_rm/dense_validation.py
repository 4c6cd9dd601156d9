"""What is measured on the validation images while a dense model trains: at every pixel that is not void."""

from collections.abc import Callable
from typing import cast

import torch

from grpo_rm.datasets import EvaluationBatches
from grpo_rm.dense_inference import pixel_logits
from grpo_rm.dense_model import DenseModel
from grpo_rm.devices import Processes
from grpo_rm.evaluation.pixels import PixelSums, join_sums, pixel_sums, total_sums
from grpo_rm.evaluation.segmentation import pixel_metrics
from grpo_rm.history import Metrics
from grpo_rm.model import VisionModel
from grpo_rm.recipe import Recipe
from grpo_rm.validation import Validator, collapse_warning

CERTAIN = 0.95  # mean confidence from which on a policy is certain
MEASURED = {"val_miou": "miou", "val_pixel_accuracy": "pixel_accuracy", "val_nll": "nll"}


class DenseValidator(Validator):
    """Measures a dense model while it trains, on whole images. Arguments and errors are those of `Validator`.

    Args:
        window: See `pixel_logits`.
    """

    names = tuple(MEASURED)

    def __init__(
        self,
        val: EvaluationBatches,
        gallery: EvaluationBatches | None,
        recipe: Recipe,
        processes: Processes,
        *,
        device: torch.device,
        pause: Callable[[], None],
        window: int | None,
    ) -> None:
        super().__init__(val, gallery, recipe, processes, device=device, pause=pause)
        self.window = window

    def measure(self, model: VisionModel, *, epoch: int) -> tuple[Metrics, str | None]:  # noqa: ARG002
        """Return the metrics after an epoch, and a warning where the policy has collapsed."""
        sums = self._sums(cast(DenseModel, model))
        metrics = pixel_metrics(sums)
        measured = {name: metrics[metric].value for name, metric in MEASURED.items()}
        return self.processes.from_first(measured), _warning(sums, model.config.classes)

    def _sums(self, model: DenseModel) -> PixelSums:
        is_training = model.training
        model.eval()
        mine = []
        for images, masks in self._pausing(self.val):
            logits = pixel_logits(model, images.to(self.device), window=self.window)
            mine.append(total_sums(pixel_sums(logits, masks.to(self.device))))
        model.train(is_training)
        return join_sums([part for parts in self.processes.gather(mine) for part in parts])


def _warning(sums: PixelSums, classes: list[str]) -> str | None:
    counts = sums.confusion.sum(axis=0)
    most = int(counts.sum(axis=0).argmax())
    predicted, labeled = counts.sum(axis=0)[most] / counts.sum(), counts.sum(axis=1)[most] / counts.sum()
    is_certain = sums.confidence.sum() / sums.count.sum() > CERTAIN
    return collapse_warning(classes[most], predicted, labeled, is_certain=is_certain, of="pixels")
