"""Stage evaluate: the models on the test images, and the paired comparison of the two arms. Stage report shows it."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_rm.config import Config, load_config
from pipelines.lineage import sha256
from pipelines.stage import run_stage
from pipelines.tracking.runs import check_tracking, start_run

if TYPE_CHECKING:
    from grpo_rm.evaluation.comparison import Interval, McNemar
    from grpo_rm.evaluation.inputs import FloatArray
    from grpo_rm.evaluation.measurement import Measurement
    from grpo_rm.evaluation.resampling import Metrics
    from grpo_rm.evaluation.robustness import Answers
    from pipelines.extra_results import ExtraSet
    from pipelines.predictions import Outputs

CANDIDATE, CONTROL = "grpo_rm", "cross_entropy"
REFERENCE = "pretrain"  # of the errors on corrupted images
MODELS = {
    REFERENCE: Path("models/pretrain"),
    CANDIDATE: Path("models/finetune/grpo_rm"),
    CONTROL: Path("models/finetune/cross_entropy"),
}
REPORTS = Path("reports")
RESULT = REPORTS / "evaluation.json"
PREDICTIONS = REPORTS / "predictions"


@dataclass(frozen=True)
class Evaluated:
    """One model, measured.

    Attributes:
        metrics: On the test images and the extra sets.
        validation: On the validation images, of the head alone.
        compared: By test set ("" is the test split), what it is compared with another model by.
        is_right: (N,) on the test images.
    """

    metrics: dict[str, float]
    validation: dict[str, float]
    compared: "dict[str, Metrics]"
    is_right: Any


def main() -> None:
    """Evaluate, compare, and write reports/."""
    config = load_config()
    check_tracking()
    parameters = config.model_dump(include={"seed", "data", "evaluate"})
    with start_run("evaluate", config.tracking, parameters, context="evaluation") as run:
        evaluation = evaluate(config)
        RESULT.write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")
        run.log_metrics(0, flat_metrics(evaluation))
        run.set_tags({"evaluation.sha256": sha256(RESULT)})
        run.log_artifacts(RESULT)
        run.log_artifacts(REPORTS / "plots", folder="plots")


def evaluate(config: Config) -> dict[str, Any]:
    """Write predictions and plots; return the content of evaluation.json."""
    from pipelines.extra_results import read_extra_sets

    extra_sets = read_extra_sets(config.evaluate.extra_sets)
    costs, groups = read_costs(config), read_groups("test")
    models = MODELS | further_seeds(config)
    evaluated = {
        name: evaluate_model(name, directory, extra_sets, costs, groups, config) for name, directory in models.items()
    }
    answers = measure_robustness(models, config)
    add_robustness(evaluated, answers)
    evaluation = {
        "models": {name: evaluated[name].metrics for name in MODELS},
        "validation": {name: evaluated[name].validation for name in MODELS},
        "comparison": compare_arms(evaluated, config),
        "extra_sets": {
            extra.name: {"images": len(extra.is_trained_on), "trained_on": int(extra.is_trained_on.sum())}
            for extra in extra_sets
        },
    }
    seeds = {name: evaluated[name].metrics for name in models if name not in MODELS}
    return evaluation | ({"seeds": seeds, "seed_spread": spread_of_seeds(evaluated, config)} if seeds else {})


def further_seeds(config: Config) -> dict[str, Path]:
    """Return the models of both arms that were trained with further seeds."""
    return {seed_name(arm, seed): MODELS[arm].parent / "seeds" / arm / str(seed) for arm, seed in seed_pairs(config)}


def seed_pairs(config: Config) -> list[tuple[str, int]]:
    """Return arm and seed of each of them."""
    return [(arm, seed) for seed in config.finetune.seeds for arm in (CANDIDATE, CONTROL)]


def seed_name(arm: str, seed: int) -> str:
    """Return what the model of a further seed is called."""
    return f"seeds/{arm}-{seed}"


def evaluate_model(
    name: str,
    directory: Path,
    extra_sets: "Sequence[ExtraSet]",
    costs: "FloatArray | None",
    groups: Sequence[str],
    config: Config,
) -> Evaluated:
    """Run a model over all images, measure it, and write predictions and plots."""
    from grpo_rm.evaluation.measurement import measure, measure_head
    from pipelines.extra_results import extra_metrics, extra_sums
    from pipelines.predictions import SPLITS, predict_splits, write_predictions

    settings = config.evaluate
    print(f"evaluate: {name}", flush=True)
    outputs = predict_splits(directory, settings.extra_sets, workers=config.loader.workers)
    write_predictions(outputs, PREDICTIONS / f"{name}.parquet", origin=machine())
    measured = measure(
        *(outputs[split] for split in SPLITS),
        ks=settings.knn_k,
        knn_temperature=settings.knn_temperature,
        costs=costs,
        groups=groups,
    )
    if name in MODELS:
        write_plots(name, outputs, measured)
    compared: dict[str, Metrics] = {"": measured.sums(outputs["test"])}
    compared |= {extra.name: extra_sums(outputs, extra.name) for extra in extra_sets}
    metrics = measured.metrics | extra_metrics(outputs, extra_sets)
    return Evaluated(metrics, measure_head(outputs["val"]), compared, measured.scores["accuracy"])


def machine() -> dict[str, str]:
    """Return what the models ran on and with."""
    import os
    import platform

    import timm
    import torch

    cores = f"CPU, {platform.machine()}, {os.cpu_count()} cores"
    return {
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else cores,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def read_costs(config: Config) -> "FloatArray | None":
    """Return the cost matrix (K, K) of the objective; None where it has none."""
    from grpo_rm.cost_matrix import read_cost_matrix
    from grpo_rm.datasets import read_dataset
    from pipelines.batches import PREPARED

    path = config.objective.cost_matrix
    return read_cost_matrix(Path(path), read_dataset(PREPARED)["classes"]).numpy() if path else None


def read_groups(split: str) -> list[str]:
    """Return the group of each image of a split, in its order; "" for none."""
    import pyarrow.parquet as pq

    from grpo_rm.datasets import read_ids
    from pipelines.batches import PREPARED

    manifest = pq.read_table(PREPARED / "manifest.parquet", columns=["id", "group"], filters=[("split", "=", split)])
    groups = dict(zip(manifest["id"].to_pylist(), manifest["group"].to_pylist(), strict=True))
    return [groups[id_] for id_ in read_ids(PREPARED, split)]


def measure_robustness(models: Mapping[str, Path], config: Config) -> "dict[str, Answers]":
    """Return which corrupted test images each model classifies rightly, and write it; nothing where `images` is 0."""
    from grpo_rm.checkpoint import load_model
    from grpo_rm.datasets import read_ids
    from grpo_rm.evaluation.robustness import choose_images, corrupted_answers
    from grpo_rm.inference import best_device
    from pipelines.batches import PREPARED, chosen_batches
    from pipelines.predictions import write_answers

    limit = config.evaluate.robustness.images
    if not limit:
        return {}
    print("evaluate: corrupted images", flush=True)
    device = best_device()
    loaded = {name: load_model(directory).to(device) for name, directory in models.items()}
    ids = read_ids(PREPARED, "test")
    chosen = choose_images(ids, limit=limit, seed=config.seed)
    chosen_ids = [ids[row] for row in chosen]
    shape = loaded[REFERENCE].config  # all are given the same images
    with closing(chosen_batches(shape, "test", chosen, workers=config.loader.workers)) as batches:
        answers = corrupted_answers(loaded, batches.epoch(0), chosen_ids, seed=config.seed, device=device)
    for name, of_model in answers.items():
        write_answers(of_model, chosen_ids, PREDICTIONS / "robustness" / f"{name}.parquet")
    return answers


def add_robustness(evaluated: dict[str, Evaluated], answers: "Mapping[str, Answers]") -> None:
    """Add what the models did on corrupted images, and the plots of it."""
    from grpo_rm.evaluation.resampling import mean_sums
    from grpo_rm.evaluation.robustness import robustness_metrics, robustness_rows, robustness_scores
    from pipelines.tables import write_csv

    (REPORTS / "plots/robustness").mkdir(parents=True, exist_ok=True)  # for DVC, where there are none
    for name, of_model in answers.items():
        evaluated[name].metrics.update(robustness_metrics(of_model, answers[REFERENCE]))
        scores = robustness_scores(of_model)
        evaluated[name].compared["robustness"] = {metric: mean_sums(values) for metric, values in scores.items()}
        if name in MODELS:
            write_csv(REPORTS / "plots/robustness" / f"{name}.csv", robustness_rows(of_model))


def compare_arms(evaluated: Mapping[str, Evaluated], config: Config) -> dict[str, dict[str, Any]]:
    """Compare GRPO-RM with the control on the same images, over all seeds, by every metric of every test set."""
    from grpo_rm.evaluation.comparison import compare_metrics, correct, mcnemar

    settings = config.evaluate
    candidates, controls = (of_seeds(evaluated, arm, config) for arm in (CANDIDATE, CONTROL))
    intervals: dict[str, Interval] = {}
    for test_set in candidates[0].compared:  # each by itself: it has images of its own
        intervals |= compare_metrics(
            [model.compared[test_set] for model in candidates],
            [model.compared[test_set] for model in controls],
            num_resamples=settings.bootstrap_resamples,
            confidence=settings.confidence,
            seed=config.seed,
        )
    balance: McNemar = mcnemar(candidates[0].is_right, controls[0].is_right)
    return {name: asdict(interval) for name, interval in correct(intervals).items()} | {"mcnemar": asdict(balance)}


def of_seeds(evaluated: Mapping[str, Evaluated], arm: str, config: Config) -> list[Evaluated]:
    """Return the models of an arm, that of the main seed first."""
    return [evaluated[arm], *(evaluated[seed_name(arm, seed)] for seed in config.finetune.seeds)]


def spread_of_seeds(evaluated: Mapping[str, Evaluated], config: Config) -> dict[str, dict[str, Any]]:
    """Return how the differences between the arms spread over seeds, by metric."""
    from grpo_rm.evaluation.comparison import seed_spread

    candidates, controls = (of_seeds(evaluated, arm, config) for arm in (CANDIDATE, CONTROL))
    spread: dict[str, dict[str, Any]] = {}
    for test_set, metrics in candidates[0].compared.items():
        of_candidates, of_controls = ([model.compared[test_set] for model in arm] for arm in (candidates, controls))
        spread |= {name: asdict(seed_spread(of_candidates, of_controls, name)) for name in metrics}
    return spread


def write_plots(name: str, outputs: "Outputs", measured: "Measurement") -> None:
    """Write the data of DVC's plots of one model."""
    import numpy as np

    from grpo_rm.datasets import read_dataset
    from grpo_rm.evaluation.calibration import reliability_bins
    from grpo_rm.evaluation.classification import per_class_metrics
    from pipelines.batches import PREPARED
    from pipelines.plot_rows import confusion_rows, reliability_rows
    from pipelines.tables import write_csv

    classes, plots, test = read_dataset(PREPARED)["classes"], REPORTS / "plots", outputs["test"]
    calibrated = test.logits / np.float32(measured.metrics["temperature"])
    bins = (reliability_bins(logits, test.labels) for logits in (test.logits, calibrated))
    confusion = confusion_rows(test.logits.argmax(axis=1), test.labels, classes)
    write_csv(plots / "confusion" / f"{name}.csv", confusion)
    write_csv(plots / "reliability" / f"{name}.csv", reliability_rows(*bins))
    for folder, split in {"classes": "test", "validation_classes": "val"}.items():
        rows = per_class_metrics(outputs[split].logits, outputs[split].labels)
        write_csv(plots / folder / f"{name}.csv", [{"class": classes[row["label"]], **row} for row in rows])


def flat_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of evaluation.json as MLflow has them."""
    of_models = {f"{name}/{metric}": value for name, of in evaluation["models"].items() for metric, value in of.items()}
    compared = {
        f"comparison/{metric}/{key}": value
        for metric, values in evaluation["comparison"].items()
        for key, value in values.items()
    }
    return of_models | compared


if __name__ == "__main__":
    run_stage(main, description=__doc__)
