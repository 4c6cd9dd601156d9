"""All metrics of one model, and the scores of each test image that a paired comparison needs."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from grpo_rm.evaluation import classification
from grpo_rm.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    per_image_brier,
    per_image_nll,
)
from grpo_rm.evaluation.geometry import alignment, effective_rank, uniformity
from grpo_rm.evaluation.inputs import FloatArray
from grpo_rm.evaluation.knn import knn_predictions
from grpo_rm.evaluation.linear_probe import linear_probe
from grpo_rm.evaluation.metric_sums import classifier_sums
from grpo_rm.evaluation.retrieval import retrieve
from grpo_rm.inference import Predictions

Scores = npt.NDArray[np.float64]  # (N,), one value per test image

# what the names of metrics begin with that follow from embeddings
EMBEDDING_METRICS = ("knn_", "linear_probe_", "retrieval_", "alignment", "uniformity", "effective_rank")


@dataclass(frozen=True)
class Measurement:
    """One model on the test split.

    Attributes:
        metrics: Name to value.
        scores: Name to one value per test image, for every metric that is a mean over images.
    """

    metrics: dict[str, float]
    scores: dict[str, Scores]


def measure(
    train: Predictions,
    val: Predictions,
    test: Predictions,
    *,
    ks: Sequence[int],
    knn_temperature: float,
    costs: FloatArray | None = None,
    groups: Sequence[str] | None = None,
) -> Measurement:
    """Measure a model on the test split. Temperature and probe are chosen on validation.

    `top5_accuracy` is there with more than five classes, the costs where they are given, `worst_group_accuracy` where
    an image has a group, `alignment` where a class has two images.

    Args:
        train: Without augmentation; the memory of the k-NN and the data of the linear probe.
        val: What chooses temperature and penalty.
        test: What is reported.
        ks: Numbers of neighbors.
        knn_temperature: Of the votes of the neighbors.
        costs: (K, K), a row per true class, a column per predicted one.
        groups: Of each test image, "" for none.
    """
    classifier = measure_classifier(val, test, costs=costs, groups=groups)
    encoder = measure_encoder(train, val, test, ks=ks, knn_temperature=knn_temperature)
    return Measurement(classifier.metrics | encoder.metrics, classifier.scores | encoder.scores)


def measure_classifier(
    val: Predictions, test: Predictions, *, costs: FloatArray | None = None, groups: Sequence[str] | None = None
) -> Measurement:
    """Measure what follows from logits: all of `measure` but `EMBEDDING_METRICS`. Arguments are the same."""
    temperature = fit_temperature(val.logits, val.labels)
    calibrated = test.logits / np.float32(temperature)
    scores = _head_scores(test, calibrated)
    if costs is not None:
        scores |= _cost_scores(test, calibrated, costs)
    metrics = {
        **_means(scores),
        **_split_metrics(test, groups),
        "ece": expected_calibration_error(test.logits, test.labels),
        "temperature": temperature,
        "ece_calibrated": expected_calibration_error(calibrated, test.labels),
    }
    return Measurement(metrics, scores)


def measure_encoder(
    train: Predictions, val: Predictions, test: Predictions, *, ks: Sequence[int], knn_temperature: float
) -> Measurement:
    """Measure what follows from embeddings: the `EMBEDDING_METRICS` of `measure`. Arguments are the same."""
    scores = neighbor_and_probe_scores(train, val, test, ks=ks, knn_temperature=knn_temperature)
    scores |= _retrieval_scores(test)
    return Measurement(_means(scores) | _geometry(test), scores)


def is_of_encoder(metric: str) -> bool:
    """Whether a metric follows from embeddings: one of `measure_encoder`."""
    return metric.startswith(EMBEDDING_METRICS)


def measure_head(predictions: Predictions) -> dict[str, float]:
    """Measure what follows from the logits of a split alone, without a temperature."""
    return {name: sums.value for name, sums in classifier_sums(predictions.logits, predictions.labels).items()}


def _head_scores(test: Predictions, calibrated: npt.NDArray[np.float32]) -> dict[str, Scores]:
    scores = {
        "accuracy": classification.per_image_accuracy(test.logits, test.labels),
        "nll": per_image_nll(test.logits, test.labels),
        "brier": per_image_brier(test.logits, test.labels),
        "nll_calibrated": per_image_nll(calibrated, test.labels),
        "brier_calibrated": per_image_brier(calibrated, test.labels),
    }
    if test.logits.shape[1] > classification.TOP:
        scores["top5_accuracy"] = classification.per_image_top5(test.logits, test.labels)
    return scores


def _cost_scores(test: Predictions, calibrated: npt.NDArray[np.float32], costs: FloatArray) -> dict[str, Scores]:
    return {
        "expected_cost": classification.per_image_cost(test.logits, test.labels, costs),
        "expected_cost_bayes_calibrated": classification.per_image_bayes_cost(calibrated, test.labels, costs),
    }


def neighbor_and_probe_scores(
    train: Predictions, val: Predictions, test: Predictions, *, ks: Sequence[int], knn_temperature: float
) -> dict[str, Scores]:
    """Return whether k-NN and linear probe are right, for each row of `test`. Arguments are those of `measure`."""
    votes = knn_predictions(
        torch.from_numpy(train.embeddings),
        torch.from_numpy(train.labels),
        torch.from_numpy(test.embeddings),
        ks=ks,
        temperature=knn_temperature,
        num_classes=test.logits.shape[1],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")  # few images per class are no fault
        probe = linear_probe(*((split.embeddings, split.labels) for split in (train, val, test)))
    return {
        **{f"knn_top1_k{k}_t{knn_temperature:g}": _is_right(votes[k].numpy(), test) for k in ks},
        "linear_probe_top1": _is_right(probe.predictions, test),
    }


def _retrieval_scores(test: Predictions) -> dict[str, Scores]:
    retrieval = retrieve(test.embeddings, test.labels)
    return {
        "retrieval_map": retrieval.average_precision,
        **{f"retrieval_recall_k{k}": values for k, values in retrieval.recall.items()},
    }


def _split_metrics(test: Predictions, groups: Sequence[str] | None) -> dict[str, float]:
    """Return the metrics that are of the split as a whole."""
    metrics = {
        "f1_macro": classification.f1_macro(test.logits, test.labels),
        "worst_class_accuracy": classification.worst_class_accuracy(test.logits, test.labels),
    }
    worst = classification.worst_group_accuracy(test.logits, test.labels, groups) if groups is not None else None
    return metrics if worst is None else metrics | {"worst_group_accuracy": worst}


def _geometry(test: Predictions) -> dict[str, float]:
    embeddings, labels = torch.from_numpy(test.embeddings), torch.from_numpy(test.labels)
    metrics = {"uniformity": uniformity(embeddings), "effective_rank": effective_rank(embeddings)}
    has_pairs = np.bincount(test.labels).max() > 1
    return {"alignment": alignment(embeddings, labels)} | metrics if has_pairs else metrics


def _means(scores: Mapping[str, Scores]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in scores.items()}


def _is_right(predicted: npt.NDArray[np.int64], test: Predictions) -> Scores:
    return np.equal(predicted, test.labels).astype(np.float64)
