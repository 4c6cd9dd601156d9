"""One trial: a training as stage finetune does it, and its measurement. The working directory is the workspace.

Slow to import, and all of it at once: what is loaded is part of what an interrupted training goes on by.
"""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from grpo_rm.checkpoint import load_model
from grpo_rm.config import Config, load_config, task_blocks
from grpo_rm.datasets import read_dataset
from grpo_rm.devices import create_accelerator
from grpo_rm.losses import cross_entropy_loss
from grpo_rm.model import Model, VisionModel
from pipelines.batches import PREPARED
from pipelines.initial_model import create_initial_model
from pipelines.lineage import git_tags, sha256
from pipelines.objective import create_loss
from pipelines.tables import read_csv
from pipelines.tracking.runs import find_run, use_tracking_store
from pipelines.training import CHECKPOINTS, hash_code, train_stage, versions
from study.measuring import measure_model, write_answers
from study.protocol import Row, Trial
from study.workspace import answers_file, pretrained_weights, write_rows

CURVE = ("step", "val_accuracy", "val_miou", "val_nll")


def run_trial(trial: Trial) -> Row:
    """Train, measure, and keep what came out. A training that was interrupted goes on where it was.

    Returns:
        The row of the task. Its `seconds` are of this process alone, where the training goes on.
    """
    started, output = time.monotonic(), Path("trial") / trial.key
    row = describe(trial)
    try:
        train(trial, output)
    except FloatingPointError as error:  # a result, too: such a rate is not chosen
        row |= {"error": str(error), "seconds": time.monotonic() - started}
        write_rows(trial.task.name, trial.key, [row])
        shutil.rmtree(CHECKPOINTS / "trial" / trial.key)
        return row
    row |= {"seconds_training": time.monotonic() - started, **read_curve(output / "curve.csv")}
    rows = measured_rows(trial, load_model(output), row)
    row["run_id"] = record(trial, rows)
    for one in rows:
        one |= {"run_id": row["run_id"], "seconds": time.monotonic() - started}
    write_rows(trial.task.name, trial.key, rows)
    shutil.rmtree(output)
    shutil.rmtree(CHECKPOINTS / "trial" / trial.key)
    return rows[0]


def train(trial: Trial, output: Path) -> None:
    """Train as stage finetune does."""
    config = trial.config
    weights = pretrained_weights(trial.task)
    model, accelerator = initial_model(config, weights), create_accelerator(config.finetune.precision)
    objective = config.objective if trial.arm.objective is not None else None
    blocks = {"seed", "encoder", "finetune"} | task_blocks(config) | ({"objective"} if objective else set())
    named = {"arm": trial.arm.name, "study": {"task": trial.task.name, "stage": trial.stage, "key": trial.key}}
    train_stage(
        stage_name(trial),
        model,
        create_loss(objective, model, accelerator) if objective else cross_entropy_loss,
        config.finetune,
        config,
        accelerator=accelerator,
        parameters=named | config.model_dump(include=blocks, exclude={"finetune": {"seeds"}}),
        output=output,
        curve=output / "curve.csv",
        objective=objective,
        initial_model=sha256(weights) if weights else None,
    )


def stage_name(trial: Trial) -> str:
    """Return what the training is called in MLflow, and below checkpoints/."""
    return f"trial@{trial.key}"


def initial_model(config: Config, weights: Path | None) -> VisionModel:
    """Return what a training starts from; what is not pretrained follows from its seed.

    A pretrained model of other classes gives its encoder, with the normalization that it knows.
    """
    dataset = read_dataset(PREPARED)
    if weights is None:
        return create_initial_model(config, dataset)
    pretrained = load_model(weights.parent)
    if pretrained.config.classes == dataset["classes"]:
        return pretrained
    assert isinstance(pretrained, Model)
    torch.manual_seed(config.seed)
    return Model(replace(pretrained.config, classes=dataset["classes"]), encoder=pretrained.encoder)


def measured_rows(trial: Trial, model: VisionModel, row: Row) -> list[Row]:
    """Return the row of the trial, and one of the same model on shifted test images; answers are written."""
    tasks = {"val": trial.task.name}  # by the set that is measured
    if trial.stage == "final":
        tasks |= {"test": trial.task.name} | ({"shifted": trial.task.shifted} if trial.task.shifted else {})
    measured = measure_model(model, load_config(), tuple(tasks))
    shared = row | _prefixed("val", measured.pop("val")[0])
    rows = []
    for name, (metrics, answers) in measured.items():
        write_answers(answers_file(tasks[name], trial.key), answers)
        rows.append(shared | {"task": tasks[name]} | _prefixed("test", metrics))
    return rows or [shared]


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> Row:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def describe(trial: Trial) -> Row:
    """Return what is known of a trial before it begins."""
    config, code = trial.config, json.dumps(hash_code(), sort_keys=True)
    return {
        "key": trial.key,
        "task": trial.task.name,
        "arm": trial.arm.name,
        "objective": None if trial.arm.objective is None else json.dumps(config.objective.model_dump()),
        "learning_rate": trial.rate,
        "seed": config.seed,
        "stage": trial.stage,
        "epochs": config.finetune.epochs,
        "num_iterations": config.finetune.num_iterations,
        "commit": git_tags().get("git.commit"),
        "is_dirty": git_tags().get("git.dirty") == "true",
        "code": hashlib.sha256(code.encode()).hexdigest(),
        "hardware": f"CPU, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)",
        "versions": json.dumps(versions()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_curve(path: Path) -> Row:
    """Return the learning curve on validation as columns of the row, a value per epoch, and the number of steps."""
    epochs = read_csv(path)
    curve = {f"curve/{name}": [epoch[name] for epoch in epochs] for name in CURVE if name in epochs[0]}
    return {"steps": int(epochs[-1]["step"]), **curve}


def record(trial: Trial, rows: list[Row]) -> str | None:
    """Add what was measured to the MLflow run of the training, and return its id."""
    from mlflow.entities import Metric

    run_id = find_run("dvc.stage", stage_name(trial), trial.config.tracking.experiment)
    if run_id is None:
        return None
    metrics: Mapping[str, Any] = {
        (name if row["task"] == trial.task.name else f"{row['task']}/{name}"): value
        for row in rows
        for name, value in row.items()
        if name.startswith(("val/", "test/"))
    }
    now = int(1000 * time.time())
    use_tracking_store().log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])
    return run_id
