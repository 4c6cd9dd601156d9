"""The block `objective` of params.yaml to a loss; rewards come from the library, or from files of the user."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from grpo_rm import config
from grpo_rm.config import OF_COSTS
from grpo_rm.cost_matrix import read_cost_matrix
from grpo_rm.head import class_means
from grpo_rm.inference import predict
from grpo_rm.losses import GrpoRmLoss, Objective
from grpo_rm.model import Model, VisionModel
from grpo_rm.rewards import (
    ConfusionCostReward,
    MatrixReward,
    Reward,
    accuracy_reward,
    class_similarity,
    import_reward,
    log_uniformity_reward,
    region_iou_reward,
    trusted_accuracy_reward,
    uniformity_reward,
)
from pipelines.batches import evaluation_batches

BUILT_IN: dict[str, Reward] = {
    "accuracy": accuracy_reward,
    "uniformity": uniformity_reward,
    "log_uniformity": log_uniformity_reward,
    "trusted_accuracy": trusted_accuracy_reward,
    "region_iou": region_iou_reward,
}
OF_THE_TRAINER = {"rewards", "cost_matrix", "aggregation", "refresh", "neighbor_memory"}


def create_loss(settings: config.Objective, model: VisionModel, accelerator: Accelerator) -> GrpoRmLoss:
    """Return the GRPO-RM loss of a training that starts from `model`.

    Raises:
        ValueError: A reward cannot be imported, or the cost matrix is not of the model's classes.
        FileNotFoundError: There is no such cost matrix.
    """
    classes = tuple(model.config.classes)
    rewards = {name: _reward(name, settings, model, accelerator) for name in settings.rewards}
    options = settings.model_dump(exclude=OF_THE_TRAINER)
    return GrpoRmLoss(Objective(rewards=rewards, reward_weights=settings.rewards, classes=classes, **options))


def reward_files(settings: config.Objective) -> dict[str, Path]:
    """Return the files that rewards come from beside this library, by what names them; after they are imported."""
    own = {name: Path(file) for name in settings.rewards if ":" in name and (file := _module_file(name))}
    return own | ({settings.cost_matrix: Path(settings.cost_matrix)} if settings.cost_matrix else {})


def _module_file(path: str) -> str | None:
    return sys.modules[path.partition(":")[0]].__file__


def _reward(name: str, settings: config.Objective, model: VisionModel, accelerator: Accelerator) -> Reward:
    if ":" in name:
        return import_reward(name)
    if name in OF_COSTS:
        assert settings.cost_matrix
        costs = read_cost_matrix(Path(settings.cost_matrix), model.config.classes)
        if name == "cost_matrix":
            return MatrixReward(-costs)
        try:
            return ConfusionCostReward(costs, model.config.classes)
        except ValueError as error:
            raise ValueError(f"{settings.cost_matrix}: {error}") from error
    if name == "class_similarity":
        return MatrixReward(class_similarity(_class_means(model, accelerator.device)))
    return BUILT_IN[name]


def _class_means(model: VisionModel, device: torch.device) -> torch.Tensor:
    """Return the class means of the training images before the first step: (K, D)."""
    assert isinstance(model, Model)  # refused with another task
    images = predict(model.to(device), evaluation_batches(model.config, "train").epoch(0), device=device)
    embeddings, labels = torch.from_numpy(images.embeddings), torch.from_numpy(images.labels)
    return class_means(embeddings, labels, len(model.config.classes))
