"""The gate: may this candidate be served? (ours)"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from grpo_rm.evaluation.comparison import Interval


@dataclass(frozen=True)
class Clause:
    """One condition of the gate.

    Attributes:
        name: Such as "control".
        has_passed: Whether it holds. A number that is missing or not finite never passes.
        reason: What was observed and what was expected, in words.
    """

    name: str
    has_passed: bool
    reason: str


def decide(
    metrics: Mapping[str, float],
    against_control: Interval | None,
    against_champion: Interval | None,
    *,
    has_champion: bool,
    min_accuracy: float,
    margin: float,
) -> list[Clause]:
    """Judge a candidate by its accuracy on the test images; it passes when every clause has.

    Args:
        metrics: Of the candidate, with `accuracy`.
        against_control: Accuracy minus the control's, paired; None where it is missing.
        against_champion: Accuracy minus the present champion's on the same images, paired; None where it is missing.
        has_champion: Whether another version serves now. Only then the clause `champion` exists.
        min_accuracy: The least accuracy.
        margin: The interval against control and champion may not reach further down than minus this.
    """
    accuracy = metrics.get("accuracy", math.nan)
    clauses = [
        Clause(
            "accuracy",
            min_accuracy <= accuracy < math.inf,
            f"accuracy {accuracy:.4f}, expected at least {min_accuracy:g}",
        ),
        _not_worse("control", against_control, margin),
    ]
    return [*clauses, _not_worse("champion", against_champion, margin)] if has_champion else clauses


def is_better(interval: Interval | None) -> bool:
    """Whether a paired interval of accuracy lies above 0: the candidate beats the other."""
    return interval is not None and 0 < interval.low < math.inf


def _not_worse(name: str, interval: Interval | None, margin: float) -> Clause:
    if interval is None:
        why = f"its predictions are missing, or the {name} knows other classes, or had another split of the data"
        return Clause(name, False, f"cannot be compared with the {name} on these test images: {why}")
    reason = (
        f"accuracy minus the {name}'s is {interval.difference:+.4f} ({interval.low:+.4f} to {interval.high:+.4f}), "
        f"expected no lower than {-margin:g}"
    )
    return Clause(name, -margin <= interval.low < math.inf, reason)
