"""What the gate may ask for with these parameters: a name that nothing measures is refused before hours of training."""

from typing import TYPE_CHECKING

from grpo_rm.config_errors import nearest, several
from grpo_rm.evaluation.directions import CORRUPTIONS, HIGHER_IS_BETTER, LOWER_IS_BETTER

if TYPE_CHECKING:
    from grpo_rm.config import Config

OF_EXTRA_SETS = ("accuracy", "nll", "brier", "f1_macro")  # as in `metric_sums.extra_set_sums`, without numpy
OF_DENSE_ALONE = ("miou", "pixel_accuracy", "mean_class_accuracy", "boundary_f1")  # of no other task
OF_PIXELS = (*OF_DENSE_ALONE, "nll", "ece")  # as in `evaluation.segmentation`, without numpy
OF_PLACES = ("knn_", "linear_probe_")  # what the names of their metrics begin with
OF_CORRUPTED = ("accuracy", "mce", *CORRUPTIONS)
OF_FILE = ("size_mb", "latency_ms")
RECALL_KS = (1, 5, 10)  # as in `retrieval`, without torch
WITHOUT_INTERVAL = ("alignment", "uniformity", "robustness/mce", *(f"onnx/{name}" for name in OF_FILE))


def check_gate(config: "Config") -> None:
    """Refuse limits that no candidate can meet.

    Raises:
        ValidationError: A mistake for each metric of `register.gate` that is never measured, or never compared.
    """
    mistakes: dict[tuple[str, ...], str] = {
        ("register", "gate", block, metric): why
        for block, limits in config.register_.gate
        for metric in limits
        if (why := _why_refused_in(block, metric, config))
    }
    if mistakes:
        raise several(mistakes)


def _why_refused_in(block: str, metric: str, config: "Config") -> str | None:
    is_dense, is_of_champion = config.task == "segmentation", block == "min_gain_over_champion"
    if is_dense and is_of_champion and metric.startswith(OF_PLACES):  # the champion is known by its file alone
        return "the ONNX file gives no embedding of a place: ask for it in thresholds or min_gain_over_control"
    return why_refused(metric, config, is_compared=block != "thresholds")


def why_refused(metric: str, config: "Config", *, is_compared: bool) -> str | None:
    """Return what is wrong with asking for a metric, and how to fix it; None where nothing is.

    Args:
        metric: One that `directions.is_higher_better` knows.
        config: All of it.
        is_compared: Whether an interval is needed: for a gain over another model.
    """
    place, _, name = metric.rpartition("/")
    of_test = _of_dense_test(config) if config.task == "segmentation" else _of_test(config)
    places = {"": of_test, "robustness": OF_CORRUPTED, "onnx": OF_FILE}
    places |= dict.fromkeys(config.evaluate.extra_sets, OF_EXTRA_SETS)
    if metric.startswith("/") or "/" in place:
        return f"got {metric!r}, expected METRIC or SET/METRIC: take away every other slash"
    if place not in places:
        known = nearest(place, [known for known in places if known])
        return f"got the test set {place!r}, which evaluate.extra_sets has not: add it there, or correct it; {known}"
    if name not in places[place]:
        return _why_not_measured(metric, config, [f"{place}/{known}" if place else known for known in places[place]])
    if place == "robustness" and not config.evaluate.robustness.images:
        return "no image is corrupted, as evaluate.robustness.images is 0: set it to 1 or more"
    if is_compared and metric in WITHOUT_INTERVAL:
        return "expected a metric that models are compared by, and this one has no interval: ask for it in thresholds"
    return None


def _of_dense_test(config: "Config") -> list[str]:
    """Return what is measured on the test split in segmentation."""
    ks, temperature = config.evaluate.knn_k, config.evaluate.knn_temperature
    return [*OF_PIXELS, *(f"knn_top1_k{k}_t{temperature:g}" for k in ks), "linear_probe_top1"]


def _of_test(config: "Config") -> list[str]:
    """Return what is measured on the test split; some of it only with groups, or with more than five classes."""
    elsewhere = {"mce", *OF_FILE, *OF_DENSE_ALONE}
    known = [name for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER) if "{" not in name and name not in elsewhere]
    ks, temperature = config.evaluate.knn_k, config.evaluate.knn_temperature
    has_costs = config.objective.cost_matrix is not None
    return [
        *(name for name in known if has_costs or not name.startswith("expected_cost")),
        *(f"knn_top1_k{k}_t{temperature:g}" for k in ks),
        *(f"retrieval_recall_k{k}" for k in RECALL_KS),
    ]


def _why_not_measured(metric: str, config: "Config", measured: list[str]) -> str:
    """Say why a metric is none of those measured in its place."""
    settings = config.evaluate
    full_names = {"mce": "robustness/mce", **{name: f"onnx/{name}" for name in OF_FILE}}
    if metric in full_names:
        return f"not measured on the test split: expected {full_names[metric]}, so write that"
    if metric.startswith("expected_cost") and config.task == "classification":
        return "not measured, as objective.cost_matrix is null: set it to a CSV file, or ask for another metric"
    if metric.startswith("knn_"):
        names = ", ".join(name for name in measured if name.startswith("knn_"))
        given = f"evaluate.knn_k {settings.knn_k} and evaluate.knn_temperature {settings.knn_temperature:g}"
        return f"not measured with {given}: change these, or write one of the expected {names}"
    alike = [name for name in measured if name.startswith("retrieval_recall_")] or measured
    with_task = " with task segmentation" if config.task == "segmentation" else ""
    return f"not measured{with_task}: expected one of {', '.join(alike)}, so write one of these"
