"""What the gate asks for is what is measured: any other name is refused when params.yaml is read."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from grpo_rm.config import Config, load_config
from grpo_rm.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from grpo_rm.evaluation.directions import HIGHER_IS_BETTER, LOWER_IS_BETTER, is_higher_better
from grpo_rm.evaluation.measurement import measure
from grpo_rm.evaluation.metric_sums import extra_set_sums
from grpo_rm.evaluation.robustness import robustness_metrics, robustness_scores
from grpo_rm.gate_names import why_refused
from grpo_rm.inference import Predictions
from pipelines.measurements import test_sums as sums_of_test

PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
BLOCKS = ("thresholds", "min_gain_over_control", "min_gain_over_champion")
GAINS = BLOCKS[1:]
WITHOUT_INTERVAL = ["alignment", "uniformity", "robustness/mce"]
OF_FILE = ["onnx/size_mb", "onnx/latency_ms"]


def values(*, images=10, costs=False, **gate):
    """params.yaml with the extra set sketch, and with these limits in the gate."""
    changed = deepcopy(PARAMS)
    changed["evaluate"] |= {"extra_sets": {"sketch": "folder:data/raw/sketch"}, "robustness": {"images": images}}
    if costs:
        changed["objective"] |= {"rewards": {"cost_matrix": 1.0}, "cost_matrix": "data/rewards/costs.csv"}
    changed["register"]["gate"] |= gate
    return changed


def lines_of(tmp_path, **changes):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values(**changes)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"params\.yaml has \d+ mistake\(s\):") as caught:
        load_config(path)
    return str(caught.value).split("\n  ")[1:]


@pytest.fixture(scope="module")
def six_classes():
    """A model of six classes on a test split with groups, so that everything there is can be measured."""
    rng = np.random.default_rng(0)

    def split(count):
        labels, logits = np.arange(count) % 6, rng.normal(size=(count, 6)).astype(np.float32)
        return Predictions(rng.normal(size=(count, 4)).astype(np.float32), logits, labels)

    groups = ["a", "b"] * 30
    train, val, test = split(60), split(60), split(60)
    measured = measure(train, val, test, ks=[10, 20], knn_temperature=0.07, costs=1 - np.eye(6), groups=groups)
    return measured, test, groups


def measured_names(six_classes):
    """Return the names of all metrics with a direction, and of those that models are compared by."""
    measured, test, groups = six_classes
    answers = np.random.default_rng(1).random((len(CORRUPTIONS), len(STRENGTHS), 9)) < 0.5
    of_set = {f"sketch/{name}" for name in extra_set_sums(test.logits, test.labels)}
    compared = {*sums_of_test(measured, test, groups), *robustness_scores(answers), *of_set}
    names = {*measured.metrics, *robustness_metrics(answers, answers), *of_set} - {"temperature", "effective_rank"}
    assert compared < names
    return {*names, *OF_FILE}, compared


def test_all_that_is_measured_may_be_asked_for_and_all_that_is_compared(six_classes):
    names, compared = measured_names(six_classes)
    assert sorted(names - compared) == sorted([*WITHOUT_INTERVAL, *OF_FILE])
    limits = {"thresholds": dict.fromkeys(names, 0.5)} | {block: dict.fromkeys(compared, -0.5) for block in GAINS}
    assert Config.model_validate(values(costs=True, **limits))


def test_nothing_else_may_be_asked_for(six_classes):
    names, compared = measured_names(six_classes)
    config = Config.model_validate(values(costs=True))
    alone = {name.rpartition("/")[2] for name in names}
    places = ("", "robustness/", "onnx/", "sketch/", "other/", "/", "sketch/sketch/")
    every = {place + name for place in places for name in (*alone, "knn_top1_k5_t0.07", "retrieval_recall_k2")}
    known = {name for name in every if name.rpartition("/")[2] not in CORRUPTIONS or name.startswith("robustness/")}
    assert all(isinstance(is_higher_better(name), bool) for name in known)
    for is_compared, allowed in ((False, names), (True, compared)):
        accepted = {name for name in known if why_refused(name, config, is_compared=is_compared) is None}
        assert accepted == allowed


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("metric", "line"),
    [
        (
            "skech/accuracy",
            "got the test set 'skech', which evaluate.extra_sets has not: add it there, or correct it; "
            "did you mean sketch?",
        ),
        (
            "far/accuracy",
            "got the test set 'far', which evaluate.extra_sets has not: add it there, or correct it; "
            "expected one of robustness, onnx, sketch",
        ),
        (
            "sketch/robustness/accuracy",
            "got 'sketch/robustness/accuracy', expected METRIC or SET/METRIC: take away every other slash",
        ),
        ("/accuracy", "got '/accuracy', expected METRIC or SET/METRIC: take away every other slash"),
        (
            "knn_top1_k5_t0.07",
            "not measured with evaluate.knn_k [10, 20] and evaluate.knn_temperature 0.07: change these, or write one "
            "of the expected knn_top1_k10_t0.07, knn_top1_k20_t0.07",
        ),
        (
            "knn_top1_k10_t0.070",
            "not measured with evaluate.knn_k [10, 20] and evaluate.knn_temperature 0.07: change these, or write one "
            "of the expected knn_top1_k10_t0.07, knn_top1_k20_t0.07",
        ),
        (
            "retrieval_recall_k2",
            "not measured: expected one of retrieval_recall_k1, retrieval_recall_k5, retrieval_recall_k10, so write "
            "one of these",
        ),
        (
            "expected_cost",
            "not measured, as objective.cost_matrix is null: set it to a CSV file, or ask for another metric",
        ),
        ("mce", "not measured on the test split: expected robustness/mce, so write that"),
        ("size_mb", "not measured on the test split: expected onnx/size_mb, so write that"),
        ("onnx/accuracy", "not measured: expected one of onnx/size_mb, onnx/latency_ms, so write one of these"),
        (
            "robustness/nll",
            "not measured: expected one of robustness/accuracy, robustness/mce, robustness/noise, robustness/blur, "
            "robustness/brightness, robustness/contrast, robustness/jpeg, robustness/pixelation, so write one of these",
        ),
        (
            "sketch/ece",
            "not measured: expected one of sketch/accuracy, sketch/nll, sketch/brier, sketch/f1_macro, so write one of "
            "these",
        ),
    ],
)
def test_a_name_that_is_never_measured(tmp_path, block, metric, line):
    assert lines_of(tmp_path, **{block: {"accuracy": 0.0, metric: 0.5}}) == [f"register.gate.{block}.{metric}: {line}"]


@pytest.mark.parametrize("block", GAINS)
@pytest.mark.parametrize("metric", [*WITHOUT_INTERVAL, *OF_FILE])
def test_a_name_without_an_interval_is_for_thresholds(tmp_path, block, metric):
    (line,) = lines_of(tmp_path, **{block: {metric: -0.5}, "thresholds": {metric: 5}})
    expected = "expected a metric that models are compared by, and this one has no interval: ask for it in thresholds"
    assert line == f"register.gate.{block}.{metric}: {expected}"


@pytest.mark.parametrize("metric", ["robustness/accuracy", "robustness/mce", "robustness/jpeg"])
def test_no_image_is_corrupted(tmp_path, metric):
    (line,) = lines_of(tmp_path, images=0, thresholds={metric: 0.5})
    assert line == (
        f"register.gate.thresholds.{metric}: no image is corrupted, as evaluate.robustness.images is 0: "
        "set it to 1 or more"
    )


def test_every_mistake_of_the_gate_is_listed(tmp_path):
    lines = lines_of(
        tmp_path,
        thresholds={"accuracy": 0.5, "onnx/ece": 1, "far/ece": 1},
        min_gain_over_control={"uniformity": 0},
        min_gain_over_champion={"far/nll": 0},
    )
    assert sorted(line.split(": ")[0] for line in lines) == [
        "register.gate.min_gain_over_champion.far/nll",
        "register.gate.min_gain_over_control.uniformity",
        "register.gate.thresholds.far/ece",
        "register.gate.thresholds.onnx/ece",
    ]


OF_SEGMENTATION = [
    *("miou", "pixel_accuracy", "mean_class_accuracy", "boundary_f1", "nll", "ece"),
    *("knn_top1_k10_t0.07", "knn_top1_k20_t0.07", "linear_probe_top1"),
]


def dense_values(**gate):
    """The same for segmentation; the gate asks for the mean IoU but where something else is said."""
    miou = {block: {"miou": -0.5} for block in BLOCKS}
    changed = values(images=0, **(miou | gate))
    changed["evaluate"]["extra_sets"] = {}
    for block in ("pretrain", "finetune"):
        changed[block]["monitor"] = "val_miou"
    return changed | {"task": "segmentation"}


def refusals(**gate):
    """Return the names of segmentation's gate that are refused, each with the reason."""
    try:
        Config.model_validate(dense_values(**gate))
    except ValidationError as error:
        return {detail["loc"][-2]: detail["msg"] for detail in error.errors()}
    return {}


