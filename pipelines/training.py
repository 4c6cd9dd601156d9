"""What pretraining and fine-tuning share: prepared data and a recipe in, a model, its curve and its run out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from grpo_rm.checkpoint import WEIGHTS, save_model
from grpo_rm.config import Config, Training
from grpo_rm.datasets import Batches, read_split
from grpo_rm.model import Model, ModelConfig
from grpo_rm.trainer import Loss, Recipe, Trainer, best_epoch
from grpo_rm.transforms import Pixels, evaluation_view, training_view
from pipelines.lineage import data_hash, sha256
from pipelines.tables import write_csv
from pipelines.tracking.runs import start_run

PREPARED = Path("data/prepared")
CURVES = Path("reports/training")


def train_stage(
    stage: str,
    model: Model,
    loss: Loss,
    training: Training,
    config: Config,
    *,
    parameters: dict[str, Any],
    output: Path,
    initial_model: str | None = None,
) -> None:
    """Train, write the best model and its learning curve, and record the run.

    Args:
        stage: The DVC stage.
        model: Where to start from.
        loss: What to minimize.
        training: The block of this stage.
        config: Seed and tracking.
        parameters: What MLflow shows as parameters.
        output: Directory of the model.
        initial_model: SHA-256 of the weights it starts from, where they are a model of this project.
    """
    train, val = training_batches(model.config, training, seed=config.seed)
    with start_run(stage, config.tracking, parameters) as run:
        trainer = Trainer(
            model,
            loss,
            train,
            val,
            recipe(training),
            seed=config.seed,
            device=best_device(),
            checkpoints=Path("checkpoints") / stage.replace("@", "/"),
            title=stage,
            on_step=run.log_metrics,
            on_epoch=run.log_metrics,
        )
        save_model(trainer.fit(), output)
        write_provenance(stage, parameters, output, initial_model)
        curve = CURVES / f"{output.name}.csv"
        write_csv(curve, trainer.history)
        best = best_epoch(trainer.history)
        run.set_tags({"model.sha256": sha256(output / WEIGHTS), "best_epoch": str(best["epoch"])})
        run.log_artifacts(output, folder="model")
        run.log_artifacts(curve)
    print(f"{stage}: best epoch {best['epoch']}, validation accuracy {best['val_accuracy']:.4f} -> {output}")


def write_provenance(stage: str, parameters: dict[str, Any], output: Path, initial_model: str | None) -> None:
    """Write training.json beside the weights: what they were made from. The exported file carries it."""
    import timm

    provenance = {
        "stage": stage,
        "parameters": parameters,
        "data": data_hash(),
        "initial_model": initial_model,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    (output / "training.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def training_batches(model: ModelConfig, training: Training, *, seed: int) -> tuple[Batches, Batches]:
    """Return the augmented, shuffled training batches and the validation batches."""
    size, interpolation = model.image_size, model.interpolation
    augmentation = training.augmentation

    def augmented(image: Image.Image, rng: np.random.Generator) -> Pixels:
        return training_view(
            image,
            size=size,
            min_crop=augmentation.min_crop,
            flip=augmentation.flip,
            interpolation=interpolation,
            rng=rng,
        )

    train = Batches(
        read_split(PREPARED, "train"),
        augmented,
        channels=model.channels,
        batch_size=training.batch_size,
        seed=seed,
        is_training=True,
        workers=training.workers,
    )
    return train, evaluation_batches(model, "val", workers=training.workers)


def evaluation_batches(model: ModelConfig, split: str, *, workers: int = 0) -> Batches:
    """Return the batches of a split in order, without augmentation."""

    def plain(image: Image.Image, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
        return evaluation_view(image, size=model.image_size, crop_pct=model.crop_pct, interpolation=model.interpolation)

    return Batches(read_split(PREPARED, split), plain, channels=model.channels, batch_size=256, workers=workers)


def recipe(training: Training) -> Recipe:
    """Return the trainer's part of a block of params.yaml."""
    return Recipe(
        epochs=training.epochs,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_epochs=training.warmup_epochs,
        clip_grad_norm=training.clip_grad_norm,
        freeze_encoder=training.freeze_encoder,
    )


def best_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
