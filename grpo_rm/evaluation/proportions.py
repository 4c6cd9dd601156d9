"""Two models on the same images by what is right or wrong: McNemar's test, and an interval that few images need."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grpo_rm.evaluation.inputs import check_pair

Scores = npt.NDArray[Any]


@dataclass(frozen=True)
class McNemar:
    """The images on which exactly one of two models is right, and the p value of their balance."""

    only_candidate_right: int
    only_control_right: int
    p_value: float


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

    check_pair(candidate_correct, control_correct, min_images=1)
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


def adjusted_bounds(differences: Scores, confidence: float) -> tuple[float, float, float]:
    """Bound the mean difference of two shares by an adjusted Wald interval (Bonett & Price 2012), and test it.

    Two images are added, on one of which the candidate alone is right and on the other the control alone, each counted
    as one: so the interval has a width where the models agree on all images. Ours: the same for scores between right
    and wrong, such as the mean over corruptions or over training seeds.

    Args:
        differences: (N,) NumPy, candidate - control of each image, in [-1, 1].
        confidence: of the interval, between 0 and 1.

    Returns:
        Low, high and the two-sided p value of no difference.
    """
    from scipy.stats import norm

    size = len(differences) + 2
    mean = differences.sum() / size
    error = np.sqrt(((differences**2).sum() + 2) / size - mean**2) / np.sqrt(size)
    reach = norm.ppf((1 + confidence) / 2) * error
    return float(mean - reach), float(mean + reach), float(2 * norm.sf(abs(mean) / error))
