"""What pretraining and fine-tuning share: prepared data and a recipe in, a model, its curve and its run out."""

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from grpo_rm.checkpoint import WEIGHTS, has_state, remove_state, save_model, write_file
from grpo_rm.config import REWARD_FILES, Config, Objective, Training
from grpo_rm.datasets import read_dataset
from grpo_rm.losses import Loss
from grpo_rm.model import VisionModel
from grpo_rm.recipe import Recipe
from grpo_rm.trainer import Trainer
from pipelines.batches import PREPARED, training_batches
from pipelines.lineage import ROOT, data_hash, sha256
from pipelines.stage import deferred_interrupt
from pipelines.tables import write_csv
from pipelines.tracking.runs import Run, flatten, start_run
from pipelines.training_task import create_task

CHECKPOINTS = Path("checkpoints")
REWARD_PACKAGE = ".".join(REWARD_FILES.parts) + "."
TRAINING_MODULES = {
    f"pipelines.{name}" for name in ("batches", "held_out", "initial_model", "objective", "training", "training_task")
}
RUN = "run.json"  # beside the state: the MLflow run that goes on with it


def train_stage(
    stage: str,
    model: VisionModel,
    loss: Loss,
    training: Training,
    config: Config,
    *,
    accelerator: Accelerator,
    parameters: dict[str, Any],
    output: Path,
    curve: Path,
    objective: Objective | None = None,
    initial_model: str | None = None,
    reward_files: Mapping[str, Path] = {},
) -> None:
    """Train, write the best model and its learning curve, and record the run.

    A training that was interrupted or killed goes on where it was, in the run it had. Of several processes, the first
    writes, records and prints.

    Args:
        stage: The DVC stage.
        model: Where to start from.
        loss: What to minimize.
        training: The block of this stage.
        config: Seed, loader and tracking.
        accelerator: Of `grpo_rm.devices`.
        parameters: What the stage depends on. It is written beside the weights.
        output: Directory of the model.
        curve: CSV file of the learning curve.
        objective: Of the loss, where it is GRPO-RM's.
        initial_model: SHA-256 of the weights it starts from, where they are a model of this project.
        reward_files: What the loss is made of beside this repository.
    """
    # of torch to several processes: the strides of a 1x1 convolution can be written in more than one way
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    part = {"rank": accelerator.process_index, "processes": accelerator.num_processes}
    batches = training_batches(model.config, training, config.loader, seed=config.seed, **part)
    origin = provenance(stage, parameters, initial_model, reward_files)
    fingerprint = flatten(origin) | {"manifest": sha256(PREPARED / "manifest.parquet")} | hash_code() | versions()
    checkpoints = CHECKPOINTS / stage.replace("@", "/")
    recorded = parameters | config.model_dump(include={"data"})
    run_of_training = _run_of_training if accelerator.is_main_process else _no_run
    if batches.train.batch_size < training.batch_size and accelerator.is_main_process:
        print(f"{stage}  a batch has {batches.train.batch_size} images, not {training.batch_size}: there are no more")
    with (
        run_of_training(stage, config, recorded, checkpoints, fingerprint) as run,
        _all_ready(accelerator),
        deferred_interrupt() as should_stop,
    ):
        trainer = Trainer(
            model,
            loss,
            batches.train,
            batches.val,
            recipe(training),
            seed=config.seed,
            accelerator=accelerator,
            checkpoints=checkpoints,
            title=stage,
            fingerprint=fingerprint,
            task=create_task(config, model),
            gallery=batches.gallery,
            on_step=run.log_metrics if run else None,
            on_epoch=run.log_metrics if run else None,
            should_stop=should_stop,
            **_objective_options(objective, batches_per_epoch=len(batches.train)),
        )
        if run and trainer.step:
            run.set_tags({"resumed_at_step": str(trainer.step)})
        best = trainer.fit()
        if run:
            _write(best, trainer, origin, run, output=output, curve=curve)


def _objective_options(objective: Objective | None, *, batches_per_epoch: int) -> dict[str, Any]:
    """Return what the trainer has to know of an objective, beside its loss."""
    if objective is None:
        return {}
    return {
        "aggregation": objective.aggregation,
        "old_policy_steps": batches_per_epoch if objective.refresh == "epoch" else objective.refresh,
        "use_reference": objective.beta > 0,
        "memory_size": objective.neighbor_memory if objective.neighbor_weight > 0 else 0,
    }


def _write(
    model: VisionModel, trainer: Trainer, origin: dict[str, Any], run: Run, *, output: Path, curve: Path
) -> None:
    save_model(model, output)
    write_json(output / "training.json", origin)
    write_csv(curve, trainer.history)
    run.set_tags({"model.sha256": sha256(output / WEIGHTS), "best_epoch": str(trainer.best["epoch"])})
    run.log_artifacts(output, folder="model")
    run.log_artifacts(curve)
    best, monitor = trainer.best, trainer.recipe.monitor
    print(f"{origin['stage']}: best epoch {best['epoch']}, {monitor} {best[monitor]:.4f} -> {output}")


@contextlib.contextmanager
def _all_ready(accelerator: Accelerator) -> Iterator[None]:
    """Wait for each other: a process that was ended before the training would be waited for in it."""
    accelerator.wait_for_everyone()
    yield


@contextlib.contextmanager
def _no_run(*_: object) -> Iterator[None]:
    """Take the place of the run in processes that record nothing."""
    yield None


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


def provenance(
    stage: str, parameters: dict[str, Any], initial_model: str | None, reward_files: Mapping[str, Path]
) -> dict[str, Any]:
    """Return what a model is made from: training.json beside the weights. The exported file carries it."""
    import timm

    return {
        "stage": stage,
        "parameters": parameters,
        "data": data_hash(),
        "split": read_dataset(PREPARED)["split"],
        "initial_model": initial_model,
        "reward_files": {name: sha256(path) for name, path in reward_files.items()},
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def hash_code() -> dict[str, str]:
    """Return the SHA-256 of every file that trains: the library, of which some is loaded at the first step only, our
    own modules, and the user's rewards.
    """
    ours = {*TRAINING_MODULES, "__main__"}
    names = [name for name in sys.modules if name in ours or name.startswith(("grpo_rm.", REWARD_PACKAGE))]
    loaded = {Path(file).resolve() for name in names if (file := getattr(sys.modules[name], "__file__", None))}
    files = sorted(loaded | set((ROOT / "grpo_rm").glob("*.py")))
    return {file.relative_to(ROOT).as_posix(): sha256(file) for file in files}


def versions() -> dict[str, str]:
    """Return the versions of the packages whose arithmetic the result depends on."""
    return {name: version(name) for name in ("accelerate", "numpy", "pillow", "timm", "torch")}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, in the order given."""
    text = json.dumps(content, indent=2) + "\n"
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def recipe(training: Training) -> Recipe:
    """Return the trainer's part of a block of params.yaml: all but what is of the batches and other trainings."""
    return Recipe(**training.model_dump(exclude={"batch_size", "augmentation", "seeds"}))
