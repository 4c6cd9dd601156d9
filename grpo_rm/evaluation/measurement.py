"""All metrics of one model, and the scores of each test image that a paired comparison needs."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from grpo_rm.evaluation.calibration import calibration_metrics, fit_temperature, per_image_brier, per_image_nll
from grpo_rm.evaluation.classification import classification_metrics
from grpo_rm.evaluation.geometry import alignment, effective_rank, uniformity
from grpo_rm.evaluation.knn import knn_predictions
from grpo_rm.evaluation.linear_probe import linear_probe
from grpo_rm.inference import Predictions

Scores = npt.NDArray[np.float64]  # (N,), one value per test image


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
    train: Predictions, val: Predictions, test: Predictions, *, ks: Sequence[int], knn_temperature: float
) -> Measurement:
    """Measure a model on the test split. Temperature and probe are chosen on validation.

    Args:
        train: Without augmentation; the memory of the k-NN and the data of the linear probe.
        val: What chooses temperature and penalty.
        test: What is reported.
        ks: Numbers of neighbors.
        knn_temperature: Of the votes of the neighbors.
    """
    temperature = fit_temperature(val.logits, val.labels)
    calibrated = test.logits / np.float32(temperature)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")  # few images per class are no fault
        classification = classification_metrics(test.logits, test.labels)
        scores = _head_scores(test, calibrated) | _embedding_scores(train, val, test, ks, knn_temperature)
    embeddings, labels = torch.from_numpy(test.embeddings), torch.from_numpy(test.labels)
    metrics = {
        **{name: float(values.mean()) for name, values in scores.items()},
        **classification,
        **calibration_metrics(test.logits, test.labels),
        "temperature": temperature,
        **{f"{name}_calibrated": value for name, value in calibration_metrics(calibrated, test.labels).items()},
        "alignment": alignment(embeddings, labels),
        "uniformity": uniformity(embeddings),
        "effective_rank": effective_rank(embeddings),
    }
    return Measurement(metrics, scores)


def _head_scores(test: Predictions, calibrated: npt.NDArray[np.float32]) -> dict[str, Scores]:
    return {
        "accuracy": _is_right(test.logits.argmax(axis=1), test),
        "nll": per_image_nll(test.logits, test.labels),
        "brier": per_image_brier(test.logits, test.labels),
        "nll_calibrated": per_image_nll(calibrated, test.labels),
        "brier_calibrated": per_image_brier(calibrated, test.labels),
    }


def _embedding_scores(
    train: Predictions, val: Predictions, test: Predictions, ks: Sequence[int], temperature: float
) -> dict[str, Scores]:
    votes = knn_predictions(
        torch.from_numpy(train.embeddings),
        torch.from_numpy(train.labels),
        torch.from_numpy(test.embeddings),
        ks=ks,
        temperature=temperature,
        num_classes=test.logits.shape[1],
    )
    probe = linear_probe(*((split.embeddings, split.labels) for split in (train, val, test)))
    scores = {f"knn_top1_k{k}_t{temperature:g}": _is_right(votes[k].numpy(), test) for k in ks}
    return scores | {"linear_probe_top1": _is_right(probe.predictions, test)}


def _is_right(predicted: npt.NDArray[np.int64], test: Predictions) -> Scores:
    return np.equal(predicted, test.labels).astype(np.float64)
