"""Stage evaluate: the models on the test images, and the paired comparison of the two arms. Stage report shows it."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from grpo_rm.config import Config, load_config
from pipelines.lineage import sha256
from pipelines.models import (
    CANDIDATE,
    CONTROL,
    DIRECTORIES,
    REFERENCE,
    all_directories,
    corrupted_of,
    seed_name,
)
from pipelines.stage import run_stage
from pipelines.tables import write_csv
from pipelines.tasks.task import task_of
from pipelines.tracking.runs import check_tracking, start_run

if TYPE_CHECKING:
    from grpo_rm.evaluation.robustness import Answers
    from pipelines.extra_results import ExtraSet
    from pipelines.measurements import Measured

REPORTS = Path("reports")
RESULT = REPORTS / "evaluation.json"


def main() -> None:
    """Evaluate, compare, and write reports/."""
    config = load_config()
    check_tracking()
    parameters = config.model_dump(include={"seed", "data", "evaluate"})
    (REPORTS / "plots/robustness").mkdir(parents=True, exist_ok=True)  # for DVC, where no image is corrupted
    with start_run("evaluate", config.tracking, parameters, context="evaluation") as run:
        evaluation = evaluate(config)
        RESULT.write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")
        write_metrics(evaluation["models"])
        run.log_metrics(0, flat_metrics(evaluation))
        run.set_tags({"evaluation.sha256": sha256(RESULT)})
        run.log_artifacts(RESULT)
        run.log_artifacts(REPORTS / "plots", folder="plots")


def evaluate(config: Config) -> dict[str, Any]:
    """Write predictions and plots; return the content of evaluation.json."""
    from pipelines.extra_results import read_extra_sets

    extra_sets = read_extra_sets(config.evaluate.extra_sets)
    directories = all_directories(config)
    task_of(config.task).predict(directories, config)
    validation: dict[str, dict[str, float]] = {}
    measured: dict[str, Measured] = {}
    for name in directories:
        print(f"evaluate: {name}", flush=True)
        measured[name], validation[name] = measure_model(name, extra_sets, config)
    answers = answer_corrupted(directories, config)
    measured |= {name: measured[name] | measured_corrupted(name, answers) for name in answers}
    evaluation = {
        "models": {name: measured[name].metrics for name in DIRECTORIES},
        "validation": {name: validation[name] for name in DIRECTORIES},
        "comparison": compare_arms(measured, config),
        "over_pretrained": compare_with_pretrained(measured, config),
        "extra_sets": {
            extra.name: {"images": extra.num_images, "left_out": int(extra.is_left_out.sum())} for extra in extra_sets
        },
    }
    seeds = {name: measured[name].metrics for name in directories if name not in DIRECTORIES}
    return evaluation | ({"seeds": seeds, "seed_spread": spread_of_seeds(measured, config)} if seeds else {})


def measure_model(name: str, extra_sets: "list[ExtraSet]", config: Config) -> "tuple[Measured, dict[str, float]]":
    """Measure what a model said, on test, and its head on validation; write plots."""
    task = task_of(config.task)
    _, answers = task.read(name)
    measured = task.measure(answers, extra_sets, config, has_encoder=True)
    if name in DIRECTORIES:
        task.write_plots(name, answers, measured)
    return measured, task.measure_validation(answers)


def answer_corrupted(directories: Mapping[str, Path], config: Config) -> "dict[str, Answers]":
    """Return which corrupted test images each model classifies rightly, and write it; nothing where `images` is 0."""
    from grpo_rm.checkpoint import load_model
    from grpo_rm.datasets import read_ids
    from grpo_rm.evaluation.robustness import choose_images, corrupted_answers
    from grpo_rm.inference import best_device
    from grpo_rm.model import ModelConfig
    from pipelines.batches import PREPARED, chosen_batches
    from pipelines.predictions import origin_of, write_corrupted

    limit = config.evaluate.robustness.images
    if not limit:
        return {}
    print("evaluate: corrupted images", flush=True)
    device = best_device()
    models = {name: load_model(directory).to(device) for name, directory in directories.items()}
    ids = read_ids(PREPARED, "test")
    chosen = choose_images(ids, limit=limit, seed=config.seed)
    chosen_ids = [ids[row] for row in chosen]
    shape = cast(ModelConfig, models[REFERENCE].config)  # all are given the same images
    with closing(chosen_batches(shape, "test", chosen, workers=config.loader.workers)) as batches:
        answers = corrupted_answers(models, batches.epoch(0), chosen_ids, seed=config.seed, device=device)
    for name, of_model in answers.items():
        write_corrupted(of_model, chosen_ids, corrupted_of(name), origin=origin_of(directories[name]))
    return answers


def measured_corrupted(name: str, answers: "Mapping[str, Answers]") -> "Measured":
    """Measure a model on corrupted images, and write the plot of it."""
    from grpo_rm.evaluation.robustness import robustness_rows
    from pipelines.measurements import measure_corrupted

    if name in DIRECTORIES:
        write_csv(REPORTS / "plots/robustness" / f"{name}.csv", robustness_rows(answers[name]))
    return measure_corrupted(answers[name], answers[REFERENCE])


def compare_arms(measured: "Mapping[str, Measured]", config: Config) -> dict[str, dict[str, Any]]:
    """Compare GRPO-RM with the control on the same images, over all seeds, by every metric of every test set."""
    from grpo_rm.evaluation.comparison import correct
    from grpo_rm.evaluation.proportions import mcnemar
    from pipelines.measurements import TEST, compare

    intervals = compare(*arms(measured, config), config)
    compared = {name: asdict(interval) for name, interval in correct(intervals).items()}
    if "accuracy" not in intervals:  # no image is right or wrong as a whole
        return compared
    candidate, control = (measured[arm].sums[TEST]["accuracy"].terms.toarray()[0] for arm in (CANDIDATE, CONTROL))
    return compared | {"mcnemar": asdict(mcnemar(candidate, control))}


def compare_with_pretrained(measured: "Mapping[str, Measured]", config: Config) -> dict[str, dict[str, Any]]:
    """Compare GRPO-RM with the model that it starts from, by every metric of every test set; the main seed alone."""
    from grpo_rm.evaluation.comparison import correct
    from pipelines.measurements import compare

    intervals = compare([measured[CANDIDATE]], [measured[REFERENCE]], config)
    return {name: asdict(interval) for name, interval in correct(intervals).items()}


def arms(measured: "Mapping[str, Measured]", config: Config) -> "tuple[list[Measured], list[Measured]]":
    """Return the models of GRPO-RM and of the control, those of the main seed first."""
    candidates, controls = (
        [measured[arm], *(measured[seed_name(arm, seed)] for seed in config.finetune.seeds)]
        for arm in (CANDIDATE, CONTROL)
    )
    return candidates, controls


def spread_of_seeds(measured: "Mapping[str, Measured]", config: Config) -> dict[str, dict[str, Any]]:
    """Return how the differences between the arms spread over seeds, by metric."""
    from grpo_rm.evaluation.comparison import seed_spread

    candidates, controls = arms(measured, config)
    spread: dict[str, dict[str, Any]] = {}
    for test_set, metrics in candidates[0].sums.items():
        own, other = ([model.sums[test_set] for model in arm] for arm in (candidates, controls))
        spread |= {name: asdict(seed_spread(own, other, name)) for name in metrics}
    return spread


def write_metrics(models: Mapping[str, Mapping[str, float]]) -> None:
    """Write a file per model for DVC: its table then has the models below each other."""
    for name, metrics in models.items():
        path = REPORTS / "metrics" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def flat_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of evaluation.json as MLflow has them."""
    of_models = {f"{name}/{metric}": value for name, of in evaluation["models"].items() for metric, value in of.items()}
    compared = {
        f"{name}/{metric}/{key}": value
        for name in ("comparison", "over_pretrained")
        for metric, values in evaluation[name].items()
        for key, value in values.items()
    }
    return of_models | compared


if __name__ == "__main__":
    run_stage(main, description=__doc__)
