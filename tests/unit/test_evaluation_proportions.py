"""The interval that few images need: by hand, in its limits, and what it lets pass."""

import numpy as np
import pytest

from grpo_rm.evaluation.comparison import compare_metrics, correct, shown
from grpo_rm.evaluation.proportions import adjusted_bounds
from grpo_rm.evaluation.resampling import mean_sums


def compare(differences, **options):
    """Compare a candidate and a control that are right where the difference is 1 and -1; 0: both are."""
    candidate, control = (differences >= 0).astype(float), (differences <= 0).astype(float)
    sums = ({"accuracy": mean_sums(scores, is_share=True)} for scores in (candidate, control))
    return compare_metrics(*([each] for each in sums), **({"num_resamples": 500, "seed": 0} | options))["accuracy"]


def test_by_hand():
    """12 images, on 3 of which the candidate alone is right and on 1 the control: p12 = 4/14 and p21 = 2/14."""
    differences = np.array([1.0, 1, 1, -1, *[0] * 8])
    low, high, p_value = adjusted_bounds(differences, 0.95)
    error = np.sqrt((4 / 14 + 2 / 14 - (2 / 14) ** 2) / 14)
    assert (low, high) == pytest.approx((2 / 14 - 1.959964 * error, 2 / 14 + 1.959964 * error), abs=1e-6)
    assert 0.3 < p_value < 0.5


@pytest.mark.parametrize("size", [2, 8, 60, 10_000])
def test_agreement_on_all_images_bounds_the_more_the_more_images_there_are(size):
    interval = compare(np.zeros(size))
    reach = 1.959964 * np.sqrt(2) / (size + 2)
    assert (interval.low, interval.difference, interval.high) == pytest.approx((-reach, 0.0, reach), abs=1e-6)
    assert interval.p_value == 1


def test_interval_and_p_value_agree():
    rng = np.random.default_rng(0)
    for _ in range(60):
        rates = rng.dirichlet([1, 1, 6])
        interval = compare(rng.choice([1.0, -1.0, 0.0], p=rates, size=int(rng.integers(4, 120))))
        is_shown = correct({"accuracy": interval})["accuracy"].p_corrected <= 0.05
        read = shown(correct({"accuracy": interval})["accuracy"])
        assert is_shown == (not read.low <= 0 <= read.high)


def test_a_candidate_that_is_worse_by_more_than_the_margin_seldom_passes_on_few_images():
    rng = np.random.default_rng(1)
    passed = [compare(-(rng.random(30) < 0.0201).astype(float)).low >= -0.02 for _ in range(200)]
    assert sum(passed) == 0  # more than half of them, by the bootstrap alone


def test_what_is_no_share_is_left_as_it_is():
    one, other = np.array([0.2, 0.9, 0.4, 0.1]), np.array([0.3, 0.8, 0.4, 0.2])
    intervals = [
        compare_metrics(
            [{"m": mean_sums(one, is_share=is_share)}], [{"m": mean_sums(other, is_share=is_share)}], seed=0
        )["m"]
        for is_share in (False, True)
    ]
    assert intervals[1].low < intervals[0].low and intervals[1].high > intervals[0].high


def test_several_seeds_are_bounded_too():
    sums = [{"accuracy": mean_sums(np.ones(30), is_share=True)}] * 3
    interval = compare_metrics(sums, sums, num_resamples=500, seed=0)["accuracy"]
    assert interval.high == pytest.approx(1.959964 * np.sqrt(2) / 32, abs=1e-6) == -interval.low
