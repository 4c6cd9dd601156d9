"""What is run: first the learning rate of each arm is chosen on validation, then it is trained with other seeds.

1. `tune`: every arm with the same rates and seeds. Its rate on a task is the one with the highest mean `criterion`, the
   same for all arms, on validation. No test image chooses anything.
2. `final`: that rate with seeds that chose nothing, measured on test as well.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo_rm.config import Config, load_config, task_blocks
from pipelines.lineage import sha256
from study.arms import Arm
from study.costs import COSTS
from study.tasks import Task
from study.workspace import MANIFEST, WORK, pretrained_weights, read_rows, trial_file

Row = dict[str, Any]
Stage = Literal["tune", "final"]

TUNING_SEEDS = (100,)
FINAL_SEEDS = (0, 1, 2, 3, 4)
EMBEDDING_CRITERIA = ("knn_top1_k20_t0.07", "linear_probe_top1")
COST_METRICS = ("expected_cost", "expected_cost_bayes_calibrated")  # of the likeliest class, of that of least cost


@dataclass(frozen=True)
class Trial:
    """One training and its measurement.

    Attributes:
        task: Of the workspace.
        arm: What it minimizes.
        stage: Whether it is to choose a rate, or a result.
        config: All its parameters; those of the objective count for other arms than the control alone.
        key: Follows from all that the result depends on, but for the code and the versions of libraries.
    """

    task: Task
    arm: Arm
    stage: Stage
    config: Config
    key: str

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.config.finetune.learning_rate


def head_criterion(task: Task) -> str:
    """Return the metric of the head."""
    return "miou" if task.params.get("task") == "segmentation" else "accuracy"


def tuning_trials(task: Task, arm: Arm) -> list[Trial]:
    """Return the trials that choose the arm's rate; the workspace is there."""
    return [make_trial(task, arm, "tune", rate, seed) for rate in task.rates for seed in TUNING_SEEDS]


def final_trials(task: Task, arm: Arm, rate: float) -> list[Trial]:
    """Return the trials that are reported."""
    return [make_trial(task, arm, "final", rate, seed) for seed in FINAL_SEEDS]


def finished_trials(task: Task, arm: Arm) -> list[Row]:
    """Return the rows of all trials that are planned now and have been run."""
    tuned = find_rows(tuning_trials(task, arm))
    rate = choose_rate(tuned, task)
    return tuned + (find_rows(final_trials(task, arm, rate)) if rate is not None else [])


def find_rows(trials: Iterable[Trial]) -> list[Row]:
    """Return the rows of those that have been run; the arm may have had another name then."""
    return [
        row | {"arm": trial.arm.name}
        for trial in trials
        if trial_file(trial.task.name, trial.key).is_file()
        for row in read_rows(trial.task.name, trial.key)
    ]


def choose_rate(rows: Sequence[Mapping[str, Any]], task: Task) -> float | None:
    """Return the rate of the highest mean criterion, the lower of equal ones; None where trials are missing.

    A rate with a training that diverged is out; None too where that is true of all.
    """
    if len({row["key"] for row in rows}) < len(task.rates) * len(TUNING_SEEDS):
        return None
    of_rate: dict[float, list[float]] = {rate: [] for rate in task.rates}
    for row in rows:
        of_rate[row["learning_rate"]].append(criterion(row, task))
    means = {rate: statistics.mean(values) for rate, values in of_rate.items()}
    best = max(means, key=lambda rate: means[rate])
    return best if means[best] > -math.inf else None


def criterion(row: Mapping[str, Any], task: Task) -> float:
    """Return what a rate is chosen by: of a training that diverged minus infinity."""
    if "error" in row:
        return -math.inf
    if task.has_costs:  # an arm may be the better by either decision
        return -min(float(row[f"val/{name}"]) for name in COST_METRICS)
    return statistics.mean(float(row[f"val/{name}"]) for name in (head_criterion(task), *EMBEDDING_CRITERIA))


def make_trial(task: Task, arm: Arm, stage: Stage, rate: float, seed: int) -> Trial:
    """Return a trial in its workspace."""
    folder = WORK / task.name
    config = configured(load_config(folder / "params.yaml"), arm, rate, seed)
    content = {"stage": stage, **dependencies(config, arm, folder, pretrained_weights(task))}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Trial(task, arm, stage, config, digest[:16])


def configured(config: Config, arm: Arm, rate: float, seed: int) -> Config:
    """Return the parameters of a trial.

    Raises:
        ValueError: The arm asks for what there is not.
    """
    content = config.model_dump(by_alias=True)
    content["seed"] = seed
    content["finetune"] |= {**arm.finetune, "learning_rate": rate}
    content["objective"] |= arm.objective or {}
    return Config.model_validate(content)


def dependencies(config: Config, arm: Arm, folder: Path, weights: Path | None) -> dict[str, Any]:
    """Return what the result of a trial depends on, but for code and versions."""
    blocks = {"seed", "task", "encoder", "finetune"} | task_blocks(config)
    known = config.model_dump(include=blocks, exclude={"finetune": {"seeds"}}) | {
        "objective": None if arm.objective is None else config.objective.model_dump(),
        "measured_by": config.evaluate.model_dump(include={"knn_k", "knn_temperature"}),
        "data": sha256(folder / MANIFEST),
        "initial_model": sha256(weights) if weights else None,
    }
    return known | ({"costs": sha256(folder / COSTS)} if config.objective.cost_matrix else {})
