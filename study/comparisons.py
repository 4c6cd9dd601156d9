"""The differences of the arms to their baselines, with intervals over seeds and images: study/comparisons.parquet.

The baseline is cross-entropy, with costs also cross-entropy weighted by them. Differences follow from the answers that
final trials keep, and take minutes; what is known of the same trials is not computed again. `python -m
study.comparisons` brings the file up to date.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from grpo_rm.config import Config, load_config
from grpo_rm.evaluation.comparison import Interval
from grpo_rm.evaluation.measurement import Measurement
from grpo_rm.evaluation.pixels import PixelSums
from grpo_rm.evaluation.resampling import MetricSums
from grpo_rm.evaluation.segmentation import pixel_metrics, ratio_sums
from grpo_rm.inference import Predictions
from pipelines.lineage import ROOT
from pipelines.measurements import TEST, Measured, compare, test_sums
from pipelines.stage import run_stage
from study.arms import ARMS, CONTROL, COST_WEIGHTED
from study.protocol import COST_METRICS, EMBEDDING_CRITERIA, Row
from study.results import read_results, read_table, write_table
from study.tasks import NAMES
from study.workspace import answers_file

COMPARISONS = ROOT / "study/comparisons.parquet"
METRICS = (
    "accuracy",
    "miou",
    "pixel_accuracy",
    *EMBEDDING_CRITERIA,
    "worst_class_accuracy",
    "ece",
    "ece_calibrated",
    "nll",
)


def update_comparisons() -> list[Row]:
    """Compare every arm on every task with its baselines, where both have trials of the same seeds, and write it."""
    finals = [row for row in read_results() if row["stage"] == "final" and "error" not in row]
    known, rows = read_comparisons(), list[Row]()
    for task, arm, baseline in itertools.product(NAMES, ARMS, (CONTROL, COST_WEIGHTED)):
        candidates, rivals = (_by_seed(finals, task, name) for name in (arm, baseline))
        seeds = sorted(candidates.keys() & rivals.keys())
        if arm not in (CONTROL, baseline) and seeds:
            trials = " ".join(of[seed]["key"] for of in (candidates, rivals) for seed in seeds)
            compared = {"task": task, "arm": arm, "baseline": baseline, "seeds": len(seeds), "trials": trials}
            former = [row for row in known if compared.items() <= row.items()]
            rows += former or compare_trials(compared)
    if rows:
        write_table(rows, COMPARISONS)
    return rows


def read_comparisons() -> list[Row]:
    """Return the rows of the file; none where there is none."""
    return read_table(COMPARISONS) if COMPARISONS.is_file() else []


def compare_trials(compared: Row) -> list[Row]:
    """Return a row per metric; none where answers are missing.

    Args:
        compared: What every row has: the task, the arm, its baseline, how many seeds there are, and the trials of the
            arm by seed and then those of the baseline.
    """
    paths = [answers_file(compared["task"], key) for key in compared["trials"].split()]
    if not all(path.is_file() for path in paths):
        print(f"{compared['task']}  {compared['arm']}  not compared: answers are missing here", flush=True)
        return []
    models = [read_measured(path) for path in paths]
    own, others = models[: compared["seeds"]], models[compared["seeds"] :]
    config = load_config(ROOT / "params.yaml")
    intervals = {(name, name): interval for name, interval in compare(own, others, config, metrics=METRICS).items()}
    if COST_METRICS[0] in own[0].sums[TEST]:
        pairs = itertools.product(COST_METRICS, COST_METRICS)
        intervals |= {pair: compare_costs(own, others, pair, config) for pair in pairs}
    return [
        compared | {"metric": metric, "baseline_metric": of_baseline} | asdict(interval)
        for (metric, of_baseline), interval in intervals.items()
    ]


def compare_costs(own: list[Measured], others: list[Measured], rules: tuple[str, str], config: Config) -> Interval:
    """Return the difference of what decisions cost, each arm's by a rule of its own."""
    costs, of_others = (
        [Measured(sums={TEST: {COST_METRICS[0]: model.sums[TEST][rule]}}) for model in models]
        for models, rule in zip((own, others), rules, strict=True)
    )
    (interval,) = compare(costs, of_others, config).values()
    return interval


def read_measured(path: Path) -> Measured:
    """Return what a model is compared by, from the answers that were kept."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return Measured(sums={TEST: _dense_sums(arrays) if "pixels/confusion" in arrays else _image_sums(arrays)})


def _image_sums(arrays: dict[str, np.ndarray]) -> dict[str, MetricSums]:
    logits, labels = arrays["logits"], arrays["labels"]
    scores = {name.removeprefix("score/"): values for name, values in arrays.items() if name.startswith("score/")}
    measured = Measurement({"temperature": float(arrays["temperature"])}, scores)
    embeddings = np.empty((len(labels), 0), np.float32)  # not kept: what follows from them is in the scores
    return test_sums(measured, Predictions(embeddings, logits, labels), [""] * len(labels))


def _dense_sums(arrays: dict[str, np.ndarray]) -> dict[str, MetricSums]:
    pixels = PixelSums(
        **{name.removeprefix("pixels/"): of for name, of in arrays.items() if name.startswith("pixels/")}
    )
    places = {name.removeprefix("places/"): of for name, of in arrays.items() if name.startswith("places/")}
    return pixel_metrics(pixels) | {name: ratio_sums(right, count) for name, (right, count) in places.items()}


def _by_seed(rows: Sequence[Row], task: str, arm: str) -> dict[int, Row]:
    return {row["seed"]: row for row in rows if (row["task"], row["arm"]) == (task, arm)}


if __name__ == "__main__":
    run_stage(lambda: print(f"{len(update_comparisons())} comparisons -> study/comparisons.parquet"))
