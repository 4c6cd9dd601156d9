"""NLL, Brier, ECE, temperature scaling and the reliability diagram."""

import math

import numpy as np
import pytest
from scipy.special import softmax

from grpo_rm.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    expected_calibration_error,
    fit_temperature,
    per_image_brier,
    per_image_nll,
    reliability_bins,
)


def calibration_metrics(logits, labels):
    return {
        "nll": per_image_nll(logits, labels).mean(),
        "brier": per_image_brier(logits, labels).mean(),
        "ece": expected_calibration_error(logits, labels),
    }


def sampled_labels(logits, rng):
    """Labels drawn from the softmax itself, so that the logits are calibrated."""
    probs = softmax(logits, axis=1)
    return (probs.cumsum(axis=1) < rng.random((len(probs), 1))).sum(axis=1)


def example(seed, num_images=400, num_classes=5, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(num_images, num_classes)) * scale).astype(np.float32)
    return logits, sampled_labels(logits, rng)


def naive_ece(logits, labels, num_bins):
    """The definition of Guo et al. 2017 by loops; the last bin includes confidence 1."""
    bins = [[] for _ in range(num_bins)]
    for row, label in zip(softmax(logits.astype(float), axis=1), labels, strict=True):
        bins[min(int(row.max() * num_bins), num_bins - 1)].append((row.max(), row.argmax() == label))
    gaps = [abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins]
    return sum(gaps) / len(labels)


def ece_from_bins(bins):
    total = sum(b["count"] for b in bins)
    return sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / total


def test_golden():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]))
    labels = np.array([0, 2])
    metrics = calibration_metrics(logits, labels)
    assert metrics["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.2)) / 2)
    assert metrics["brier"] == pytest.approx((0.09 + 0.04 + 0.01 + 0.25 + 0.09 + 0.64) / 2)
    assert metrics["ece"] == pytest.approx((0.3 + 0.5) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_naive_reference(seed):
    from sklearn.metrics import log_loss

    logits, labels = example(seed)
    probs = softmax(logits.astype(float), axis=1)
    metrics = calibration_metrics(logits, labels)
    assert metrics["nll"] == pytest.approx(log_loss(labels, probs, labels=range(5)))
    brier = sum((probs[i, k] - (labels[i] == k)) ** 2 for i in range(len(labels)) for k in range(5)) / len(labels)
    assert metrics["brier"] == pytest.approx(brier)
    assert metrics["ece"] == pytest.approx(naive_ece(logits, labels, 15), abs=1e-6)


def test_extremes_are_finite():
    logits = np.array([[1e4, 0.0], [1e4, 0.0]], dtype=np.float32)
    metrics = calibration_metrics(logits, np.array([0, 1]))
    assert metrics["nll"] == pytest.approx(5e3)
    assert metrics["brier"] == pytest.approx(1.0)  # 0 and the maximum, 2
    assert metrics["ece"] == pytest.approx(0.5, abs=1e-6)


def test_shifting_logits_changes_nothing():
    logits, labels = example(1)
    shifted = logits.astype(np.float64) + np.random.default_rng(0).normal(size=(len(labels), 1))
    assert calibration_metrics(shifted, labels) == pytest.approx(calibration_metrics(logits, labels), abs=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 30.0, 300.0])  # 0: all ties; 300: most confidences round to 1
def test_reliability_bins_give_the_ece(scale):
    logits, labels = example(2, scale=scale)
    bins = reliability_bins(logits, labels)
    assert ece_from_bins(bins) == pytest.approx(calibration_metrics(logits, labels)["ece"], abs=1e-6)
    assert sum(b["count"] for b in bins) == len(labels)
    assert len(bins) <= 15
    assert all(b["count"] > 0 for b in bins)
    assert [b["confidence"] for b in bins] == sorted(b["confidence"] for b in bins)


def test_full_confidence_shares_the_last_bin():
    """torchmetrics alone keeps confidence 1 apart; the two errors of the last bin would then not cancel."""
    logits = np.array([[50.0, 0.0], [3.5, 0.0]])  # confidences 1 and 0.97
    labels = np.array([1, 0])
    assert len(reliability_bins(logits, labels)) == 1
    assert calibration_metrics(logits, labels)["ece"] == pytest.approx(naive_ece(logits, labels, 15), abs=1e-6)


def test_reliability_bins_golden():
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    bins = reliability_bins(np.log(probs), np.array([0, 1, 0]), num_bins=4)
    assert bins[0] == pytest.approx({"confidence": 0.6, "accuracy": 1.0, "count": 1})
    assert bins[1] == pytest.approx({"confidence": 0.85, "accuracy": 0.5, "count": 2})


def test_reliability_bins_own_their_lower_edge():
    logits = np.log(np.array([[0.45, 0.35, 0.2], [0.5, 0.25, 0.25], [0.6, 0.2, 0.2]]))
    assert [b["count"] for b in reliability_bins(logits, np.array([0, 0, 0]), num_bins=2)] == [1, 2]


@pytest.mark.parametrize("true_temperature", [0.3, 1.0, 4.0])
def test_temperature_is_recovered(true_temperature):
    logits, labels = example(3, num_images=20_000)
    assert fit_temperature(logits * true_temperature, labels) == pytest.approx(true_temperature, rel=0.03)


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_temperature_is_the_minimum(scale):
    logits, labels = example(4)
    logits = logits * scale

    def nll(temperature):
        return calibration_metrics(logits / temperature, labels)["nll"]

    fitted = fit_temperature(logits, labels)
    grid = np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 300)
    assert nll(fitted) <= min(nll(t) for t in grid) + 1e-9
    assert nll(fitted) <= nll(1.0)


def test_temperature_of_separated_images_is_the_lower_bound():
    labels = np.array([0, 1, 2, 0])
    assert fit_temperature(np.eye(3)[labels], labels) == pytest.approx(MIN_TEMPERATURE, rel=1e-3)


def test_temperature_of_images_all_wrong_is_the_upper_bound():
    labels = np.array([0, 1, 2, 0])
    assert fit_temperature(np.eye(3)[(labels + 1) % 3], labels) == pytest.approx(MAX_TEMPERATURE, rel=1e-3)


def test_temperature_is_one_where_none_is_better():
    labels = np.array([0, 1, 2, 0])
    assert fit_temperature(1e5 * np.eye(3)[labels], labels) == 1.0  # the NLL is 0 already
    assert fit_temperature(np.zeros((4, 3)), labels) == 1.0  # log 3 at any temperature


@pytest.mark.parametrize(
    "function", [per_image_nll, per_image_brier, expected_calibration_error, fit_temperature, reliability_bins]
)
def test_bad_input_is_explained(function):
    with pytest.raises(ValueError, match="1 of 2 images"):
        function(np.array([[0.0, np.nan], [0.0, 1.0]]), np.array([0, 1]))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        function(np.zeros((2, 2)), np.array([0, 2]))


def test_bad_number_of_bins_is_explained():
    with pytest.raises(ValueError, match="num_bins = 0"):
        reliability_bins(np.zeros((2, 2)), np.array([0, 1]), num_bins=0)


def test_read_only_arrays_are_accepted():
    logits, labels = example(5)
    expected = calibration_metrics(logits, labels)
    logits.flags.writeable = labels.flags.writeable = False
    assert calibration_metrics(logits, labels) == expected
