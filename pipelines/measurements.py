"""From what a model said of all images to its metrics, and to what it is compared by: the same for every model."""

import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import pyarrow.parquet as pq

from grpo_rm.config import Config
from grpo_rm.cost_matrix import read_cost_matrix
from grpo_rm.datasets import read_dataset, read_ids
from grpo_rm.evaluation.comparison import Interval, compare_metrics
from grpo_rm.evaluation.directions import is_higher_better
from grpo_rm.evaluation.inputs import FloatArray
from grpo_rm.evaluation.measurement import Measurement, measure, measure_classifier
from grpo_rm.evaluation.metric_sums import ece_sums, head_sums, worst_group_accuracy_sums
from grpo_rm.evaluation.resampling import MetricSums, mean_sums
from grpo_rm.evaluation.robustness import Answers, robustness_metrics, robustness_scores
from grpo_rm.inference import Predictions
from pipelines.batches import PREPARED
from pipelines.extra_results import ExtraSet, extra_metrics, extra_sums
from pipelines.predictions import Outputs

TEST, ROBUSTNESS = "", "robustness"  # sets of images, by what the names of their metrics begin with; also extra sets


@dataclass(frozen=True)
class Measured:
    """A model on all sets of test images.

    Attributes:
        metrics: By their names in evaluation.json.
        sums: Set of test images to what models are compared by on it, by metric.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    sums: dict[str, dict[str, MetricSums]] = field(default_factory=dict)

    def __or__(self, other: "Measured") -> "Measured":
        return Measured(self.metrics | other.metrics, self.sums | other.sums)


class Resampling(TypedDict):
    """How intervals are made."""

    num_resamples: int
    confidence: float
    seed: int


def measure_outputs(outputs: Outputs, extra_sets: list[ExtraSet], config: Config, *, has_encoder: bool) -> Measured:
    """Measure a model on the test split and the extra sets.

    Args:
        outputs: Of val and test, of all extra sets, and with `has_encoder` of train.
        extra_sets: Of `evaluate.extra_sets`.
        config: Its blocks `evaluate` and `objective` are read.
        has_encoder: Whether to measure what follows from embeddings, too.
    """
    settings, groups = config.evaluate, read_groups("test")
    val, test = outputs["val"], outputs["test"]
    costs, ks, temperature = read_costs(config), settings.knn_k, settings.knn_temperature
    if has_encoder:
        train = outputs["train"]
        measured = measure(train, val, test, ks=ks, knn_temperature=temperature, costs=costs, groups=groups)
    else:
        measured = measure_classifier(val, test, costs=costs, groups=groups)
    return Measured(
        measured.metrics | extra_metrics(outputs, extra_sets),
        {TEST: test_sums(measured, test, groups)} | {extra.name: extra_sums(outputs, extra) for extra in extra_sets},
    )


def test_sums(measured: Measurement, test: Predictions, groups: list[str]) -> dict[str, MetricSums]:
    """Return what a model is compared by on the test split: means of scores, and what is measured on each resample.

    Args:
        measured: The test split.
        test: The same images.
        groups: Of each of them, "" for none.
    """
    calibrated = test.logits / test.logits.dtype.type(measured.metrics["temperature"])
    # what is better when it is higher is a share of right answers
    sums = {name: mean_sums(scores, is_share=is_higher_better(name)) for name, scores in measured.scores.items()}
    sums |= head_sums(test.logits, test.labels) | {"ece_calibrated": ece_sums(calibrated, test.labels)}
    worst = worst_group_accuracy_sums(test.logits.argmax(axis=1), test.labels, groups)
    return sums if worst is None else sums | {"worst_group_accuracy": worst}


def measure_corrupted(answers: Answers, reference: Answers) -> Measured:
    """Measure a model on corrupted images.

    Args:
        answers: Of the model.
        reference: Of the pretrained model, on the same images.
    """
    sums = {name: mean_sums(scores, is_share=True) for name, scores in robustness_scores(answers).items()}
    return Measured(robustness_metrics(answers, reference), {ROBUSTNESS: sums})


def compare(
    candidates: Sequence[Measured],
    rivals: Sequence[Measured],
    config: Config,
    *,
    metrics: Collection[str] | None = None,
) -> dict[str, Interval]:
    """Return the intervals of candidate minus rival, each test set by itself; not corrected yet.

    Args:
        candidates: Of each training seed.
        rivals: As many.
        config: Its seed and its block `evaluate` are read.
        metrics: What to compare by, where all were measured by it; None: all.
    """
    intervals: dict[str, Interval] = {}
    for test_set in candidates[0].sums:
        own, other = ([model.sums.get(test_set, {}) for model in models] for models in (candidates, rivals))
        common = [
            metric
            for metric in own[0]
            if (metrics is None or metric in metrics) and all(metric in sums for sums in (*own, *other))
        ]
        if common:
            chosen = ([{metric: sums[metric] for metric in common} for sums in arm] for arm in (own, other))
            intervals |= compare_metrics(*chosen, **resampling(config))
    warn_of_few_resamples(len(intervals), config)
    return intervals


def warn_of_few_resamples(num_metrics: int, config: Config) -> None:
    """Say where no p value can be small enough to show a difference, corrected over these metrics."""
    resamples, level = config.evaluate.bootstrap_resamples, 1 - config.evaluate.confidence
    if 2 * num_metrics / (resamples + 1) > level:
        needed = math.ceil(2 * num_metrics / level)
        print(
            f"warning: no difference can be shown by {num_metrics} metrics with {resamples} resamples: set "
            f"evaluate.bootstrap_resamples to {needed} or more",
            file=sys.stderr,
        )


def resampling(config: Config) -> Resampling:
    """Return how intervals are made."""
    return {
        "num_resamples": config.evaluate.bootstrap_resamples,
        "confidence": config.evaluate.confidence,
        "seed": config.seed,
    }


def read_costs(config: Config) -> FloatArray | None:
    """Return the cost matrix (K, K) of the objective; None where it has none."""
    path = config.objective.cost_matrix
    return read_cost_matrix(Path(path), read_dataset(PREPARED)["classes"]).numpy() if path else None


def read_groups(split: str) -> list[str]:
    """Return the group of each image of a split, in its order; "" for none."""
    manifest = pq.read_table(PREPARED / "manifest.parquet", columns=["id", "group"], filters=[("split", "=", split)])
    groups = dict(zip(manifest["id"].to_pylist(), manifest["group"].to_pylist(), strict=True))
    return [groups[id_] for id_ in read_ids(PREPARED, split)]
