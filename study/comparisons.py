"""The differences of the arms to cross-entropy, with intervals over seeds and images: study/comparisons.parquet.

They follow from the answers that final trials keep, and take minutes; what is known of the same trials is not computed
again. `python -m study.comparisons` brings the file up to date.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from grpo_rm.config import load_config
from grpo_rm.evaluation.measurement import Measurement
from grpo_rm.evaluation.pixels import PixelSums
from grpo_rm.evaluation.resampling import MetricSums
from grpo_rm.evaluation.segmentation import pixel_metrics, ratio_sums
from grpo_rm.inference import Predictions
from pipelines.lineage import ROOT
from pipelines.measurements import TEST, Measured, compare, test_sums
from pipelines.stage import run_stage
from study.arms import ARMS, CONTROL
from study.protocol import EMBEDDING_CRITERIA, Row
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
    """Compare every arm on every task with the control, where both have answers of the same seeds, and write it."""
    finals = [row for row in read_results() if row["stage"] == "final" and "error" not in row]
    known = read_comparisons()
    rows = []
    for task in NAMES:
        controls = _by_seed(finals, task, CONTROL)
        for arm in ARMS:
            candidates = _by_seed(finals, task, arm)
            seeds = sorted(candidates.keys() & controls.keys())
            if arm != CONTROL and seeds:
                trials = " ".join(of[seed]["key"] for of in (candidates, controls) for seed in seeds)
                former = [row for row in known if (row["task"], row["arm"], row["trials"]) == (task, arm, trials)]
                rows += former or compare_arm(task, arm, trials.split())
    if rows:
        write_table(rows, COMPARISONS)
    return rows


def read_comparisons() -> list[Row]:
    """Return the rows of the file; none where there is none."""
    return read_table(COMPARISONS) if COMPARISONS.is_file() else []


def compare_arm(task: str, arm: str, keys: Sequence[str]) -> list[Row]:
    """Return a row per metric; none where answers are missing.

    Args:
        task: As rows have it.
        arm: The candidate.
        keys: Of its trials by seed, and then of the control's.
    """
    paths = [answers_file(task, key) for key in keys]
    if not all(path.is_file() for path in paths):
        print(f"{task}  {arm}  not compared: answers are missing here", flush=True)
        return []
    models = [read_measured(path) for path in paths]
    half = len(models) // 2
    intervals = compare(models[:half], models[half:], load_config(ROOT / "params.yaml"), metrics=METRICS)
    shared = {"task": task, "arm": arm, "seeds": half, "trials": " ".join(keys)}
    return [shared | {"metric": name} | asdict(interval) for name, interval in intervals.items()]


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
