"""The gate: each clause passes and fails by itself, what is missing never passes, and tricks do not help."""

import dataclasses
import math

import numpy as np
import pytest

from grpo_rm.evaluation import corruptions
from grpo_rm.evaluation.comparison import Interval, compare_metrics
from grpo_rm.evaluation.directions import CORRUPTIONS, HIGHER_IS_BETTER, LOWER_IS_BETTER, is_higher_better
from grpo_rm.evaluation.gate import Basis, Rival, beats, decide
from grpo_rm.evaluation.metric_sums import classifier_sums, constant_sums

BASIS = Basis(classes=["cat", "dog"], split={"seed": 0}, num_images={"": 100, "extra/sketch": 40})
GOOD = Interval(difference=0.0, low=-0.01, high=0.01, confidence=0.95, num_samples=100, p_value=0.9)
BETTER = Interval(difference=0.02, low=0.01, high=0.03, confidence=0.95, num_samples=100, p_value=0.001)
RIVALS = ("control", "champion")
NEVER = [math.nan, math.inf, -math.inf]


def rival(name="control", interval=GOOD, *, metric="accuracy", min_gain=-0.02, basis=BASIS):
    return Rival(name, basis, {metric: min_gain}, {} if interval is None else {metric: interval})


def judge(metrics=None, *, thresholds=None, over_constant=BETTER, rivals=None):
    return decide(
        {"accuracy": 0.95} if metrics is None else metrics,
        BASIS,
        thresholds={"accuracy": 0.9} if thresholds is None else thresholds,
        over_constant=("f1_macro", over_constant) if over_constant else None,
        rivals=[rival(), rival("champion")] if rivals is None else rivals,
    )


def verdicts(*args, **kwargs):
    return {clause.name: clause.has_passed for clause in judge(*args, **kwargs)}


ALL = {"accuracy": True, "constant": True, "control.accuracy": True, "champion.accuracy": True}


def test_passes():
    assert verdicts() == ALL


def test_without_a_champion_there_is_no_clause_about_it():
    assert verdicts(rivals=[rival()]) == {name: True for name in ALL if name != "champion.accuracy"}


@pytest.mark.parametrize(
    ("value", "has_passed"),
    [(0.9, True), (1.0, True), (math.nextafter(0.9, 0), False), *((value, False) for value in NEVER)],
)
def test_a_threshold_where_higher_is_better(value, has_passed):
    assert verdicts({"accuracy": value}) == ALL | {"accuracy": has_passed}


@pytest.mark.parametrize("name", ["ece", "onnx/size_mb", "onnx/latency_ms", "robustness/mce"])
@pytest.mark.parametrize(
    ("value", "has_passed"),
    [(0.1, True), (0.0, True), (math.nextafter(0.1, 1), False), *((value, False) for value in NEVER)],
)
def test_a_threshold_where_lower_is_better(name, value, has_passed):
    assert verdicts({name: value}, thresholds={name: 0.1})[name] is has_passed


@pytest.mark.parametrize("name", ["accuracy", "ece"])
def test_a_missing_metric_never_passes(name):
    (clause, *_) = judge({"nll": 0.1}, thresholds={name: -1e9 if name == "accuracy" else 1e9})
    assert not clause.has_passed
    assert "nan" in clause.reason


@pytest.mark.parametrize("limits", [{"thresholds": {"acuracy": 0}}, {"rivals": [rival(metric="temperature")]}])
def test_an_unknown_metric_is_an_error(limits):
    with pytest.raises(ValueError, match="unknown metric, or one without a better direction"):
        judge({"acuracy": 1.0}, **limits)


@pytest.mark.parametrize(
    ("interval", "has_passed"),
    [
        ({"low": 0.001, "high": 0.02, "p_value": 0.01}, True),
        ({"low": 0.001, "high": 0.02, "p_value": 0.2}, False),  # not shown
        ({"low": 0.0, "high": 0.0, "p_value": 1.0}, False),  # the same model
        ({"low": -0.001, "high": 0.02, "p_value": 0.01}, False),
    ],
)
def test_a_gain_of_zero_is_shown_to_be_better(interval, has_passed):
    given = dataclasses.replace(GOOD, difference=sum((interval["low"], interval["high"])) / 2, **interval)
    (clause,) = judge(rivals=[dataclasses.replace(rival(interval=given), min_gain={"accuracy": 0.0})])[2:]
    assert clause.has_passed is has_passed and clause.reason.endswith("expected above 0")
    worse = dataclasses.replace(given, low=-given.high, high=-given.low, difference=-given.difference)
    (clause,) = judge(rivals=[dataclasses.replace(rival(interval=worse, metric="nll"), min_gain={"nll": 0.0})])[2:]
    assert clause.has_passed is has_passed and clause.reason.endswith("expected below 0")


