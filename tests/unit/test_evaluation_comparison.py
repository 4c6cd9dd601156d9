"""Paired bootstrap, tests, Holm's correction, several seeds, and the words for them."""

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import bootstrap

from grpo_rm.evaluation.comparison import (
    Interval,
    SeedSpread,
    compare_metrics,
    correct,
    describe,
    holm,
    paired_bootstrap,
    seed_spread,
    shown,
)
from grpo_rm.evaluation.metric_sums import classifier_sums
from grpo_rm.evaluation.proportions import mcnemar
from grpo_rm.evaluation.resampling import mean_sums


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


def test_scipy_says_the_same():
    candidate, control = np.random.default_rng(7).normal(size=(2, 80))
    expected = bootstrap(
        (candidate - control,), np.mean, method="percentile", n_resamples=500, rng=np.random.default_rng(3)
    ).confidence_interval
    interval = paired_bootstrap(candidate, control, num_resamples=500, seed=3)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), rel=1e-12)


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


def logits_of(labels, rng, sharpness=2.5):
    return (sharpness * np.eye(5)[labels] + rng.normal(size=(len(labels), 5))).astype(np.float32)


def heads(count=120, seed=0, sharpness=(2.5, 2.5)):
    """The metrics of two models that answer the same images."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    return [classifier_sums(logits_of(labels, rng, value), labels) for value in sharpness]


def means(candidate, control):
    return [{"score": mean_sums(candidate)}], [{"score": mean_sums(control)}]


def test_every_metric_is_compared_on_the_same_resamples():
    candidate, control = heads(sharpness=(4.0, 2.0))
    compared = compare_metrics([candidate], [control], num_resamples=300, seed=0)
    assert set(compared) == {"accuracy", "nll", "brier", "f1_macro", "worst_class_accuracy", "ece"}
    for name, interval in compared.items():
        alone = compare_metrics([{name: candidate[name]}], [{name: control[name]}], num_resamples=300, seed=0)
        assert alone == {name: interval}
        assert interval.difference == pytest.approx(candidate[name].value - control[name].value)
    words = {name: describe(interval, higher_is_better=name != "nll") for name, interval in compared.items()}
    assert words["f1_macro"].startswith("better") and words["nll"].startswith("better")


def test_a_model_does_not_differ_from_itself():
    model, _ = heads()
    compared = correct(compare_metrics([model], [model], num_resamples=200, confidence=0.9, seed=0))
    share = compared.pop("accuracy")
    assert share.low == -share.high < share.difference == 0 and share.p_corrected == 1
    for interval in compared.values():
        assert interval == Interval(0.0, 0.0, 0.0, 0.9, 120, 1.0, 1.0)


def test_candidate_minus_control_is_the_mirror_of_control_minus_candidate():
    one, other = heads(sharpness=(3.0, 2.0))
    forward = compare_metrics([one], [other], num_resamples=300, seed=0)
    backward = compare_metrics([other], [one], num_resamples=300, seed=0)
    for name, interval in forward.items():
        assert (interval.low, interval.high) == pytest.approx((-backward[name].high, -backward[name].low), abs=1e-9)
        assert interval.p_value == backward[name].p_value


def test_right_and_wrong_is_tested_by_mcnemar():
    """11 to 2 discordant images; the bootstrap alone, p = .01, would be bolder."""
    candidate, control = right(40, 11, 2, 20)
    (interval,) = compare_metrics(*means(candidate, control), num_resamples=4000, seed=0).values()
    assert interval.p_value == mcnemar(candidate, control).p_value == pytest.approx(2 * (1 + 13 + 78) / 2**13)


def test_scores_are_tested_by_flipping_signs():
    """Ten images, all better: of the 2^10 flips only two are as extreme. The bootstrap sees no other sign at all."""
    control = np.zeros(10)
    (interval,) = compare_metrics(*means(np.linspace(1, 2, 10), control), num_resamples=20_000, seed=0).values()
    assert interval.p_value == pytest.approx(2 / 2**10, rel=0.3)


def test_no_p_value_is_smaller_than_the_resamples_can_tell():
    (interval,) = compare_metrics(*means(np.linspace(1, 2, 40), np.zeros(40)), num_resamples=99, seed=0).values()
    assert interval.p_value == 0.02


@pytest.mark.parametrize("seed", range(8))
def test_interval_and_words_do_not_contradict_the_test(seed):
    """Near the border, where a test and an interval of their own often disagree."""
    rng = np.random.default_rng(seed)
    control = rng.normal(size=60)
    for shift in np.linspace(0.1, 0.4, 8):
        compared = compare_metrics(*means(control + rng.normal(shift, 1, 60), control), num_resamples=300, seed=0)
        (interval,) = correct(compared).values()
        is_shown = interval.p_corrected <= 0.05
        assert is_shown == describe(interval, higher_is_better=True).startswith(("better", "worse"))
        assert is_shown == (not shown(interval).low <= 0 <= shown(interval).high)
        if is_shown:
            assert shown(interval) == interval


def test_an_interval_is_widened_where_the_correction_shows_no_difference():
    interval = Interval(0.02, 0.01, 0.03, 0.95, 100, p_value=0.02, p_corrected=0.06)
    assert shown(interval) == dataclasses.replace(interval, low=0.0)
    assert describe(interval, higher_is_better=True, is_share=True) == "no difference shown (+0.00 to +3.00 points)"
    below = dataclasses.replace(interval, difference=-0.02, low=-0.03, high=-0.01)
    assert describe(below, higher_is_better=True) == "no difference shown (-0.0300 to +0.0000)"
    assert describe(dataclasses.replace(interval, p_corrected=0.05), higher_is_better=True).startswith("better")
    assert (
        describe(dataclasses.replace(interval, p_corrected=0.06, confidence=0.9), higher_is_better=False)[:5] == "worse"
    )


def naive_holm(p_values):
    """Go through the sorted p values as the textbook does: the corrected p is the least alpha that rejects."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, so_far = [0.0] * len(p_values), 0.0
    for step, index in enumerate(order):
        so_far = max(so_far, (len(p_values) - step) * p_values[index])
        corrected[index] = min(1.0, so_far)
    return corrected


