"""The gate: each clause passes and fails by itself, and what is missing never passes."""

import dataclasses
import math

import pytest

from grpo_rm.evaluation.comparison import Interval
from grpo_rm.evaluation.gate import decide, is_better

GOOD = Interval(difference=0.0, low=-0.01, high=0.01, confidence=0.95, num_samples=100)
NEVER = [(math.nan, False), (math.inf, False), (-math.inf, False)]


def judge(metrics=None, control=GOOD, champion=GOOD, *, has_champion=True):
    """Whether each clause has passed, by name, with a minimum of .9 and a margin of .02."""
    clauses = decide(
        {"accuracy": 0.95} if metrics is None else metrics,
        control,
        champion,
        has_champion=has_champion,
        min_accuracy=0.9,
        margin=0.02,
    )
    return {clause.name: clause.has_passed for clause in clauses}


def reaching_down_to(low):
    return dataclasses.replace(GOOD, low=low)


def test_passes():
    assert judge() == {"accuracy": True, "control": True, "champion": True}


def test_without_a_champion_there_is_no_clause_about_it():
    assert judge(has_champion=False) == {"accuracy": True, "control": True}
    assert judge(champion=None, has_champion=False) == {"accuracy": True, "control": True}


@pytest.mark.parametrize(
    ("accuracy", "has_passed"),
    [
        (0.9, True),
        (0.95, True),
        (1.0, True),
        (math.nextafter(0.9, 0), False),
        (0.0, False),
        *NEVER,
    ],
)
def test_accuracy(accuracy, has_passed):
    assert judge({"accuracy": accuracy}) == {"accuracy": has_passed, "control": True, "champion": True}


def test_a_missing_accuracy_never_passes():
    assert judge({"f1_macro": 1.0})["accuracy"] is False
    assert judge({})["accuracy"] is False


@pytest.mark.parametrize("name", ["control", "champion"])
@pytest.mark.parametrize(
    ("low", "has_passed"),
    [
        (0.01, True),
        (0.0, True),
        (-0.0199, True),
        (-0.02, True),
        (math.nextafter(-0.02, -1), False),
        (-0.5, False),
        *NEVER,
    ],
)
def test_not_worse_than(name, low, has_passed):
    expected = {"accuracy": True, "control": True, "champion": True} | {name: has_passed}
    assert judge(**{name: reaching_down_to(low)}) == expected


@pytest.mark.parametrize("name", ["control", "champion"])
def test_a_missing_interval_never_passes(name):
    assert judge(**{name: None}) == {"accuracy": True, "control": True, "champion": True} | {name: False}


def test_equal_models_pass_without_any_margin():
    equal = Interval(0.0, 0.0, 0.0, 0.95, 100)
    clauses = decide({"accuracy": 1}, equal, None, has_champion=False, min_accuracy=1, margin=0)
    assert all(clause.has_passed for clause in clauses)


def test_reasons_say_what_was_observed_and_what_was_expected():
    worse = Interval(-0.05, -0.08, -0.021, 0.95, 100)
    clauses = decide({"accuracy": 0.85}, worse, None, has_champion=True, min_accuracy=0.9, margin=0.02)
    assert [clause.reason for clause in clauses] == [
        "accuracy 0.8500, expected at least 0.9",
        "accuracy minus the control's is -0.0500 (-0.0800 to -0.0210), expected no lower than -0.02",
        "cannot be compared with the champion on these test images: its predictions are missing, or the champion knows "
        "other classes, or had another split of the data",
    ]
    assert "nan" in decide({}, None, None, has_champion=False, min_accuracy=0.9, margin=0.02)[0].reason


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (None, False),
        (reaching_down_to(1e-9), True),
        (reaching_down_to(0.0), False),
        (reaching_down_to(-0.01), False),
        (reaching_down_to(math.nan), False),
        (reaching_down_to(math.inf), False),
    ],
)
def test_better_means_an_interval_above_0(interval, expected):
    assert is_better(interval) is expected
