"""The gate: may this candidate be served? (ours)

All clauses have to pass. So the gate needs no correction for their number: a candidate that is too bad by one metric
has to be lucky in that very clause. What is called better or worse is corrected, as everywhere (see `comparison`).

MLflow has thresholds too (`MetricThreshold`, `validate_evaluation_results`): a least value, and a least change from a
baseline. They know no intervals, so that on 200 test images chance decides; a change has to be a gain, so "not worse by
more than 2 points" cannot be said; and the result is an exception, not a reason for each clause. So they do not serve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grpo_rm.evaluation.comparison import Interval, correct, shown
from grpo_rm.evaluation.directions import is_higher_better


@dataclass(frozen=True)
class Clause:
    """One condition of the gate.

    Attributes:
        name: Such as "accuracy" or "control.accuracy".
        has_passed: Whether it holds. A number that is missing or not finite never passes.
        reason: What was observed and what was expected, in words.
    """

    name: str
    has_passed: bool
    reason: str


@dataclass(frozen=True)
class Basis:
    """What a model was measured on. Models with another basis are not compared.

    Attributes:
        classes: In the order of the logits.
        split: How the data were split, as dataset.json says it: one that trained on these test images has another.
        num_images: Test set to number of images: "" is the test split, others have the names that metrics begin with.
    """

    classes: Sequence[str]
    split: object
    num_images: Mapping[str, int]


@dataclass(frozen=True)
class Rival:
    """A model that the candidate is compared with.

    Attributes:
        name: Such as "control".
        basis: Of the rival; None where it could not be measured.
        min_gain: Metric to how much the candidate has to be better, at least; 0: shown to be better; negative: may be
            worse.
        intervals: Metric to candidate minus rival, on the same images, not corrected yet.
    """

    name: str
    basis: Basis | None
    min_gain: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)


def decide(
    metrics: Mapping[str, float],
    basis: Basis,
    *,
    thresholds: Mapping[str, float],
    over_constant: tuple[str, Interval] | None,
    rivals: Sequence[Rival],
) -> list[Clause]:
    """Judge a candidate on the test images; it passes when every clause has.

    Args:
        metrics: Of the candidate.
        basis: What they were measured on.
        thresholds: Metric to its least value, or to its largest one where lower is better.
        over_constant: A metric, and it minus that of the model that always says the most frequent class, paired; None
            where it is missing. It has to lie above 0: accuracy alone can be had without looking at an image.
        rivals: The control, and the champion where another version serves now.

    Raises:
        ValueError: A metric of the limits is not known (see `directions`).
    """
    clauses = [_threshold(name, metrics.get(name, math.nan), limit) for name, limit in thresholds.items()]
    clauses.append(_no_constant(over_constant, basis.num_images))
    return clauses + [clause for rival in rivals for clause in _not_worse_than(rival, basis)]


def beats(rival: Rival, basis: Basis) -> bool:
    """Whether the candidate is shown to be better than a rival by one of the gate's metrics or more, corrected."""
    if _mismatch(rival.basis, basis):
        return False
    read = {name: shown(interval) for name, interval in correct(rival.intervals, rival.min_gain).items()}
    return any(
        _is_sound(name, interval, basis.num_images) and _gain(name, interval) > 0 for name, interval in read.items()
    )


def _threshold(name: str, value: float, limit: float) -> Clause:
    if is_higher_better(name):
        return Clause(name, limit <= value < math.inf, f"{name} {value:.4f}, expected at least {limit:g}")
    return Clause(name, -math.inf < value <= limit, f"{name} {value:.4f}, expected at most {limit:g}")


def _no_constant(over_constant: tuple[str, Interval] | None, num_images: Mapping[str, int]) -> Clause:
    name = "constant"
    if over_constant is None or not _is_sound(*over_constant, num_images):
        return Clause(name, False, f"cannot be compared with always saying the most frequent class: {over_constant}")
    metric, interval = over_constant
    reason = f"{metric} minus that of always saying the most frequent class is {_in_words(interval)}, expected above 0"
    return Clause(name, interval.low > 0, reason)


def _not_worse_than(rival: Rival, basis: Basis) -> list[Clause]:
    """Return a clause for each metric that the candidate and the rival are compared by."""
    mismatch = _mismatch(rival.basis, basis)
    corrected = {} if mismatch else correct(rival.intervals, rival.min_gain)
    clauses = []
    for metric, min_gain in rival.min_gain.items():
        name, interval = f"{rival.name}.{metric}", corrected.get(metric)
        if interval is None or not _is_sound(metric, interval, basis.num_images):
            why = mismatch or _what_is_wrong(metric, interval, rival, basis)
            reason = f"{metric} cannot be compared with the {rival.name}'s on these test images: {why}"
            clauses.append(Clause(name, False, reason))
            continue
        read = shown(interval)
        reason = f"{metric} minus the {rival.name}'s is {_in_words(read)}, expected {_limit(metric, min_gain)}"
        gain = _gain(metric, read)
        # at 0 the difference has to be shown: one that is not is read as an interval that begins at 0
        clauses.append(Clause(name, gain > 0 if min_gain == 0 else gain >= min_gain, reason))
    return clauses


def _limit(metric: str, min_gain: float) -> str:
    if is_higher_better(metric):
        return f"no lower than {min_gain:g}" if min_gain else "above 0"
    return f"no higher than {0 - min_gain:g}" if min_gain else "below 0"


def _mismatch(theirs: Basis | None, ours: Basis) -> str | None:
    """Return in words why two models are not to be compared; None where they are."""
    if theirs is None:
        return "it could not be measured there"
    if list(theirs.classes) != list(ours.classes):
        return f"it knows other classes, or in another order: {_short(theirs.classes)}, expected {_short(ours.classes)}"
    if theirs.split != ours.split:
        return "it had another split of the data, so it may have been trained on them"
    if dict(theirs.num_images) != dict(ours.num_images):
        return f"it was measured on {dict(theirs.num_images)} images, expected {dict(ours.num_images)}"
    return None


def _what_is_wrong(metric: str, interval: Interval | None, rival: Rival, basis: Basis) -> str:
    if interval is None:
        return f"compared were {', '.join(rival.intervals) or 'none'}, expected {metric} among them"
    if interval.num_samples != basis.num_images.get(_test_set(metric)):
        return f"the interval is of {interval.num_samples} images, expected {basis.num_images.get(_test_set(metric))}"
    return f"it is {_in_words(interval)}, expected finite numbers"


def _is_sound(metric: str, interval: Interval, num_images: Mapping[str, int]) -> bool:
    is_finite = all(math.isfinite(value) for value in (interval.difference, interval.low, interval.high))
    return is_finite and interval.low <= interval.high and interval.num_samples == num_images.get(_test_set(metric))


def _gain(metric: str, interval: Interval) -> float:
    """Return the least gain that the interval allows for."""
    return interval.low if is_higher_better(metric) else -interval.high


def _test_set(metric: str) -> str:
    return metric.rpartition("/")[0]


def _in_words(interval: Interval) -> str:
    return f"{interval.difference:+z.4f} ({interval.low:+z.4f} to {interval.high:+z.4f})"


def _short(classes: Sequence[str]) -> str:
    return ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
