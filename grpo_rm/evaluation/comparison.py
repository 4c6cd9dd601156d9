"""Is a candidate better than a control on the same images? Interval, test, correction for many metrics, and words.

What is read has to agree with itself, so one number decides: the corrected p value. It is the largest p value of an
exact test that both models are the same (McNemar, or swapping the models per image), of the bootstrap (the level at
which its interval begins to leave out 0), and for shares of the interval of `proportions`, corrected over the metrics
that are looked at together. So where a difference is shown, the interval leaves out 0; and where it is not, `shown`
widens the interval to reach 0, which costs width and never coverage.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grpo_rm.evaluation.inputs import check_pair
from grpo_rm.evaluation.proportions import adjusted_bounds, mcnemar
from grpo_rm.evaluation.resampling import (
    Metrics,
    MetricSums,
    Sums,
    bootstrap_differences,
    mean_sums,
    resample_seeds,
    swapped_differences,
)

Scores = npt.NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """The difference candidate - control of a metric, its confidence interval, and its test."""

    difference: float
    low: float
    high: float
    confidence: float  # e.g. 0.95
    num_samples: int  # images
    p_value: float | None = None  # None: not tested
    p_corrected: float | None = None  # by Holm, over the metrics that are looked at together


@dataclass(frozen=True)
class SeedSpread:
    """The difference of a metric over training seeds."""

    mean: float
    standard_deviation: float | None  # between seeds (n - 1); None with one seed
    num_seeds: int


def paired_bootstrap(
    candidate: Scores, control: Scores, *, num_resamples: int = 10_000, confidence: float = 0.95, seed: int
) -> Interval:
    """Bound the mean difference of two models by the percentile bootstrap over images (Efron 1979).

    Whole images are resampled, so the pairing, and with it what both models find hard, is kept.

    Args:
        candidate: (N,) NumPy, a score per image: right or wrong as 1 or 0, NLL, Brier score...
        control: (N,) scores of the other model on the same images in the same order.
        num_resamples: bootstrap resamples.
        confidence: coverage of the interval, between 0 and 1.
        seed: the same seed gives the same interval.

    Returns:
        The interval of candidate - control, in the unit of the scores.

    Raises:
        ValueError: lengths that differ, fewer than two images, NaN or infinite scores, confidence or num_resamples out
            of range.
    """
    check_pair(candidate, control, min_images=2)
    _check_settings(num_resamples, confidence)
    pair = {"": mean_sums(candidate)}, {"": mean_sums(control)}
    drawn = bootstrap_differences([pair[0]], [pair[1]], num_resamples=num_resamples, seed=seed)[""]
    return _interval(pair[0][""].value - pair[1][""].value, drawn[0], confidence, len(candidate))


def compare_metrics(
    candidates: Sequence[Metrics],
    controls: Sequence[Metrics],
    *,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int,
) -> dict[str, Interval]:
    """Compare two recipes by every metric, trained with one seed or several; p values are not corrected yet.

    One seed: the paired percentile bootstrap over images, all metrics on the same resamples. Shares (accuracy, k-NN...)
    have at least the width of an adjusted Wald interval (Bonett & Price 2012): of 30 images on which both models agree
    every resample shows no difference at all, and says nothing.

    Several: the interval is about another training on other images. Images and seeds are both resampled (two levels,
    crossed, as all seeds answer the same images; Owen 2007). A few seeds say little of their own spread, so what the
    draw of seeds adds is widened by t / z * sqrt(n / (n - 1)) (after Hesterberg 2015): 2.7 times at n = 3.

    Coverage of the 95 % interval, simulated. Images alone: 93 to 96 % for accuracy, macro F1, NLL and Brier score, at
    200 images and at 2,000; the worst class is too wide (99 %); ECE, which is biased on resamples, 85 to 98 % at 200
    images and 95 % at 2,000. Seeds, n = 3: 97 % where they spread much more than images do (83 % without the widening),
    99 % and more where they spread less: it errs on the wide side, and three seeds seldom show what is not obvious.
    With fewer images shares alone are safe: of candidates that are worse by just more than 2 points, a margin of 2
    points lets 0 to 2 % pass at 30 to 100 images and 2 to 6 % at 300; the bootstrap alone, 4 to 55 %.
    With Holm's correction, five metrics of equal models showed a difference in 3.5 % of tests with 200 images.

    Args:
        candidates: The metrics of the candidate of each training seed, by name, on the same images in the same order.
        controls: The same of the controls.
        num_resamples: Of the bootstrap, and of the swaps of the test.
        confidence: Coverage of the intervals, between 0 and 1.
        seed: Of the resampling.

    Returns:
        Name to interval with its p value: the largest one of the bootstrap's, the test's and a share's. With several
        seeds the test is about these trainings alone; the bootstrap's covers the seeds.

    Raises:
        ValueError: no seed, numbers of seeds, names or images that differ, fewer than two images, confidence or
            num_resamples out of range.
    """
    _check_settings(num_resamples, confidence)
    num_images = _check_metrics(candidates, controls)
    settings = {"num_resamples": num_resamples, "seed": seed}
    drawn = bootstrap_differences(candidates, controls, **settings)
    swapped = swapped_differences(candidates, controls, **settings)
    compared = {}
    for name, resamples in drawn.items():
        pairs = [(one[name], other[name]) for one, other in zip(candidates, controls, strict=True)]
        difference = float(np.mean([one.value - other.value for one, other in pairs]))
        both_levels = resample_seeds(resamples, confidence, seed)
        interval = _interval(difference, both_levels, confidence, num_images)
        p_value = max(_bootstrap_p(both_levels), _test_p(pairs, difference, swapped[name].mean(axis=0)))
        compared[name] = _widened(replace(interval, p_value=p_value), pairs)
    return compared


def seed_spread(candidates: Sequence[Metrics], controls: Sequence[Metrics], name: str) -> SeedSpread:
    """Return how the difference of a metric spreads over training seeds."""
    pairs = zip(candidates, controls, strict=True)
    differences = [one[name].value - other[name].value for one, other in pairs]
    deviation = float(np.std(differences, ddof=1)) if len(differences) > 1 else None
    return SeedSpread(float(np.mean(differences)), deviation, len(differences))


def correct(intervals: Mapping[str, Interval], family: Collection[str] | None = None) -> dict[str, Interval]:
    """Set the p values corrected over a family of metrics (all where None), and return the family's intervals.

    What was not tested, or in vain (NaN), counts as p = 1: it shows nothing.
    """
    chosen = {name: interval for name, interval in intervals.items() if family is None or name in family}
    p_values = [math.nan if interval.p_value is None else interval.p_value for interval in chosen.values()]
    corrected = holm([1.0 if math.isnan(p) else p for p in p_values])
    return {
        name: replace(interval, p_corrected=p) for (name, interval), p in zip(chosen.items(), corrected, strict=True)
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number m: the i-th smallest times m - i + 1, never below a smaller one (Holm 1979).

    Rejecting what is at most alpha then errs in one or more of the m with a probability of at most alpha, however the
    tests depend on each other.

    Raises:
        ValueError: a p value that is NaN or outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"got p values {list(p_values)}; expected numbers from 0 to 1")
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(raised, 1.0)
    return [float(value) for value in corrected]


def shown(interval: Interval) -> Interval:
    """Return the interval as it is read: widened to reach 0 where its corrected p value shows no difference."""
    if interval.p_corrected is None or interval.p_corrected <= 1 - interval.confidence:
        return interval
    return replace(interval, low=min(interval.low, 0.0), high=max(interval.high, 0.0))


def describe(interval: Interval, *, higher_is_better: bool, is_share: bool = False) -> str:
    """Say in words what a comparison shows: "better", "worse" or, where the interval reaches 0, "no difference shown".

    Args:
        interval: candidate - control; where it is corrected, as `shown`.
        higher_is_better: True for accuracy and the like, False for NLL, Brier, ECE.
        is_share: the scores lie in [0, 1] and are told in percentage points.

    Returns:
        For example "better (+0.83 to +1.94 points)" or "worse (+0.0120 to +0.0312)".
    """
    read = shown(interval)
    if read.low <= 0 <= read.high:
        verdict = "no difference shown"
    else:
        verdict = "better" if (read.low > 0) == higher_is_better else "worse"
    if is_share:
        return f"{verdict} ({100 * read.low:+z.2f} to {100 * read.high:+z.2f} points)"
    return f"{verdict} ({read.low:+z.4f} to {read.high:+z.4f})"


def _interval(difference: float, resamples: Sums, confidence: float, num_images: int) -> Interval:
    low, high = np.quantile(resamples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(difference, float(low), float(high), confidence, num_images)


def _widened(interval: Interval, pairs: Sequence[tuple[MetricSums, MetricSums]]) -> Interval:
    """Widen the interval of a share to `proportions.adjusted_bounds`, and raise its p value to theirs."""
    if not all(model.is_share for pair in pairs for model in pair):
        return interval
    scores = np.array([[model.terms.toarray()[0] for model in pair] for pair in pairs])  # (seeds, 2, N)
    low, high, p_value = adjusted_bounds((scores[:, 0] - scores[:, 1]).mean(axis=0), interval.confidence)
    p_value = max(p_value, interval.p_value or 0.0)
    return replace(interval, low=min(interval.low, low), high=max(interval.high, high), p_value=p_value)


def _bootstrap_p(resamples: Sums) -> float:
    """Return the level at which the percentile interval begins to leave out 0."""
    tail = min((resamples <= 0).sum(), (resamples >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(resamples) + 1)))


def _test_p(pairs: Sequence[tuple[MetricSums, MetricSums]], difference: float, swapped: Sums) -> float:
    """Test that both models are the same: McNemar's for one pair of right and wrong, else the share of larger swaps."""
    if len(pairs) == 1:
        scores = [model.terms.toarray() for model in pairs[0]]
        if all(one.shape[0] == 1 and np.isin(one, (0, 1)).all() for one in scores):
            return mcnemar(scores[0][0], scores[1][0]).p_value
    as_large = np.abs(swapped) >= abs(difference) * (1 - 1e-9)  # as large as this but for rounding
    return float((as_large.sum() + 1) / (len(swapped) + 1))


def _check_settings(num_resamples: int, confidence: float) -> None:
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(
            f"got confidence = {confidence} and num_resamples = {num_resamples}; expected a confidence between 0 and 1 "
            "and at least 1 resample: 0.95 and 10000 are usual"
        )


def _check_metrics(candidates: Sequence[Metrics], controls: Sequence[Metrics]) -> int:
    """Return the number of images, the same for all."""
    if len(candidates) != len(controls) or not candidates:
        raise ValueError(
            f"got candidates of {len(candidates)} seed(s) and controls of {len(controls)}; expected as many, "
            "and one or more: train both with the same seeds"
        )
    names = [sorted(model) for model in (*candidates, *controls)]
    if any(other != names[0] for other in names) or not names[0]:
        raise ValueError(f"got metrics {names}; expected the same ones of every model, and one or more")
    sizes = {metric.num_images for model in (*candidates, *controls) for metric in model.values()}
    if len(sizes) > 1 or min(sizes) < 2:
        raise ValueError(
            f"got metrics on {sorted(sizes)} images; expected the same images for all, and at least 2: compare each "
            "test set by itself"
        )
    return sizes.pop()
