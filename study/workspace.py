"""Where a task is worked on: its parameters, its prepared data, the model it starts from, and the trials that are done.

What is there is kept. To make the images, the prepared data or the pretrained model anew, delete them; to repeat a
trial, delete its file.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_rm.datasets import read_dataset
from pipelines.configure import configure
from pipelines.lineage import ROOT
from study.costs import COSTS, write_costs
from study.tasks import Task, find_workspace_task

WORK = ROOT / "study/work"
MANIFEST = Path("data/prepared/manifest.parquet")
PRETRAINED = Path("models/pretrain")


def shared_data() -> Path:
    """Return the folder of the images that are not embedded: $GRPO_RM_SHARED_DATA, else beside the repository."""
    return Path(os.environ.get("GRPO_RM_SHARED_DATA") or ROOT.parent / "shared/data").resolve()


def why_skipped(task: Task) -> str | None:
    """Return in words what a task lacks; None where it lacks nothing."""
    missing = [str(shared_data() / name) for name in task.needs if not (shared_data() / name).exists()]
    return f"{', '.join(missing)} not found; GRPO_RM_SHARED_DATA names another folder" if missing else None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock, and hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_workspace(task: Task) -> Path:
    """Return the folder of a task with params.yaml, prepared data, and the pretrained model if it has one."""
    folder = WORK / task.name
    folder.mkdir(parents=True, exist_ok=True)
    write_params(task, folder / "params.yaml")
    write_images(task, folder / "images")
    if not (folder / MANIFEST).is_file():
        from pipelines import prepare

        with contextlib.chdir(folder):
            prepare.main()
    if task.has_costs:
        write_costs(folder / COSTS, read_dataset(folder / MANIFEST.parent)["classes"])
    if task.start:
        pretrain(task.start)
    return folder


def write_params(task: Task, path: Path) -> None:
    """Write the repository's params.yaml with what differs in the task."""
    overrides, partial = path.with_name("overrides.yaml"), path.with_name("params.partial.yaml")
    overrides.write_text(yaml.safe_dump(dict(task.params)), encoding="utf-8")
    shutil.copyfile(ROOT / "params.yaml", partial)
    configure(overrides, partial)
    partial.replace(path)


def write_images(task: Task, folder: Path) -> None:
    """Write them, whole or not at all, where they are not there."""
    if task.write is None or folder.exists():
        return
    partial = folder.with_name("images.partial")
    shutil.rmtree(partial, ignore_errors=True)
    task.write(partial, shared_data())
    partial.rename(folder)


def pretrain(name: str) -> None:
    """Pretrain once, as stage pretrain does, in the workspace of that name; tasks that run in parallel wait."""
    task, folder = find_workspace_task(name), WORK / name
    with locked(folder / "pretrain.lock"):
        if task.start != name:
            open_workspace(task)
        if not (folder / PRETRAINED / "training.json").is_file():
            from pipelines import pretrain as stage

            with contextlib.chdir(folder):
                stage.main()


def pretrained_weights(task: Task) -> Path | None:
    """Return the file that a task's trainings start from; None where their seed draws the weights."""
    return WORK / task.start / PRETRAINED / "model.safetensors" if task.start else None


def is_open(task: Task) -> bool:
    """Whether the workspace has all that trials start from."""
    weights = pretrained_weights(task)
    return (WORK / task.name / MANIFEST).is_file() and (weights is None or weights.is_file())


def trial_file(task: str, key: str) -> Path:
    """Return where the rows of a trial are."""
    return WORK / task / "trials" / f"{key}.json"


def answers_file(task: str, key: str) -> Path:
    """Return where the answers of a final trial are."""
    return WORK / task / "answers" / f"{key}.npz"


def read_rows(task: str, key: str) -> list[dict[str, Any]]:
    """Return the row of a trial, and that of the shifted task if there is one."""
    rows: list[dict[str, Any]] = json.loads(trial_file(task, key).read_text(encoding="utf-8"))
    return rows


def write_rows(task: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of a finished trial, whole or not at all."""
    path = trial_file(task, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
