"""What pretraining and fine-tuning share: prepared data and a recipe in, a model, its curve and its run out."""

import json
from pathlib import Path
from typing import Any

import torch

from grpo_rm.checkpoint import WEIGHTS, save_model
from grpo_rm.config import Config, Training
from grpo_rm.datasets import read_dataset
from grpo_rm.inference import best_device
from grpo_rm.model import Model
from grpo_rm.trainer import Loss, Recipe, Trainer, best_epoch
from pipelines.batches import PREPARED, training_batches
from pipelines.lineage import data_hash, sha256
from pipelines.tables import write_csv
from pipelines.tracking.runs import start_run

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
        parameters: What the stage depends on. It is written beside the weights.
        output: Directory of the model.
        initial_model: SHA-256 of the weights it starts from, where they are a model of this project.
    """
    train, val = training_batches(model.config, training, seed=config.seed)
    with start_run(stage, config.tracking, parameters | config.model_dump(include={"data"}), context="training") as run:
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
        "split": read_dataset(PREPARED)["split"],
        "initial_model": initial_model,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    (output / "training.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


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
