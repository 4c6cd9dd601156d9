"""Stage evaluate: the three models on the test images, the paired comparison of the two arms, the report."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_rm.config import Config, load_config
from pipelines.stage import run_stage
from pipelines.tables import read_numbers, write_csv
from pipelines.tracking.runs import check_tracking, start_run

if TYPE_CHECKING:
    from grpo_rm.evaluation.comparison import Interval
    from grpo_rm.evaluation.inputs import FloatArray
    from grpo_rm.evaluation.measurement import Measurement
    from grpo_rm.evaluation.resampling import MetricSums
    from grpo_rm.evaluation.robustness import Answers
    from grpo_rm.inference import Predictions
    from pipelines.predictions import Outputs

MODELS = {
    "pretrain": Path("models/pretrain"),
    "grpo_rm": Path("models/finetune/grpo_rm"),
    "cross_entropy": Path("models/finetune/cross_entropy"),
}
CANDIDATE, CONTROL = "grpo_rm", "cross_entropy"
REFERENCE = "pretrain"  # of the errors on corrupted images
REPORTS = Path("reports")


def main() -> None:
    """Evaluate, compare, and write reports/."""
    config = load_config()
    check_tracking()
    parameters = config.model_dump(include={"seed", "data", "evaluate"})
    with start_run("evaluate", config.tracking, parameters, context="evaluation") as run:
        evaluation = evaluate(config)
        for name, metrics in evaluation["models"].items():
            run.log_metrics(0, {f"{name}/{metric}": value for metric, value in metrics.items()})
        for metric, values in evaluation["comparison"].items():
            run.log_metrics(0, {f"comparison/{metric}/{key}": value for key, value in values.items()})
        run.log_artifacts(REPORTS / "index.html", REPORTS / "evaluation.json")
        run.log_artifacts(REPORTS / "plots", folder="plots")


def evaluate(config: Config) -> dict[str, Any]:
    """Write predictions, plots, evaluation.json and index.html; return the content of evaluation.json."""
    from grpo_rm.evaluation.comparison import correct, mcnemar  # slow to import: torch
    from grpo_rm.evaluation.measurement import measure, measure_head
    from pipelines.extra_results import extra_metrics, read_extra_sets
    from pipelines.predictions import SPLITS, predict_splits, write_predictions

    settings = config.evaluate
    costs, groups = read_costs(config), read_groups("test")
    extra_sets = read_extra_sets(settings.extra_sets)
    outputs, measurements = {}, {}
    for name, directory in MODELS.items():
        print(f"evaluate: {name}", flush=True)
        outputs[name] = predict_splits(directory, settings.extra_sets, workers=config.loader.workers)
        measurements[name] = measure(
            *(outputs[name][split] for split in SPLITS),
            ks=settings.knn_k,
            knn_temperature=settings.knn_temperature,
            costs=costs,
            groups=groups,
        )
        write_predictions(outputs[name], REPORTS / "predictions" / f"{name}.parquet")
    answers = measure_robustness(config)
    candidate, control = measurements[CANDIDATE].scores, measurements[CONTROL].scores
    evaluation = {
        "models": add_robustness(
            {
                name: measured.metrics | extra_metrics(outputs[name], extra_sets)
                for name, measured in measurements.items()
            },
            answers,
        ),
        "validation": {name: measure_head(splits["val"]) for name, splits in outputs.items()},
        "comparison": {
            name: asdict(interval)
            for name, interval in correct(compare(outputs, measurements, answers, config)).items()
        }
        | {"mcnemar": asdict(mcnemar(candidate["accuracy"], control["accuracy"]))},
        "extra_sets": {
            extra.name: {"images": len(extra.is_trained_on), "trained_on": int(extra.is_trained_on.sum())}
            for extra in extra_sets
        },
    }
    (REPORTS / "evaluation.json").write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")
    write_figures(outputs, answers, evaluation, config)
    return evaluation


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


def measure_robustness(config: Config) -> dict[str, "Answers"]:
    """Return which corrupted test images each model classifies rightly; nothing where `images` is 0."""
    from grpo_rm.checkpoint import load_model
    from grpo_rm.datasets import read_ids
    from grpo_rm.evaluation.robustness import choose_images, corrupted_answers
    from grpo_rm.inference import best_device
    from pipelines.batches import PREPARED, chosen_batches

    limit = config.evaluate.robustness.images
    if not limit:
        return {}
    print("evaluate: corrupted images", flush=True)
    device = best_device()
    models = {name: load_model(directory).to(device) for name, directory in MODELS.items()}
    ids = read_ids(PREPARED, "test")
    chosen = choose_images(ids, limit=limit, seed=config.seed)
    shape = models[REFERENCE].config  # all three are given the same images
    with closing(chosen_batches(shape, "test", chosen, workers=config.loader.workers)) as batches:
        images = batches.epoch(0)
        return corrupted_answers(models, images, [ids[row] for row in chosen], seed=config.seed, device=device)


def add_robustness(
    metrics: Mapping[str, dict[str, float]], answers: Mapping[str, "Answers"]
) -> dict[str, dict[str, float]]:
    """Return the metrics of each model with those on corrupted images, where there are any."""
    from grpo_rm.evaluation.robustness import robustness_metrics

    return {
        name: own | (robustness_metrics(answers[name], answers[REFERENCE]) if answers else {})
        for name, own in metrics.items()
    }


def compare(
    outputs: Mapping[str, "Outputs"],
    measurements: Mapping[str, "Measurement"],
    answers: Mapping[str, "Answers"],
    config: Config,
) -> dict[str, "Interval"]:
    """Return the intervals of candidate minus control: on the test images, on corrupted ones, on each extra set."""
    from grpo_rm.evaluation.comparison import compare_metrics
    from grpo_rm.evaluation.resampling import mean_sums
    from grpo_rm.evaluation.robustness import robustness_scores
    from pipelines.extra_results import extra_sums

    settings = config.evaluate
    of_sets = [{arm: sums_of(measurements[arm], outputs[arm]["test"]) for arm in (CANDIDATE, CONTROL)}]
    if answers:
        scores = {arm: robustness_scores(answers[arm]) for arm in (CANDIDATE, CONTROL)}
        of_sets.append({arm: {name: mean_sums(each) for name, each in scores[arm].items()} for arm in scores})
    of_sets += [{arm: extra_sums(outputs[arm], name) for arm in (CANDIDATE, CONTROL)} for name in settings.extra_sets]
    intervals: dict[str, Interval] = {}
    for sums in of_sets:
        intervals |= compare_metrics(
            [sums[CANDIDATE]],
            [sums[CONTROL]],
            num_resamples=settings.bootstrap_resamples,
            confidence=settings.confidence,
            seed=config.seed,
        )
    return intervals


def sums_of(measurement: "Measurement", test: "Predictions") -> dict[str, "MetricSums"]:
    """Return what a model is compared by: means of scores per image, and what has to be measured on each resample."""
    from grpo_rm.evaluation.metric_sums import head_sums
    from grpo_rm.evaluation.resampling import mean_sums

    means = {name: mean_sums(scores) for name, scores in measurement.scores.items()}
    return means | head_sums(test.logits, test.labels)


def write_figures(
    outputs: Mapping[str, "Outputs"],
    answers: Mapping[str, "Answers"],
    evaluation: dict[str, Any],
    config: Config,
) -> None:
    """Write the plot data of DVC and the report."""
    import numpy as np

    from grpo_rm.datasets import read_dataset
    from grpo_rm.evaluation.calibration import reliability_bins
    from grpo_rm.evaluation.classification import confusion_counts, per_class_metrics
    from grpo_rm.evaluation.robustness import robustness_rows
    from pipelines.batches import PREPARED
    from pipelines.pictures import report_pictures
    from pipelines.plots import confusion_rows, reliability_rows
    from pipelines.report import largest_confusions, write_report

    dataset, plots = read_dataset(PREPARED), REPORTS / "plots"
    classes = dataset["classes"]
    tests = {name: splits["test"] for name, splits in outputs.items()}
    reliability = {}
    for name, test in tests.items():
        calibrated = test.logits / np.float32(evaluation["models"][name]["temperature"])
        reliability[name] = reliability_rows(
            reliability_bins(test.logits, test.labels), reliability_bins(calibrated, test.labels)
        )
        predicted = test.logits.argmax(axis=1)
        write_csv(plots / "confusion" / f"{name}.csv", confusion_rows(predicted, test.labels, classes))
        write_csv(plots / "reliability" / f"{name}.csv", reliability[name])
        of_classes = per_class_metrics(test.logits, test.labels)
        write_csv(plots / "classes" / f"{name}.csv", [{"class": classes[row["label"]], **row} for row in of_classes])
        (plots / "robustness").mkdir(parents=True, exist_ok=True)  # for DVC, where there are none
        if answers:
            write_csv(plots / "robustness" / f"{name}.csv", robustness_rows(answers[name]))
    candidate = tests[CANDIDATE]
    confusion = confusion_counts(candidate.logits.argmax(axis=1), candidate.labels, len(classes))
    cells = [(row["actual"], row["predicted"]) for row in largest_confusions(confusion, classes)]
    validation = REPORTS / "validation.json"
    write_report(
        REPORTS / "index.html",
        evaluation=evaluation,
        histories={name: read_numbers(REPORTS / "training" / f"{name}.csv") for name in MODELS},
        dataset=dataset,
        reliability=reliability,
        confusion=confusion,
        lineage=lineage(config),
        robustness={name: robustness_rows(answer) for name, answer in answers.items()},
        validation=json.loads(validation.read_text(encoding="utf-8")) if validation.is_file() else None,
        **report_pictures({name: outputs[name] for name in (REFERENCE, CANDIDATE)}, classes, cells, seed=config.seed),
    )


def lineage(config: Config) -> dict[str, str]:
    """Return what the results were made from, for the report. Nothing in it changes when nothing changed."""
    import platform

    import timm
    import torch

    from pipelines.lineage import data_hash

    return {
        "data": data_hash() or "not recorded by DVC",
        "encoder": config.encoder.name,
        "seed": str(config.seed),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}",
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    run_stage(main, description=__doc__)