@pytest.mark.parametrize("name", ["control", "champion"])
@pytest.mark.parametrize(
    ("low", "has_passed"),
    [(0.0, True), (-0.02, True), (math.nextafter(-0.02, -1), False), (-0.5, False), *((v, False) for v in NEVER)],
)
def test_not_worse_than_where_higher_is_better(name, low, has_passed):
    rivals = [rival(other, dataclasses.replace(GOOD, low=low) if other == name else GOOD) for other in RIVALS]
    assert verdicts(rivals=rivals) == ALL | {f"{name}.accuracy": has_passed}


@pytest.mark.parametrize(
    ("high", "has_passed"),
    [(0.0, True), (0.02, True), (math.nextafter(0.02, 1), False), *((value, False) for value in NEVER)],
)
def test_not_worse_than_where_lower_is_better(high, has_passed):
    interval = dataclasses.replace(GOOD, high=high)
    (clause,) = judge(rivals=[rival(interval=interval, metric="nll")])[2:]
    assert (clause.name, clause.has_passed) == ("control.nll", has_passed)


@pytest.mark.parametrize("value", NEVER)
@pytest.mark.parametrize("field", ["difference", "low", "high"])
def test_a_number_that_is_not_finite_never_passes(field, value):
    interval = dataclasses.replace(BETTER, **{field: value})
    assert not verdicts(rivals=[rival(interval=interval)])["control.accuracy"]
    assert not verdicts(over_constant=interval)["constant"]
    assert not beats(rival(interval=interval), BASIS)


def test_a_gain_that_is_asked_for_has_to_be_shown():
    """Two metrics with p = .03: none is shown to differ after Holm's correction, so both may be 0."""
    interval = dataclasses.replace(BETTER, p_value=0.03)
    alone = Rival("control", BASIS, {"accuracy": 0.01}, {"accuracy": interval, "f1_macro": interval})
    both = dataclasses.replace(alone, min_gain={"accuracy": 0.01, "f1_macro": 0.01})
    assert [clause.has_passed for clause in judge(rivals=[alone])[2:]] == [True]
    assert [clause.has_passed for clause in judge(rivals=[both])[2:]] == [False, False]
    assert "accuracy minus the control's is +0.0200 (+0.0000 to +0.0300)" in judge(rivals=[both])[2].reason


def test_equal_models_pass_with_a_margin_and_are_not_shown_to_be_better():
    equal = Interval(0.0, -0.004, 0.004, 0.95, 100, p_value=1.0)
    for min_gain, has_passed in ((-0.005, True), (-0.003, False), (0, False)):
        assert judge(rivals=[rival(interval=equal, min_gain=min_gain)])[-1].has_passed is has_passed


def test_reasons_say_what_was_observed_and_what_was_expected():
    worse = Interval(-0.05, -0.08, -0.021, 0.95, 100, p_value=0.001)
    clauses = judge(
        {"accuracy": 0.85, "ece": 0.2},
        thresholds={"accuracy": 0.9, "ece": 0.1},
        rivals=[
            rival(interval=worse),
            rival(interval=GOOD, metric="nll", min_gain=-0.01),
            rival("champion", None),
            rival("champion", dataclasses.replace(GOOD, num_samples=99)),
        ],
    )
    cannot = "accuracy cannot be compared with the champion's on these test images:"
    assert [clause.reason for clause in clauses] == [
        "accuracy 0.8500, expected at least 0.9",
        "ece 0.2000, expected at most 0.1",
        "f1_macro minus that of always saying the most frequent class is +0.0200 (+0.0100 to +0.0300), "
        "expected above 0",
        "accuracy minus the control's is -0.0500 (-0.0800 to -0.0210), expected no lower than -0.02",
        "nll minus the control's is +0.0000 (-0.0100 to +0.0100), expected no higher than 0.01",
        f"{cannot} compared were none, expected accuracy among them",
        f"{cannot} the interval is of 99 images, expected 100",
    ]


@pytest.mark.parametrize(
    ("basis", "why"),
    [
        (None, "it could not be measured there"),
        (dataclasses.replace(BASIS, classes=["dog", "cat"]), "in another order: dog, cat, expected cat, dog"),
        (dataclasses.replace(BASIS, classes=["cat", "dog", "fox"]), "it knows other classes"),
        (dataclasses.replace(BASIS, split={"seed": 1}), "it had another split of the data"),
        (dataclasses.replace(BASIS, split=None), "it had another split of the data"),
        (dataclasses.replace(BASIS, num_images={"": 99}), "measured on {'': 99} images"),
    ],
)
def test_a_rival_of_another_basis_is_never_beaten(basis, why):
    other = rival("champion", BETTER, basis=basis)
    assert beats(rival("champion", BETTER), BASIS)
    assert not beats(other, BASIS)
    (clause,) = judge(rivals=[other])[2:]
    assert not clause.has_passed
    assert why in clause.reason


