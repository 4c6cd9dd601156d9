"""Paired bootstrap, McNemar's test and the words for them."""

import math
import tracemalloc

import numpy as np
import pytest

from grpo_rm.evaluation.comparison import Interval, describe, mcnemar, paired_bootstrap


def naive_interval(candidate, control, seed, num_resamples=4000):
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(num_resamples):
        images = rng.integers(0, len(candidate), size=len(candidate))
        means.append(candidate[images].mean() - control[images].mean())
    return np.quantile(means, [0.025, 0.975])


def test_golden_of_three_images():
    """Differences 0, 0, 3: the resampled means are 0, 1, 2, 3 with 8, 12, 6, 1 of 27. 95 % reach from 0 to 3."""
    candidate, control = np.array([1.0, 2.0, 7.0]), np.array([1.0, 2.0, 4.0])
    assert paired_bootstrap(candidate, control, seed=0) == Interval(1.0, 0.0, 3.0, 0.95, 3)
    assert paired_bootstrap(candidate, control, confidence=0.2, seed=0) == Interval(1.0, 1.0, 1.0, 0.2, 3)


@pytest.mark.parametrize("is_share", [True, False])
def test_naive_reference(is_share):
    rng = np.random.default_rng(1)
    control = rng.random(300)
    candidate = control + rng.normal(0.05, 0.3, size=300)
    if is_share:
        candidate, control = candidate > 0.5, control > 0.5
    interval = paired_bootstrap(candidate, control, seed=3)
    low, high = naive_interval(candidate.astype(float), control.astype(float), seed=9)
    width = high - low
    assert interval.low == pytest.approx(low, abs=0.06 * width)
    assert interval.high == pytest.approx(high, abs=0.06 * width)
    assert interval.difference == pytest.approx(candidate.mean() - control.mean())
    assert interval.num_samples == 300


def test_large_sample_agrees_with_the_normal_interval_in_bounded_memory():
    rng = np.random.default_rng(2)
    candidate, control = rng.normal(0.1, 1, size=10_000), rng.normal(size=10_000)
    tracemalloc.start()
    interval = paired_bootstrap(candidate, control, num_resamples=2_000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    half = 1.96 * (candidate - control).std() / 100
    assert interval.low == pytest.approx(interval.difference - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.difference + half, abs=0.1 * half)
    assert peak < 200e6


def test_covers_the_true_difference():
    """Accuracies .70 and .76, correlated: about 95 % of the intervals hold the true difference, as they claim."""
    rng = np.random.default_rng(0)
    covered = 0
    for repetition in range(200):
        difficulty = rng.random(250)
        control, candidate = difficulty < 0.70, (difficulty + rng.choice([0.2, -0.2], 250)) % 1 < 0.76
        interval = paired_bootstrap(candidate, control, num_resamples=500, seed=repetition)
        covered += interval.low <= 0.06 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_deterministic_by_seed():
    rng = np.random.default_rng(4)
    candidate, control = rng.normal(size=(2, 50))
    first = paired_bootstrap(candidate, control, seed=1)
    assert paired_bootstrap(candidate, control, seed=1) == first
    assert paired_bootstrap(candidate, control, seed=2) != first


def test_pairing_narrows_and_swapping_mirrors():
    rng = np.random.default_rng(5)
    control = rng.normal(scale=10, size=100)
    candidate = control + 0.1
    paired = paired_bootstrap(candidate, control, seed=0)
    assert paired.low == pytest.approx(0.1)
    assert paired.high == pytest.approx(0.1)
    noisy = candidate + rng.normal(size=100)
    interval, mirrored = paired_bootstrap(noisy, control, seed=0), paired_bootstrap(control, noisy, seed=0)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))


def right(*counts):
    """Both right, only the candidate, only the control, both wrong: so many images each."""
    candidate = np.repeat([True, True, False, False], counts)
    return candidate, np.repeat([True, False, True, False], counts)


def test_mcnemar_golden():
    result = mcnemar(*right(50, 1, 7, 3))
    assert (result.only_candidate_right, result.only_control_right) == (1, 7)
    assert result.p_value == pytest.approx(2 * (1 + 8) / 2**8)


@pytest.mark.parametrize(("candidate_only", "control_only"), [(0, 6), (3, 9), (5, 5), (12, 4)])
def test_mcnemar_naive_reference(candidate_only, control_only):
    total, fewer = candidate_only + control_only, min(candidate_only, control_only)
    tail = sum(math.comb(total, i) for i in range(fewer + 1)) / 2**total
    assert mcnemar(*right(4, candidate_only, control_only, 2)).p_value == pytest.approx(min(1.0, 2 * tail))
    candidate, control = right(4, candidate_only, control_only, 2)
    assert mcnemar(control, candidate).p_value == mcnemar(candidate, control).p_value


def test_mcnemar_without_discordant_images():
    assert mcnemar(*right(5, 0, 0, 5)).p_value == 1.0
    assert mcnemar(np.array([1, 0]), np.array([1.0, 0.0])).p_value == 1.0


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "words"),
    [
        (0.008, 0.019, True, "better (+0.80 to +1.90 points)"),
        (-0.019, -0.008, True, "worse (-1.90 to -0.80 points)"),
        (-0.019, -0.008, False, "better (-1.90 to -0.80 points)"),
        (0.008, 0.019, False, "worse (+0.80 to +1.90 points)"),
        (-0.001, 0.019, True, "no difference shown (-0.10 to +1.90 points)"),
        (0.0, 0.019, True, "no difference shown (+0.00 to +1.90 points)"),
        (0.0, 0.0, False, "no difference shown (+0.00 to +0.00 points)"),
    ],
)
def test_words(low, high, higher_is_better, words):
    interval = Interval((low + high) / 2, low, high, 0.95, 100)
    assert describe(interval, higher_is_better=higher_is_better, is_share=True) == words


def test_words_of_other_units():
    assert describe(Interval(0.02, 0.0123, 0.03, 0.95, 9), higher_is_better=False) == "worse (+0.0123 to +0.0300)"


@pytest.mark.parametrize(
    ("candidate", "control", "message"),
    [
        (np.zeros(3), np.zeros(4), r"shapes \(3,\) and \(4,\)"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "same shape"),
        (np.zeros(0), np.zeros(0), "0 image"),
        (np.array([0.0, np.nan]), np.zeros(2), "NaN"),
        (np.zeros(2), np.array([0.0, np.inf]), "infinite"),
    ],
)
def test_bad_scores_are_explained(candidate, control, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(candidate, control, seed=0)
    with pytest.raises(ValueError, match=message):
        mcnemar(candidate, control)


def test_bad_settings_are_explained():
    scores = np.array([0.0, 1.0])
    with pytest.raises(ValueError, match="confidence = 95"):
        paired_bootstrap(scores, scores, confidence=95, seed=0)
    with pytest.raises(ValueError, match="num_resamples = 0"):
        paired_bootstrap(scores, scores, num_resamples=0, seed=0)
    with pytest.raises(ValueError, match="at least 2"):
        paired_bootstrap(scores[:1], scores[:1], seed=0)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        mcnemar(np.array([0.0, 0.5]), scores)
