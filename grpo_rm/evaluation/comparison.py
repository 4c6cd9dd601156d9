"""Is a candidate better than a control on the same images? Paired bootstrap and McNemar's test."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[Any]

BLOCK_ELEMENTS = 2_000_000  # resampled scores held at once; SciPy needs about 24 bytes for each


@dataclass(frozen=True)
class Interval:
    """The mean difference candidate - control and its confidence interval."""

    difference: float
    low: float
    high: float
    confidence: float  # e.g. 0.95
    num_samples: int  # images


@dataclass(frozen=True)
class McNemar:
    """The images on which exactly one of two models is right, and the p value of their balance."""

    only_candidate_right: int
    only_control_right: int
    p_value: float


def paired_bootstrap(
    candidate: Scores, control: Scores, *, num_resamples: int = 10_000, confidence: float = 0.95, seed: int
) -> Interval:
    """Bound the mean difference of two models by the percentile bootstrap over images (Efron 1979; SciPy).

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
    from scipy.stats import bootstrap

    _check_pair(candidate, control, min_images=2)
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(
            f"got confidence = {confidence} and num_resamples = {num_resamples}; expected a confidence between 0 and 1 "
            "and at least 1 resample: 0.95 and 10000 are usual"
        )
    differences = candidate.astype(np.float64) - control.astype(np.float64)
    resampled = bootstrap(
        (differences,),
        np.mean,
        method="percentile",
        n_resamples=num_resamples,
        confidence_level=confidence,
        batch=max(1, BLOCK_ELEMENTS // len(differences)),
        rng=np.random.default_rng(seed),
    )
    low, high = resampled.confidence_interval
    return Interval(float(differences.mean()), float(low), float(high), confidence, len(differences))


def mcnemar(candidate_correct: Scores, control_correct: Scores) -> McNemar:
    """Test whether two models are right equally often (McNemar 1947; exact, two-sided, by the binomial distribution).

    Args:
        candidate_correct: (N,) NumPy, bool or 0 and 1: is the candidate right on the image?
        control_correct: (N,) the same for the control, in the same order.

    Returns:
        The counts of discordant images and the p value, 1 where there are none.

    Raises:
        ValueError: lengths that differ, no image, values other than 0 and 1.
    """
    from scipy.stats import binomtest

    _check_pair(candidate_correct, control_correct, min_images=1)
    if not (np.isin(candidate_correct, (0, 1)).all() and np.isin(control_correct, (0, 1)).all()):
        raise ValueError(
            "got values other than 0 and 1; expected right (1) or wrong (0) per image: pass predictions == labels"
        )
    is_right, is_control_right = candidate_correct.astype(bool), control_correct.astype(bool)
    only_candidate = int((is_right & ~is_control_right).sum())
    only_control = int((~is_right & is_control_right).sum())
    num_discordant = only_candidate + only_control
    p_value = float(binomtest(only_candidate, num_discordant).pvalue) if num_discordant else 1.0
    return McNemar(only_candidate, only_control, p_value)


def describe(interval: Interval, *, higher_is_better: bool, is_share: bool = False) -> str:
    """Say in words what an interval shows: "better", "worse" or, where it contains 0, "no difference shown".

    Args:
        interval: candidate - control.
        higher_is_better: True for accuracy and the like, False for NLL, Brier, ECE.
        is_share: the scores lie in [0, 1] and are told in percentage points.

    Returns:
        For example "better (+0.83 to +1.94 points)" or "worse (+0.0120 to +0.0312)".
    """
    if interval.low <= 0 <= interval.high:
        verdict = "no difference shown"
    else:
        verdict = "better" if (interval.low > 0) == higher_is_better else "worse"
    if is_share:
        return f"{verdict} ({100 * interval.low:+.2f} to {100 * interval.high:+.2f} points)"
    return f"{verdict} ({interval.low:+.4f} to {interval.high:+.4f})"


def _check_pair(candidate: Scores, control: Scores, *, min_images: int) -> None:
    if candidate.ndim != 1 or candidate.shape != control.shape:
        raise ValueError(
            f"got scores of shapes {candidate.shape} and {control.shape}; expected two of the same shape (images,): "
            "score both models on the same images in the same order"
        )
    if len(candidate) < min_images:
        raise ValueError(
            f"got scores of {len(candidate)} image(s); expected at least {min_images}: use a larger test split"
        )
    if not (np.isfinite(candidate).all() and np.isfinite(control).all()):
        raise ValueError(
            "got NaN or infinite scores; expected finite numbers: find the images whose score failed and repair them, "
            "or drop them for both models"
        )
