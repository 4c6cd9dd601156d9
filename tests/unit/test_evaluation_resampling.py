"""Metrics from sums over images: equal to their libraries, on the images as they are and on every resample."""

import numpy as np
import pytest
from scipy.stats import permutation_test
from sklearn.metrics import f1_score, recall_score

from grpo_rm.evaluation.calibration import expected_calibration_error, per_image_brier, per_image_nll
from grpo_rm.evaluation.classification import worst_group_accuracy
from grpo_rm.evaluation.metric_sums import (
    classifier_sums,
    constant_sums,
    ece_sums,
    f1_macro_sums,
    worst_class_accuracy_sums,
    worst_group_accuracy_sums,
)
from grpo_rm.evaluation.resampling import bootstrap_differences, mean_sums, swapped_differences


def answers(count=60, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return (2 * np.eye(classes)[labels] + rng.normal(size=(count, classes))).astype(np.float32), labels


def worst_class(logits, labels):
    return recall_score(labels, logits.argmax(axis=1), average=None, labels=np.unique(labels)).min()


@pytest.mark.parametrize("count", [1, 7, 60, 3000])
@pytest.mark.parametrize("classes", [2, 4, 30])
def test_the_libraries_say_the_same(count, classes):
    logits, labels = answers(count, classes)
    metrics = classifier_sums(logits, labels)
    expected = {
        "nll": per_image_nll(logits, labels).mean(),
        "brier": per_image_brier(logits, labels).mean(),
        "ece": expected_calibration_error(logits, labels),
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "f1_macro": macro_f1(logits, labels),
        "worst_class_accuracy": worst_class(logits, labels),
    }
    assert {name: metric.value for name, metric in metrics.items()} == pytest.approx(expected, abs=1e-6)
    assert all(metric.num_images == count for metric in metrics.values())


def test_goldens():
    labels, predictions = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    assert f1_macro_sums(predictions, labels, 2).value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert f1_macro_sums(predictions, labels, 3).value == pytest.approx((1 / 2 + 2 / 3) / 3)  # a class that is absent
    assert f1_macro_sums(predictions, labels, 3, classes=np.array([0])).value == pytest.approx(1 / 2)
    assert worst_class_accuracy_sums(predictions, labels, 3).value == 0.5
    assert constant_sums(labels, 2).value == pytest.approx(2 * 3 / (5 + 3) / 2)
    confident = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]]))  # .9 + .9 - 1 in a bin, 1 - .7 in another
    assert ece_sums(confident, np.array([0, 1, 1])).value == pytest.approx((0.8 + 0.3) / 3)


def macro_f1(logits, labels):
    classes = range(logits.shape[1])
    return f1_score(labels, logits.argmax(axis=1), labels=classes, average="macro", zero_division=0.0)


def test_bootstrap_naive_reference():
    """The same draws, each measured by the libraries: with classes that a resample lacks."""
    (one, labels), (other, _) = answers(25), answers(25, seed=1)
    drawn = bootstrap_differences(
        [classifier_sums(one, labels)], [classifier_sums(other, labels)], num_resamples=40, seed=5
    )
    rng = np.random.default_rng(5)
    for index in range(40):
        images = rng.integers(0, 25, 25)
        pair = [(logits[images], labels[images]) for logits in (one, other)]
        expected = {
            name: [function(*model) for model in pair]
            for name, function in {
                "f1_macro": macro_f1,
                "accuracy": lambda logits, labels: float((logits.argmax(axis=1) == labels).mean()),
                "ece": expected_calibration_error,
                "nll": lambda *model: float(per_image_nll(*model).mean()),
                "worst_class_accuracy": worst_class,
            }.items()
        }
        for name, (candidate, control) in expected.items():
            assert drawn[name][0, index] == pytest.approx(candidate - control, abs=1e-6), name


def test_the_worst_group_on_resamples_that_may_lack_groups():
    (one, labels), (other, _) = answers(25), answers(25, seed=1)
    groups = np.array([["a", "b", ""][row % 3] for row in range(25)])
    pair = [worst_group_accuracy_sums(logits.argmax(axis=1), labels, groups) for logits in (one, other)]
    assert [sums.value for sums in pair] == [worst_group_accuracy(logits, labels, groups) for logits in (one, other)]
    models = [[{"worst": sums}] for sums in pair]
    drawn = bootstrap_differences(*models, num_resamples=40, seed=5)["worst"][0]
    rng = np.random.default_rng(5)
    for difference in drawn:
        rows = rng.integers(0, 25, 25)
        expected = [worst_group_accuracy(logits[rows], labels[rows], groups[rows]) for logits in (one, other)]
        assert difference == pytest.approx(expected[0] - expected[1])


def test_no_group_has_no_worst_one():
    labels = np.array([0, 1])
    assert worst_group_accuracy_sums(labels, labels, ["", ""]) is None
    rare = worst_group_accuracy_sums(labels, labels, ["a", ""])
    absent = bootstrap_differences([{"worst": rare}], [{"worst": rare}], num_resamples=50, seed=0)["worst"]
    assert (absent == 0).all()  # also of the resamples without an image of the group


def test_blocks_change_nothing_in_the_bootstrap(monkeypatch):
    models = [[classifier_sums(*answers(seed=seed))] for seed in (0, 0)]
    whole = bootstrap_differences(*models, num_resamples=50, seed=0)
    monkeypatch.setattr("grpo_rm.evaluation.resampling.BLOCK_ELEMENTS", 7 * 60)
    parts = bootstrap_differences(*models, num_resamples=50, seed=0)
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, atol=1e-12)


def test_swaps_naive_reference():
    """Whatever is swapped, the metric is that of a mixture of both models' answers."""
    (one, labels), (other, _) = answers(25), answers(25, seed=1)
    swapped = swapped_differences(
        [classifier_sums(one, labels)], [classifier_sums(other, labels)], num_resamples=30, seed=5
    )
    is_swapped = np.random.default_rng(5).integers(0, 2, size=(25, 30), dtype=np.int8).astype(bool)
    for index in range(30):
        swap = is_swapped[:, index, None]
        pair = np.where(swap, other, one), np.where(swap, one, other)
        candidate, control = (classifier_sums(logits, labels) for logits in pair)
        for name, values in swapped.items():
            assert values[0, index] == pytest.approx(candidate[name].value - control[name].value, abs=1e-9), name


def test_swaps_spread_as_scipy_s_flips_of_signs():
    candidate, control = np.random.default_rng(3).normal(size=(2, 40))
    swapped = swapped_differences(
        [{"m": mean_sums(candidate)}], [{"m": mean_sums(control)}], num_resamples=20_000, seed=0
    )["m"][0]
    flips = permutation_test(
        (candidate - control,),
        np.mean,
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).null_distribution
    quantiles = [0.005, 0.025, 0.25, 0.75, 0.975, 0.995]
    np.testing.assert_allclose(np.quantile(swapped, quantiles), np.quantile(flips, quantiles), atol=0.06 * flips.std())


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((2, 2)), r"shape \(2, 2\)"),
        (np.zeros(0), "at least one"),
        (np.array([0.0, np.nan]), "NaN"),
        (np.array([np.inf]), "infinite"),
    ],
)
def test_bad_scores_are_explained(scores, message):
    with pytest.raises(ValueError, match=message):
        mean_sums(scores)


def test_bad_classes_are_explained():
    with pytest.raises(ValueError, match="labels from 0 to 3; expected 0 to 2"):
        f1_macro_sums(np.array([0, 3]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        classifier_sums(np.array([[np.nan, 0.0]]), np.array([0]))
