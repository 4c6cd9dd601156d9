"""What pretraining and fine-tuning share: prepared data and a recipe in, a model, its curve and its run out."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from grpo_rm.checkpoint import WEIGHTS, has_state, remove_state, save_model, write_file
from grpo_rm.config import Config, Training
from grpo_rm.datasets import read_dataset
from grpo_rm.inference import best_device
from grpo_rm.model import Model
from grpo_rm.recipe import Recipe
from grpo_rm.trainer import Loss, Trainer, best_epoch
from pipelines.batches import PREPARED, training_batches
from pipelines.lineage import ROOT, data_hash, sha256
from pipelines.stage import deferred_interrupt
from pipelines.tables import write_csv
from pipelines.tracking.runs import Run, flatten, start_run

CURVES, CHECKPOINTS = Path("reports/training"), Path("checkpoints")
RUN = "run.json"  # beside the state: the MLflow run that goes on with it


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

    A training that was interrupted or killed goes on where it was, in the run it had.

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
    origin = provenance(stage, parameters, initial_model)
    fingerprint = flatten(origin) | {"manifest": sha256(PREPARED / "manifest.parquet")} | hash_code()
    checkpoints = CHECKPOINTS / stage.replace("@", "/")
    recorded = parameters | config.model_dump(include={"data"})
    with (
        _run_of_training(stage, config, recorded, checkpoints, fingerprint) as run,
        deferred_interrupt() as should_stop,
    ):
        trainer = Trainer(
            model,
            loss,
            train,
            val,
            recipe(training),
            seed=config.seed,
            device=best_device(),
            checkpoints=checkpoints,
            title=stage,
            fingerprint=fingerprint,
            on_step=run.log_metrics,
            on_epoch=run.log_metrics,
            should_stop=should_stop,
        )
        if trainer.step:
            run.set_tags({"resumed_at_step": str(trainer.step)})
        save_model(trainer.fit(), output)
        write_json(output / "training.json", origin)
        curve = CURVES / f"{output.name}.csv"
        write_csv(curve, trainer.history)
        best = best_epoch(trainer.history)
        run.set_tags({"model.sha256": sha256(output / WEIGHTS), "best_epoch": str(best["epoch"])})
        run.log_artifacts(output, folder="model")
        run.log_artifacts(curve)
    print(f"{stage}: best epoch {best['epoch']}, validation accuracy {best['val_accuracy']:.4f} -> {output}")


@contextlib.contextmanager
def _run_of_training(
    stage: str, config: Config, parameters: Mapping[str, Any], checkpoints: Path, fingerprint: Mapping[str, Any]
) -> Iterator[Run]:
    """Open the run, or the one that this very training had when it was interrupted; both end with the training."""
    note = checkpoints / RUN
    known = _known_run(note, fingerprint)
    try:
        with start_run(stage, config.tracking, parameters, context="training", resume=known) as run:
            write_json(note, {"run_id": run.run_id, "fingerprint": fingerprint})
            yield run
        remove_state(checkpoints)
    finally:
        if not has_state(checkpoints):
            note.unlink(missing_ok=True)


def _known_run(note: Path, fingerprint: Mapping[str, Any]) -> str | None:
    known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    is_same = json.dumps(known.get("fingerprint")) == json.dumps(fingerprint)
    return str(known["run_id"]) if is_same else None


def provenance(stage: str, parameters: dict[str, Any], initial_model: str | None) -> dict[str, Any]:
    """Return what a model is made from: training.json beside the weights. The exported file carries it."""
    import timm

    return {
        "stage": stage,
        "parameters": parameters,
        "data": data_hash(),
        "split": read_dataset(PREPARED)["split"],
        "initial_model": initial_model,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def hash_code() -> dict[str, str]:
    """Return the SHA-256 of every file of this repository that trains: the library as far as it is loaded, and us."""
    names = [name for name in sys.modules if name.startswith("grpo_rm.")]
    names += ["pipelines.batches", "pipelines.training", "__main__"]
    files = sorted({Path(file) for name in names if (file := sys.modules[name].__file__)})
    return {file.relative_to(ROOT).as_posix(): sha256(file) for file in files}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, in the order given."""
    text = json.dumps(content, indent=2) + "\n"
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


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
