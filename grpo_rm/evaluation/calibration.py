"""Are the probabilities as right as they claim? NLL, Brier score, ECE, temperature scaling, reliability diagram."""

from typing import TypedDict

import numpy as np
import numpy.typing as npt

from grpo_rm.evaluation.inputs import FloatArray, IntArray, check_logits

NUM_BINS = 15
MIN_TEMPERATURE = 0.1
MAX_TEMPERATURE = 100.0

Scores = npt.NDArray[np.float64]


class ReliabilityBin(TypedDict):
    """The images whose confidence falls in one bin: mean confidence, share that is right, number of images."""

    confidence: float
    accuracy: float
    count: int


def expected_calibration_error(logits: FloatArray, labels: IntArray) -> float:
    """Return how far confidence and accuracy are apart, in [0, 1], lower being better (Guo et al. 2017; torchmetrics).

    It is that of the top class over 15 equal-width bins, l1.

    Args:
        logits: (N, K), NumPy; divide them by a temperature first for the calibrated value.
        labels: (N,) class indices in range(K), NumPy.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    check_logits(logits, labels)
    probs, targets = torch.from_numpy(_top_label_probs(logits)), torch.tensor(labels, dtype=torch.int64)
    error = multiclass_calibration_error(probs, targets, num_classes=logits.shape[1], n_bins=NUM_BINS, norm="l1")
    return float(error)


def per_image_nll(logits: FloatArray, labels: IntArray) -> Scores:
    """Return -log p(label) in nats, (N,) float64, computed in log space so that it is finite at any confidence.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    from scipy.special import log_softmax

    check_logits(logits, labels)
    log_probs = log_softmax(logits.astype(np.float64), axis=1)
    return np.asarray(-log_probs[np.arange(len(labels)), labels], dtype=np.float64)


def per_image_brier(logits: FloatArray, labels: IntArray) -> Scores:
    """Return sum_k (p(k) - 1[k = label])^2, (N,) float64 in [0, 2] (Brier 1950, the multiclass form, not halved).

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    check_logits(logits, labels)
    errors = _probs(logits)
    errors[np.arange(len(labels)), labels] -= 1.0
    return np.asarray((errors**2).sum(axis=1), dtype=np.float64)


def fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """Find the temperature T that minimises the NLL of logits / T (Guo et al. 2017); fit it on validation images.

    The search is over log T with T in [0.1, 100]; the NLL has one minimum there. The lower bound matters where
    every validation image is classified rightly: the NLL then falls for ever as T -> 0, and T ends at 0.1. The upper
    bound is met only by logits no better than guessing. T = 1 is returned where no temperature gives a smaller NLL, so
    the validation NLL never rises.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.

    Raises:
        ValueError: see `inputs.check_logits`.
    """
    from scipy.optimize import minimize_scalar

    check_logits(logits, labels)

    def nll(log_temperature: float) -> float:
        return float(per_image_nll(logits / np.exp(log_temperature), labels).mean())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    fitted = minimize_scalar(nll, bounds=bounds, method="bounded")
    return float(np.exp(fitted.x)) if fitted.fun < nll(0.0) else 1.0


def reliability_bins(logits: FloatArray, labels: IntArray, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """Return the points of the reliability diagram, by rising confidence; empty bins are left out.

    With 15 bins, sum_b count_b / N * |accuracy_b - confidence_b| is `expected_calibration_error`.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.
        num_bins: bins of equal width over [0, 1], each with its lower edge; the last has its upper edge too.

    Raises:
        ValueError: see `inputs.check_logits`; fewer than one bin.
    """
    check_logits(logits, labels)
    if num_bins < 1:
        raise ValueError(f"got num_bins = {num_bins}; expected at least 1: 15 is the usual number")
    bins, confidences, is_right = bin_index(logits, labels, num_bins)
    return [_summary(confidences[bins == index], is_right[bins == index]) for index in np.unique(bins)]


def bin_index(
    logits: FloatArray, labels: IntArray, num_bins: int = NUM_BINS
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return of each image its bin, its confidence and whether it is right, (N,) each: what the ECE is made of.

    Args:
        logits: (N, K), NumPy.
        labels: (N,) class indices in range(K), NumPy.
        num_bins: bins of equal width over [0, 1].
    """
    import torch

    probs = _top_label_probs(logits)
    confidences = probs.max(axis=1)
    edges = torch.linspace(0.0, 1.0, num_bins + 1).numpy()  # NumPy's differ from torchmetrics' in the last digit
    bins = np.searchsorted(edges, confidences, side="right") - 1
    return bins, confidences, probs.argmax(axis=1) == labels


def _summary(confidences: FloatArray, is_right: npt.NDArray[np.bool_]) -> ReliabilityBin:
    confidence = float(confidences.mean(dtype=np.float64))
    return {"confidence": confidence, "accuracy": float(is_right.mean()), "count": len(is_right)}


def _top_label_probs(logits: FloatArray) -> npt.NDArray[np.float32]:
    """Return probabilities (N, K) for binning, below 1: torchmetrics gives exactly 1.0 a sixteenth bin of its own."""
    largest = np.nextafter(np.float32(1.0), np.float32(0.0))
    return np.minimum(_probs(logits).astype(np.float32), largest)


def _probs(logits: FloatArray) -> Scores:
    from scipy.special import softmax

    return np.asarray(softmax(logits.astype(np.float64), axis=1), dtype=np.float64)
