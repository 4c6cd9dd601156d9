"""All metrics of a model under the names that reports and registry use."""

import numpy as np
import pytest

from grpo_rm.evaluation.measurement import is_of_encoder, measure, measure_classifier, measure_encoder
from grpo_rm.inference import Predictions

METRICS = {
    "accuracy",
    "f1_macro",
    "nll",
    "brier",
    "ece",
    "temperature",
    "nll_calibrated",
    "brier_calibrated",
    "ece_calibrated",
    "knn_top1_k10_t0.07",
    "knn_top1_k20_t0.07",
    "linear_probe_top1",
    "worst_class_accuracy",
    "retrieval_map",
    "retrieval_recall_k1",
    "retrieval_recall_k5",
    "retrieval_recall_k10",
    "alignment",
    "uniformity",
    "effective_rank",
}
SCORES = {
    "accuracy",
    "nll",
    "brier",
    "nll_calibrated",
    "brier_calibrated",
    "knn_top1_k10_t0.07",
    "knn_top1_k20_t0.07",
    "linear_probe_top1",
    "retrieval_map",
    "retrieval_recall_k1",
    "retrieval_recall_k5",
    "retrieval_recall_k10",
}


def predictions(count, seed, *, noise=1.0, sharpness=15.0):
    """Three classes around three corners; the logits claim more than they know."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    embeddings = np.eye(3, 5)[labels] + noise * rng.normal(size=(count, 5)) / 3
    logits = sharpness * (embeddings[:, :3] + 0.3 * rng.normal(size=(count, 3)))
    return Predictions(embeddings.astype(np.float32), logits.astype(np.float32), labels.astype(np.int64))


def measured(noise=1.5):
    train, val, test = (predictions(count, seed, noise=noise) for seed, count in enumerate((90, 60, 70)))
    return measure(train, val, test, ks=[10, 20], knn_temperature=0.07), (train, val, test)


@pytest.fixture(scope="module")
def result():
    return measured()


def test_names_are_those_of_the_contract(result):
    measurement, _ = result
    assert set(measurement.metrics) == METRICS
    assert set(measurement.scores) == SCORES
    assert all(type(value) is float and np.isfinite(value) for value in measurement.metrics.values())


def test_head_and_encoder_are_measured_by_themselves(result):
    measurement, (train, val, test) = result
    classifier = measure_classifier(val, test)
    encoder = measure_encoder(train, val, test, ks=[10, 20], knn_temperature=0.07)
    assert classifier.metrics | encoder.metrics == measurement.metrics
    assert set(classifier.scores) | set(encoder.scores) == SCORES
    assert {name for name in METRICS if is_of_encoder(name)} == set(encoder.metrics)
    assert not set(encoder.metrics) & set(classifier.metrics)


def test_names_of_neighbors_follow_k_and_temperature():
    splits = [predictions(20, seed) for seed in range(3)]
    metrics = measure(*splits, ks=[1, 3], knn_temperature=0.1).metrics
    assert {name for name in metrics if name.startswith("knn")} == {"knn_top1_k1_t0.1", "knn_top1_k3_t0.1"}


def test_costs_and_groups_have_metrics_where_they_are_given(result):
    measurement, splits = result
    costs, groups = np.array([[0.0, 1, 9], [1, 0, 1], [1, 1, 0]]), ["a", "b"] * 35
    more = measure(*splits, ks=[10, 20], knn_temperature=0.07, costs=costs, groups=groups)
    assert set(more.scores) == SCORES | {"expected_cost", "expected_cost_bayes_calibrated"}
    assert set(more.metrics) == METRICS | {"expected_cost", "expected_cost_bayes_calibrated", "worst_group_accuracy"}
    assert {name: more.metrics[name] for name in METRICS} == measurement.metrics
    is_right, test = more.scores["accuracy"], splits[2]
    assert more.metrics["worst_group_accuracy"] == min(is_right[::2].mean(), is_right[1::2].mean())
    assert more.metrics["expected_cost"] == costs[test.labels, test.logits.argmax(axis=1)].mean()
    assert more.metrics["expected_cost_bayes_calibrated"] < more.metrics["expected_cost"]
    without_group = measure(*splits, ks=[10, 20], knn_temperature=0.07, groups=[""] * 70)
    assert set(without_group.metrics) == METRICS


def test_top5_with_more_than_five_classes():
    splits = []
    for seed in range(3):
        labels = np.arange(30) % 6
        logits = np.random.default_rng(seed).normal(size=(30, 6)).astype(np.float32)
        splits.append(Predictions(logits, logits, labels))
    measurement = measure(*splits, ks=[1], knn_temperature=0.07)
    is_last = splits[2].logits.argmin(axis=1) == splits[2].labels
    assert measurement.scores["top5_accuracy"].tolist() == (~is_last).tolist()
    assert measurement.metrics["top5_accuracy"] == measurement.scores["top5_accuracy"].mean()


def test_the_mean_of_the_scores_is_the_metric(result):
    measurement, (_, _, test) = result
    for name, values in measurement.scores.items():
        assert values.shape == (len(test.labels),)
        assert values.mean() == pytest.approx(measurement.metrics[name], rel=1e-6), name


def test_against_references_on_the_test_split(result):
    measurement, (_, val, test) = result
    metrics = measurement.metrics
    assert metrics["accuracy"] == np.mean(test.logits.argmax(axis=1) == test.labels)
    temperature = metrics["temperature"]
    assert 1.05 < temperature < 10  # the logits claim too much
    for suffix, scale in (("", 1.0), ("_calibrated", temperature)):
        probs = np.exp(test.logits.astype(np.float64) / scale)
        probs /= probs.sum(axis=1, keepdims=True)
        nll = -np.log(probs[range(70), test.labels]).mean()
        brier = ((probs - np.eye(3)[test.labels]) ** 2).sum(axis=1).mean()
        assert metrics[f"nll{suffix}"] == pytest.approx(nll, rel=1e-5)
        assert metrics[f"brier{suffix}"] == pytest.approx(brier, rel=1e-5)

    def val_nll(scale):
        probs = np.exp(val.logits.astype(np.float64) / scale)
        return -np.log((probs / probs.sum(axis=1, keepdims=True))[range(60), val.labels]).mean()

    assert val_nll(temperature) <= min(val_nll(0.98 * temperature), val_nll(1.02 * temperature))  # chosen on validation


def test_k_nearest_neighbors_of_the_training_images(result):
    measurement, (train, _, test) = result
    left = test.embeddings / np.linalg.norm(test.embeddings, axis=1, keepdims=True)
    right = train.embeddings / np.linalg.norm(train.embeddings, axis=1, keepdims=True)
    is_right = {10: [], 20: []}
    for row, label in zip(left.astype(np.float64) @ right.T, test.labels, strict=True):
        for k, answers in is_right.items():
            near = np.argsort(-row)[:k]
            answers.append(np.bincount(train.labels[near], np.exp(row[near] / 0.07), minlength=3).argmax() == label)
    assert is_right[10] != is_right[20]
    for k, answers in is_right.items():
        assert measurement.scores[f"knn_top1_k{k}_t0.07"].tolist() == answers


def test_a_better_representation_is_better_by_every_measure(result):
    worse, better = result[0].metrics, measured(noise=0.3)[0].metrics
    for name in ("accuracy", "f1_macro", "knn_top1_k10_t0.07", "linear_probe_top1"):
        assert better[name] > worse[name]
    for name in ("nll", "brier", "nll_calibrated", "alignment"):
        assert better[name] < worse[name]
