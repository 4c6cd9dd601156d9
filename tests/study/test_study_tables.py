"""Tables from rows that are made up, so that their numbers are known by hand."""

import math

import pytest

from study import tables
from study.protocol import COST_METRICS, EMBEDDING_CRITERIA
from study.tables import correct_arm, count_bar, difference_table, steps_to_control, task_tables

KNN, PROBE = EMBEDDING_CRITERIA


def final(arm, seed, accuracy, curve, **more):
    shared = {"task": "digits", "stage": "final", "learning_rate": 0.001, "arm": arm, "seed": seed}
    metrics = {"test/accuracy": accuracy, f"test/{KNN}": accuracy + 0.1, "test/nll": 0.5}
    return shared | metrics | {"curve/step": [10, 20, 30], "curve/val_accuracy": curve} | more


ROWS = [
    final("cross_entropy", 0, 0.70, [0.5, 0.8, 0.7]),
    final("cross_entropy", 1, 0.72, [0.5, 0.6, 0.9]),
    final("neighbors", 0, 0.80, [0.8, 0.8, 0.9]),  # half the control's steps
    final("neighbors", 1, 0.84, [0.5, 0.6, 0.8]),  # never
]


def test_mean_and_deviation_over_seeds():
    (table,) = task_tables(ROWS)
    control, candidate = table.splitlines()[-2:]
    assert control == "| cross_entropy | 0.001 | 2 | 71.00 (1.41) | 81.00 (1.41) |  |  |  |  | 0.500 (0.000) | 1.00 |"
    assert candidate == "| neighbors | 0.001 | 2 | 82.00 (2.83) | 92.00 (2.83) |  |  |  |  | 0.500 (0.000) | never |"


def test_a_training_that_diverged_is_said():
    failed = {"task": "digits", "arm": "neighbors", "learning_rate": 0.001, "seed": 2, "error": "the loss is nan"}
    assert "| neighbors | 0.001 | 2, 1 diverged | 82.00" in task_tables([*ROWS, failed])[0]


def test_steps_to_the_best_epoch_of_the_control():
    control = ROWS[0]
    assert steps_to_control(control, control) == 20
    assert steps_to_control(ROWS[2], control) == 10
    assert steps_to_control(ROWS[3], ROWS[1]) == math.inf


def compared(task, metric, difference, low, high, p_value, arm="neighbors"):
    row = {"task": task, "arm": arm, "metric": metric, "seeds": 5, "difference": difference}
    return row | {"low": low, "high": high, "p_value": p_value}


def comparisons(tasks, *, head=0.0, ece=(-0.02, 0.01)):
    return [
        row
        for task in tasks
        for row in (
            compared(task, "miou" if task == "camvid" else "accuracy", head, head - 0.01, head + 0.01, 0.5),
            compared(task, KNN, 0.02, 0.01, 0.03, 0.001),
            compared(task, PROBE, 0.02, 0.01, 0.03, 0.002),
            compared(task, "ece", -0.01, *ece, 0.9),
        )
    ]


SIX = ["digits", "fashion", "tiny", "few_shot", "shifted", "camvid"]


def test_p_is_corrected_over_the_deciding_metrics_of_all_tasks_of_an_arm():
    rows = [*comparisons(SIX[:2]), compared("tiny", KNN, 0.02, 0.01, 0.03, 1e-09, arm="literal")]
    corrected = correct_arm(rows, "neighbors")
    assert len(corrected) == 6  # ECE is not among them, nor is the other arm
    assert corrected["digits", KNN] == pytest.approx(6 * 0.001)
    assert corrected["digits", PROBE] == pytest.approx(4 * 0.002)
    assert corrected["fashion", "accuracy"] == pytest.approx(1.0)


def test_differences_are_in_points():
    line = difference_table(comparisons(["digits"])).splitlines()[-1]
    assert line == (
        "| digits | neighbors | 5 | +0.00 (-1.00 to +1.00, p 0.500) | +2.00 (+1.00 to +3.00, p 0.003) | "
        "+2.00 (+1.00 to +3.00, p 0.004) | -1.00 (-2.00 to +1.00) |"
    )


@pytest.mark.parametrize(
    ("rows", "is_met"),
    [
        (comparisons(SIX), True),
        (comparisons(SIX, head=-0.005), True),
        (comparisons(SIX, head=-0.006), False),
        (comparisons(SIX, ece=(0.001, 0.02)), False),
        (comparisons(SIX[:5]), False),
        ([*comparisons(SIX[:5]), compared("camvid", KNN, 0.02, 0.0, 0.03, 0.1)], False),  # an interval that has 0
    ],
)
def test_the_bar(rows, is_met):
    assert count_bar(rows, "neighbors").is_met is is_met


def test_the_bar_counts_tasks():
    bar = count_bar([*comparisons(SIX), compared("noisy_20", KNN, 0.1, 0.05, 0.2, 0.001)], "neighbors")
    assert (bar.tasks, bar.knn, bar.probe, bar.both) == (7, 7, 6, 6)


def test_what_holm_is_over_is_what_the_bar_is_about():
    assert set(tables.DECIDING) == {"accuracy", "miou", KNN, PROBE}


def test_geometry_is_of_the_trials_that_measured_it():
    rows = [row | {"test/alignment": 0.5, "test/uniformity": -2.5, "test/effective_rank": 8.0} for row in ROWS[:2]]
    lines = tables.geometry_table([*rows, *ROWS[2:]]).splitlines()
    assert lines[-1] == "| digits | cross_entropy | 2 | 0.50 (0.00) | -2.50 (0.00) | 8.00 (0.00) |"
    assert len(lines) == 5


def test_costs_of_both_decisions_and_differences_to_the_baselines():
    likeliest, least = COST_METRICS
    finals = [
        {"task": "costs", "arm": arm, "seed": seed, f"test/{likeliest}": 0.3 + 0.1 * seed, f"test/{least}": 0.25}
        for arm in ("cross_entropy", "cost_reward")
        for seed in (0, 1)
    ]
    row = {"task": "costs", "arm": "cost_reward", "metric": likeliest, "seeds": 2, "difference": -0.02}
    row |= {"low": -0.03, "high": 0.01, "baseline": "cross_entropy"}
    rows = [
        row | {"baseline_metric": likeliest, "p_value": 0.01},
        row | {"baseline_metric": least, "p_value": 0.03},
        row
        | {"baseline": "cost_weighted", "baseline_metric": least, "p_value": 0.001},  # no baseline: not in the family
    ]
    lines = tables.cost_table(finals, rows).splitlines()[-4:]
    assert lines[0] == "| cross_entropy | likeliest | 2 | 0.3500 (0.0707) |  |  |  |"
    assert lines[2] == (
        "| cost_reward | likeliest | 2 | 0.3500 (0.0707) | -0.0200 (-0.0300 to +0.0100, p 0.020) | "
        "-0.0200 (-0.0300 to +0.0100, p 0.030) |  |"
    )
    assert lines[3] == "| cost_reward | least cost | 2 | 0.2500 (0.0000) |  |  |  |"