def test_holm_golden():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4]) == [0.8, 0.8]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@pytest.mark.parametrize("count", [2, 5, 30])
def test_holm_naive_reference_and_properties(count):
    rng = np.random.default_rng(count)
    p_values = [float(p) for p in rng.choice([0.001, 0.01, 0.02, 0.3, *rng.random(5)], count)]  # with ties
    corrected = holm(p_values)
    assert corrected == pytest.approx(naive_holm(p_values))
    for one, raised in zip(p_values, corrected, strict=True):
        assert one <= raised <= min(1.0, count * one) + 1e-12  # between no correction and Bonferroni's
        assert all(raised <= other for p, other in zip(p_values, corrected, strict=True) if one <= p)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_holm_of_no_p_value(bad):
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm([0.5, bad])


def test_the_family_decides_the_correction():
    interval = Interval(0.02, 0.01, 0.03, 0.95, 100, p_value=0.03)
    untested = dataclasses.replace(interval, p_value=None)
    compared = {"a": interval, "b": interval, "c": untested}
    assert {name: one.p_corrected for name, one in correct(compared).items()} == {"a": 0.09, "b": 0.09, "c": 1.0}
    assert {name: one.p_corrected for name, one in correct(compared, ["a", "missing"]).items()} == {"a": 0.03}


def test_equal_models_seldom_seem_to_differ():
    """Five correlated metrics at once: at most about 5 % of the experiments show any difference."""
    false_alarms = 0
    for repetition in range(100):
        compared = compare_metrics(*([model] for model in heads(100, repetition)), num_resamples=200, seed=0)
        del compared["worst_class_accuracy"]
        false_alarms += any(interval.p_corrected <= 0.05 for interval in correct(compared).values())
    assert false_alarms <= 9  # more has a probability of 3 % where it is 5 %


def seeds_of(shifts, count=150):
    rng = np.random.default_rng(1)
    control = rng.normal(size=count)
    pairs = [means(control + shift + 0.5 * rng.normal(size=count), control) for shift in shifts]
    return [pair[0][0] for pair in pairs], [pair[1][0] for pair in pairs]


def test_one_seed_is_the_paired_bootstrap():
    candidate, control = np.random.default_rng(0).normal(size=(2, 50))
    (interval,) = compare_metrics(*means(candidate, control), num_resamples=500, seed=4).values()
    assert dataclasses.replace(interval, p_value=None) == paired_bootstrap(
        candidate, control, num_resamples=500, seed=4
    )


def test_several_seeds_naive_reference():
    candidates, controls = seeds_of([0.0, 0.1, 0.5])
    interval = compare_metrics(candidates, controls, num_resamples=4000, seed=0)["score"]
    rng = np.random.default_rng(9)
    differences = np.stack(
        [(a["score"].terms - b["score"].terms).toarray()[0] for a, b in zip(candidates, controls, strict=True)]
    )
    widening = 4.302653 / 1.959964 * math.sqrt(3 / 2)  # t with 2 degrees of freedom
    drawn = []
    for _ in range(4000):
        by_seed = differences[:, rng.integers(0, 150, 150)].mean(axis=1)
        drawn.append(by_seed.mean() + widening * (by_seed[rng.integers(0, 3, 3)].mean() - by_seed.mean()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert interval.difference == pytest.approx(differences.mean())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_seeds_that_disagree_show_nothing():
    agreeing = compare_metrics(*seeds_of([0.3, 0.3, 0.3]), num_resamples=500, seed=0)["score"]
    disagreeing = compare_metrics(*seeds_of([0.0, 0.1, 0.8]), num_resamples=500, seed=0)["score"]
    assert agreeing.p_value < 0.02 and agreeing.low > 0
    assert disagreeing.difference == pytest.approx(agreeing.difference)
    assert disagreeing.p_value > 0.05 and disagreeing.low < 0 < disagreeing.high


def test_spread_between_seeds():
    pairs = [means(np.full(4, value), np.zeros(4)) for value in (0.1, 0.2, 0.6)]
    candidates, controls = [pair[0][0] for pair in pairs], [pair[1][0] for pair in pairs]
    assert seed_spread(candidates, controls, "score") == SeedSpread(pytest.approx(0.3), pytest.approx(0.07**0.5), 3)
    assert seed_spread(candidates[:1], controls[:1], "score") == SeedSpread(0.1, None, 1)


@pytest.mark.parametrize(
    ("candidates", "controls", "message"),
    [
        ([], [], r"candidates of 0 seed\(s\)"),
        (means(np.zeros(3), np.zeros(3))[0], [], "controls of 0"),
        ([{"a": mean_sums(np.zeros(3))}], [{"b": mean_sums(np.zeros(3))}], "expected the same ones"),
        ([{}], [{}], "one or more"),
        ([{"a": mean_sums(np.zeros(3))}], [{"a": mean_sums(np.zeros(4))}], r"metrics on \[3, 4\] images"),
        (*means(np.zeros(1), np.zeros(1)), "at least 2"),
    ],
)
def test_what_cannot_be_compared_is_explained(candidates, controls, message):
    with pytest.raises(ValueError, match=message):
        compare_metrics(candidates, controls, seed=0)
