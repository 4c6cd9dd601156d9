"""The table of models: every metric of the gate has a name, a group and its direction; validation stands beside."""

import re

import pytest

from grpo_rm.evaluation.corruptions import CORRUPTIONS
from grpo_rm.evaluation.directions import HIGHER_IS_BETTER, LOWER_IS_BETTER
from pipelines.reporting.metric_table import metric_of, metric_table

MEASURED_ON_IMAGES = [name for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER) if name not in ("size_mb", "latency_ms")]


@pytest.mark.parametrize("known", MEASURED_ON_IMAGES)
def test_every_metric_with_a_direction_has_a_name_and_a_group(known: str) -> None:
    metric = metric_of(re.sub(r"\{\w+\}", "10", known))
    assert metric.group in {"Classification", "Segmentation", "Embedding", "Calibration", "Corrupted images"}
    assert metric.name and "{" not in metric.name
    assert metric.higher_is_better is (known in HIGHER_IS_BETTER)


def test_numbers_go_into_the_name() -> None:
    assert metric_of("knn_top1_k20_t0.07").name == "k-NN, k = 20, T = 0.07"
    assert metric_of("retrieval_recall_k5").name == "Retrieval recall, k = 5"


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_accuracy_under_a_corruption_is_a_share_and_higher_is_better(corruption: str) -> None:
    metric = metric_of(f"robustness/{corruption}")
    assert metric.group == "Corrupted images"
    assert metric.higher_is_better and metric.is_share


def test_errors_on_corrupted_images_are_better_low() -> None:
    assert metric_of("robustness/mce").higher_is_better is False
    assert metric_of("robustness/accuracy").higher_is_better is True


def test_further_test_sets_have_groups_of_their_own_before_the_unknown() -> None:
    metrics = {"mine": 1.0, "sketch/accuracy": 0.4, "robustness/mce": 0.9, "nll": 0.1, "retrieval_map": 0.7}
    groups = metric_table({"grpo_rm": metrics}, {})
    names = [name for name, _ in groups]
    assert names == ["Embedding", "Calibration", "Corrupted images", "Test set sketch", "Other"]


def test_neither_direction_of_the_temperature_is_better() -> None:
    assert metric_of("temperature").higher_is_better is None
    assert metric_of("mine").higher_is_better is None


def test_validation_stands_beside_where_it_was_measured() -> None:
    models = {"grpo_rm": {"accuracy": 0.9, "retrieval_map": 0.8}, "pretrain": {"accuracy": 0.7}}
    groups = dict(metric_table(models, {}, {"grpo_rm": {"accuracy": 0.95}}))
    beside = {cell["model"]: cell["validation"] for cell in groups["Classification"][0]["cells"]}
    assert beside == {"grpo_rm": "95.00", "pretrain": None}
    assert {cell["validation"] for cell in groups["Embedding"][0]["cells"]} == {None}