def test_what_segmentation_measures():
    every = [*HIGHER_IS_BETTER, *LOWER_IS_BETTER, *OF_SEGMENTATION]
    names = {name for name in every if "{" not in name} | {f"onnx/{name}" for name in ("size_mb", "latency_ms")}
    assert refusals(thresholds=dict.fromkeys(names, 0.5)).keys() == names - {*OF_SEGMENTATION, *OF_FILE}
    asked = dict.fromkeys(OF_SEGMENTATION, -0.5)
    assert refusals(min_gain_over_control=asked) == {}
    of_champion = refusals(min_gain_over_champion=asked)
    assert of_champion.keys() == {name for name in OF_SEGMENTATION if name.startswith(("knn_", "linear_"))}
    assert set(of_champion.values()) == {
        "the ONNX file gives no embedding of a place: ask for it in thresholds or min_gain_over_control"
    }


@pytest.mark.parametrize("block", BLOCKS)
def test_segmentation_has_no_accuracy(block):
    expected = ", ".join([*OF_SEGMENTATION[:4], "nll", "ece", *OF_SEGMENTATION[6:]])
    reason = f"not measured with task segmentation: expected one of {expected}, so write one of these"
    assert refusals(**{block: {"accuracy": 0.9}}) == {"accuracy": reason}


@pytest.mark.parametrize("metric", OF_SEGMENTATION[:4])
def test_classification_has_no_metric_of_pixels(tmp_path, metric):
    (line,) = lines_of(tmp_path, thresholds={metric: 0.5})
    assert line.startswith(f"register.gate.thresholds.{metric}: not measured: expected one of")
