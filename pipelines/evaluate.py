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
    from grpo_rm.evaluation.measurement import Measurement
    from grpo_rm.evaluation.resampling import MetricSums
    from grpo_rm.inference import Predictions

MODELS = {
    "pretrain": Path("models/pretrain"),
    "grpo_rm": Path("models/finetune/grpo_rm"),
    "cross_entropy": Path("models/finetune/cross_entropy"),
}
CANDIDATE, CONTROL = "grpo_rm", "cross_entropy"
REPORTS = Path("reports")

Outputs = dict[str, "Predictions"]  # by split


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
    from grpo_rm.evaluation.comparison import compare_metrics, correct, mcnemar  # slow to import: torch
    from grpo_rm.evaluation.measurement import measure

    settings = config.evaluate
    outputs, measurements = {}, {}
    for name, directory in MODELS.items():
        print(f"evaluate: {name}", flush=True)
        outputs[name] = predict_splits(directory, workers=config.loader.workers)
        measurements[name] = measure(
            **outputs[name], costs=None, groups=None, ks=settings.knn_k, knn_temperature=settings.knn_temperature
        )
        write_predictions(outputs[name], REPORTS / "predictions" / f"{name}.parquet")
    candidate, control = measurements[CANDIDATE].scores, measurements[CONTROL].scores
    intervals = compare_metrics(
        *([sums_of(measurements[arm], outputs[arm]["test"])] for arm in (CANDIDATE, CONTROL)),
        num_resamples=settings.bootstrap_resamples,
        confidence=settings.confidence,
        seed=config.seed,
    )
    evaluation = {
        "models": {name: measurement.metrics for name, measurement in measurements.items()},
        "comparison": {name: asdict(interval) for name, interval in correct(intervals).items()}
        | {"mcnemar": asdict(mcnemar(candidate["accuracy"], control["accuracy"]))},
    }
    (REPORTS / "evaluation.json").write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")
    write_figures(outputs, evaluation, config)
    return evaluation


def sums_of(measurement: "Measurement", test: "Predictions") -> "dict[str, MetricSums]":
    """Return what a model is compared by: means of scores per image, and what has to be measured on each resample."""
    from grpo_rm.evaluation.metric_sums import head_sums
    from grpo_rm.evaluation.resampling import mean_sums

    means = {name: mean_sums(scores) for name, scores in measurement.scores.items()}
    return means | head_sums(test.logits, test.labels)


def predict_splits(directory: Path, *, workers: int) -> Outputs:
    """Run a saved model over train, val and test, without augmentation."""
    from grpo_rm.checkpoint import load_model
    from grpo_rm.inference import best_device, predict
    from pipelines.batches import evaluation_batches

    device = best_device()
    model = load_model(directory).to(device)
    outputs = {}
    for split in ("train", "val", "test"):
        with closing(evaluation_batches(model.config, split, workers=workers)) as batches:
            outputs[split] = predict(model, batches.epoch(0), device=device)
    return outputs


def write_predictions(outputs: Outputs, path: Path) -> None:
    """Write id, split, label, logits and embedding of all validation and test images as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from grpo_rm.datasets import read_ids
    from pipelines.batches import PREPARED

    tables = [
        pa.table(
            {
                "id": read_ids(PREPARED, split),
                "split": [split] * len(outputs[split].labels),
                "label": outputs[split].labels,
                "logits": list(outputs[split].logits),
                "embedding": list(outputs[split].embeddings),
            }
        )
        for split in ("val", "test")
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), path)


def write_figures(outputs: Mapping[str, Outputs], evaluation: dict[str, Any], config: Config) -> None:
    """Write the plot data of DVC and the report."""
    import numpy as np

    from grpo_rm.datasets import read_dataset
    from grpo_rm.evaluation.calibration import reliability_bins
    from grpo_rm.evaluation.classification import confusion_counts
    from pipelines.batches import PREPARED
    from pipelines.plots import confusion_rows, reliability_rows
    from pipelines.report import write_report

    dataset = read_dataset(PREPARED)
    tests = {name: splits["test"] for name, splits in outputs.items()}
    reliability = {}
    for name, test in tests.items():
        calibrated = test.logits / np.float32(evaluation["models"][name]["temperature"])
        reliability[name] = reliability_rows(
            reliability_bins(test.logits, test.labels), reliability_bins(calibrated, test.labels)
        )
        predicted = test.logits.argmax(axis=1)
        write_csv(
            REPORTS / "plots/confusion" / f"{name}.csv", confusion_rows(predicted, test.labels, dataset["classes"])
        )
        write_csv(REPORTS / "plots/reliability" / f"{name}.csv", reliability[name])
    candidate = tests[CANDIDATE]
    write_report(
        REPORTS / "index.html",
        evaluation=evaluation,
        histories={name: read_numbers(REPORTS / "training" / f"{name}.csv") for name in MODELS},
        dataset=dataset,
        reliability=reliability,
        confusion=confusion_counts(candidate.logits.argmax(axis=1), candidate.labels, len(dataset["classes"])),
        lineage=lineage(config),
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
