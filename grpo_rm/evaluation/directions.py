"""Which direction is better: the one table of what the gate may ask of."""

import difflib
import re

HIGHER_IS_BETTER = (
    "accuracy",
    "top5_accuracy",
    "f1_macro",
    "worst_class_accuracy",
    "worst_group_accuracy",
    "linear_probe_top1",
    "knn_top1_k{k}_t{T}",  # {}: a number
    "retrieval_map",
    "retrieval_recall_k{k}",
    "miou",
    "pixel_accuracy",
    "mean_class_accuracy",
    "boundary_f1",
)
LOWER_IS_BETTER = (
    "nll",
    "brier",
    "ece",
    "nll_calibrated",
    "brier_calibrated",
    "ece_calibrated",
    "expected_cost",
    "expected_cost_bayes_calibrated",
    "alignment",
    "uniformity",
    "mce",
    "size_mb",
    "latency_ms",
)
CORRUPTIONS = ("noise", "blur", "brightness", "contrast", "jpeg", "pixelation")  # as in `corruptions`, without numpy


def is_higher_better(metric: str) -> bool:
    """Say whether higher values of a metric are better.

    Args:
        metric: As evaluation.json has it. What is before the last slash is where it was measured, such as in
            `robustness/mce` or `onnx/size_mb`, and does not matter; but `robustness/noise` is an accuracy.

    Raises:
        ValueError: The metric is not known, or neither direction of it is better, such as of `temperature`.
    """
    place, _, name = metric.rpartition("/")
    if place == "robustness" and name in CORRUPTIONS:
        return True
    if any(_is_meant(known, name) for known in HIGHER_IS_BETTER):
        return True
    if any(_is_meant(known, name) for known in LOWER_IS_BETTER):
        return False
    known = [*HIGHER_IS_BETTER, *LOWER_IS_BETTER]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    raise ValueError(f"unknown metric, or one without a better direction; {hint}")


def _is_meant(known: str, name: str) -> bool:
    parts = re.split(r"\{\w+\}", known)
    return bool(re.fullmatch(r"\d+(\.\d+)?".join(re.escape(part) for part in parts), name))
