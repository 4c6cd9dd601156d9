"""The task of params.yaml as a training has to know it."""

import numpy as np
import pyarrow.parquet as pq
import torch

from grpo_rm.config import Config
from grpo_rm.dense_model import DenseModel
from grpo_rm.model import VisionModel
from grpo_rm.task import CLASSIFICATION, Segmentation, Task, balanced_weights
from pipelines.batches import PREPARED
from pipelines.held_out import too_long


def create_task(config: Config, model: VisionModel) -> Task:
    """Return the task of a model.

    Raises:
        ValueError: The model is of another task than params.yaml.
    """
    if model.config.task != config.task:
        raise ValueError(f"the model is of task {model.config.task}, expected {config.task}: run `dvc repro pretrain`")
    if not isinstance(model, DenseModel):
        return CLASSIFICATION
    dense = config.segmentation
    check_sizes(model, dense.window)
    weights = balanced_weights(training_pixels(), dense.class_balance)
    return Segmentation(model.stride, site_stride=dense.site_stride, class_weights=weights, window=dense.window)


def check_sizes(model: DenseModel, window: int | None) -> None:
    """Refuse an encoder of one size where validation or test would give it larger images, before anything is trained.

    Raises:
        ValueError: It does not take them.
    """
    side = model.levels.fixed_size
    largest = None if side is None else too_long(side, window, prepared=PREPARED)
    if largest:
        raise ValueError(
            f"encoder {model.config.encoder!r} takes images of {side} x {side} pixels alone, and val or test has "
            f"{largest} a side: set segmentation.window to {side}, or encoder.image_size to {largest}"
        )


def training_pixels() -> torch.Tensor:
    """Return how many pixels each class has in the training masks: (K,)."""
    manifest = pq.read_table(PREPARED / "manifest.parquet", columns=["mask_counts"], filters=[("split", "=", "train")])
    return torch.from_numpy(np.sum(manifest["mask_counts"].to_pylist(), axis=0))