@pytest.mark.parametrize(("num_samples", "has_passed"), [(40, True), (100, False)])
def test_another_test_set_has_its_own_number_of_images(num_samples, has_passed):
    interval = dataclasses.replace(GOOD, num_samples=num_samples)
    assert judge(rivals=[rival(interval=interval, metric="extra/sketch/accuracy")])[-1].has_passed is has_passed
    assert not judge(rivals=[rival(interval=interval, metric="extra/unknown/accuracy")])[-1].has_passed


@pytest.mark.parametrize(
    ("interval", "metric", "expected"),
    [
        (None, "accuracy", False),
        (BETTER, "accuracy", True),
        (BETTER, "nll", False),
        (dataclasses.replace(BETTER, difference=-0.02, low=-0.03, high=-0.01), "nll", True),
        (dataclasses.replace(BETTER, low=0.0), "accuracy", False),
        (dataclasses.replace(BETTER, p_value=0.06), "accuracy", False),
        (dataclasses.replace(BETTER, p_value=None), "accuracy", False),
        (dataclasses.replace(BETTER, p_value=math.nan), "accuracy", False),
        (dataclasses.replace(BETTER, num_samples=99), "accuracy", False),
    ],
)
def test_beaten_is_who_is_shown_to_be_worse(interval, metric, expected):
    assert beats(rival("champion", interval, metric=metric), BASIS) is expected


@pytest.fixture(scope="module")
def ninety_of_a_hundred():
    """Labels of which 90 % are class 0, a control that is right on 97 %, and the constant that is right on 90 %."""
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 10 == 0).astype(np.int64)
    control = 4.0 * np.eye(2)[np.where(rng.random(400) < 0.03, 1 - labels, labels)]
    constant = np.tile([4.0, 0.0], (400, 1))
    return labels, control, constant


def gate_of(labels, candidate, control, *, limits):
    """Judge logits by thresholds of .9 accuracy, and a control."""
    basis = dataclasses.replace(BASIS, num_images={"": len(labels)})
    sums, others = classifier_sums(candidate, labels), classifier_sums(control, labels)
    constant = {"f1_macro": constant_sums(labels, 2)}
    own = {"f1_macro": sums["f1_macro"]}
    settings = {"num_resamples": 500, "seed": 0}
    clauses = decide(
        {name: metric.value for name, metric in sums.items()},
        basis,
        thresholds=limits,
        over_constant=("f1_macro", compare_metrics([own], [constant], **settings)["f1_macro"]),
        rivals=[Rival("control", basis, {"accuracy": -0.02}, compare_metrics([sums], [others], **settings))],
    )
    return {clause.name: clause.has_passed for clause in clauses}


def test_a_constant_predictor_never_passes(ninety_of_a_hundred):
    labels, control, constant = ninety_of_a_hundred
    limits = {"accuracy": 0.9, "worst_class_accuracy": 0.5}
    honest = gate_of(labels, control, control, limits=limits)
    assert all(honest.values()), honest
    fooled = {"accuracy": True, "worst_class_accuracy": False, "constant": False, "control.accuracy": False}
    assert gate_of(labels, constant, control, limits=limits) == fooled
    # not even where the control is one too, and nobody asks for more than accuracy
    assert gate_of(labels, constant, constant, limits={"accuracy": 0.9})["constant"] is False
    assert gate_of(labels, constant[:, ::-1], constant, limits={"accuracy": 0.0})["constant"] is False


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", True),
        ("knn_top1_k20_t0.07", True),
        ("extra/sketch/f1_macro", True),
        *((f"robustness/{name}", True) for name in corruptions.CORRUPTIONS),
        ("robustness/mce", False),
        ("onnx/latency_ms", False),
        ("ece_calibrated", False),
    ],
)
def test_directions(name, expected):
    assert is_higher_better(name) is expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        "accuracy/",
        "noise",
        "sketch/noise",
        "robustness/fog",
        "knn_top1_k20",
        "knn_top1_kx_t0.07",
        "effective_rank",
        "Accuracy",
    ],
)
def test_what_has_no_direction(name):
    with pytest.raises(ValueError, match="unknown metric"):
        is_higher_better(name)


def test_the_corruptions_are_those_that_are_measured():
    assert tuple(corruptions.CORRUPTIONS) == CORRUPTIONS


def test_no_metric_has_two_directions():
    assert len({*HIGHER_IS_BETTER, *LOWER_IS_BETTER}) == len(HIGHER_IS_BETTER) + len(LOWER_IS_BETTER)
