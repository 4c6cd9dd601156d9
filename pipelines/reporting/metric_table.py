"""The metrics of `evaluation.json` as a table: what each is called, which value is best, what the comparison shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from grpo_rm.evaluation.comparison import Interval, describe, shown
from grpo_rm.evaluation.corruptions import CORRUPTIONS
from grpo_rm.evaluation.directions import is_higher_better
from pipelines.reporting.figures import MODEL_NAMES

CORRUPTED = "Corrupted images"  # a group of the table
ROBUSTNESS = "robustness"  # what is before the slash of a metric measured on corrupted images


class Name(NamedTuple):
    """How a metric is called, in which group it stands, and is it a share told in percent."""

    text: str
    group: str
    is_share: bool = False
    short: str = ""  # in the headline


class Metric(NamedTuple):
    """How a metric is shown, and which direction is better (None: neither)."""

    name: str
    group: str
    higher_is_better: bool | None
    is_share: bool = False
    short: str = ""


NAMES = {  # in the order of the table; {}: a number
    "accuracy": Name("Accuracy", "Classification", True, "accuracy"),
    "top5_accuracy": Name("Top-5 accuracy", "Classification", True),
    "f1_macro": Name("Macro F1", "Classification", True, "macro F1"),
    "worst_class_accuracy": Name("Accuracy of the worst class", "Classification", True),
    "worst_group_accuracy": Name("Accuracy of the worst group", "Classification", True),
    "expected_cost": Name("Expected cost", "Classification"),
    "expected_cost_bayes_calibrated": Name("Expected cost, least-cost decision, scaled", "Classification"),
    "miou": Name("Mean IoU", "Segmentation", True, "mean IoU"),
    "pixel_accuracy": Name("Pixel accuracy", "Segmentation", True, "pixel accuracy"),
    "mean_class_accuracy": Name("Mean accuracy of the classes", "Segmentation", True, "mean class accuracy"),
    "boundary_f1": Name("Boundary F1", "Segmentation", True, "boundary F1"),
    "knn_top1_k{k}_t{t}": Name("k-NN, k = {k}, T = {t}", "Embedding", True, "k-NN"),
    "linear_probe_top1": Name("Softmax regression (linear probe)", "Embedding", True, "softmax regression"),
    "retrieval_map": Name("Retrieval mAP", "Embedding", True),
    "retrieval_recall_k{k}": Name("Retrieval recall, k = {k}", "Embedding", True),
    "alignment": Name("Alignment", "Embedding"),
    "uniformity": Name("Uniformity", "Embedding"),
    "effective_rank": Name("Effective rank", "Embedding"),
    "nll": Name("NLL, nats", "Calibration", False, "NLL"),
    "brier": Name("Brier score", "Calibration"),
    "ece": Name("ECE", "Calibration"),
    "temperature": Name("Temperature", "Calibration"),
    "nll_calibrated": Name("NLL, scaled, nats", "Calibration"),
    "brier_calibrated": Name("Brier score, scaled", "Calibration"),
    "ece_calibrated": Name("ECE, scaled", "Calibration"),
    "mce": Name("Mean corruption error, pretrained = 100", CORRUPTED, True),
}
PATTERNS = {known: re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>\\d+(?:\\.\\d+)?)", known)) for known in NAMES}
GROUPS = ("Classification", "Segmentation", "Embedding", "Calibration", CORRUPTED)


@dataclass(frozen=True)
class Verdict:
    """One compared metric: GRPO-RM minus the control, in words and as an interval."""

    metric: Metric
    word: str  # of `describe`
    bounds: str  # "+0.83 to +1.94 points"
    difference: str
    low: float
    high: float
    center: float
    reach: float  # the interval lies in [-reach, reach]


def compare_metrics(comparison: Mapping[str, Mapping[str, Any]]) -> dict[str, Verdict]:
    """Say for every compared metric which arm is better; metrics without a better direction are left out."""
    verdicts = {}
    for key, entry in comparison.items():
        metric = metric_of(key)
        if "low" not in entry or metric.higher_is_better is None:
            continue
        interval = shown(
            Interval(**{field.name: entry[field.name] for field in fields(Interval) if field.name in entry})
        )
        text = describe(interval, higher_is_better=metric.higher_is_better, is_share=metric.is_share)
        word, _, bounds = text.partition(" (")
        difference = f"{100 * interval.difference:+z.2f}" if metric.is_share else f"{interval.difference:+z.4f}"
        reach = 1.1 * max(abs(interval.low), abs(interval.high)) or 1.0
        verdicts[key] = Verdict(
            metric, word, bounds.rstrip(")"), difference, interval.low, interval.high, interval.difference, reach
        )
    return verdicts


def metric_of(key: str) -> Metric:
    """Return how a metric of `evaluation.json` is shown; one that is not known is shown under its own name."""
    place, _, last = key.rpartition("/")
    if place == ROBUSTNESS and last in CORRUPTIONS:  # the accuracy under one of them
        called = "JPEG" if last == "jpeg" else last
        return Metric(f"Accuracy, {called}", CORRUPTED, True, True, f"accuracy under {called}")
    known = _pattern_of(last)
    if known is None:
        return Metric(key, "Other", None)
    name, numbers = NAMES[known], PATTERNS[known].fullmatch(last)
    assert numbers
    text = name.text.format(**numbers.groupdict())
    short = name.short or text
    if place == ROBUSTNESS:
        text = "Accuracy, mean of all" if last == "accuracy" else text
        return Metric(text, CORRUPTED, _direction(last), name.is_share, f"{short} on corrupted images")
    if place:
        return Metric(text, f"Test set {place}", _direction(last), name.is_share, f"{short} on {place}")
    return Metric(text, name.group, _direction(last), name.is_share, short)


def metric_table(
    models: Mapping[str, Mapping[str, Any]],
    verdicts: Mapping[str, Verdict],
    validation: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Lay out all scalar metrics: groups of rows, one cell per model, the best of a row marked.

    Args:
        models: model name to its metrics on the test images.
        verdicts: what the comparison of the two arms shows, by metric.
        validation: model name to its metrics on the validation images, which are shown beside.
    """
    keys = sorted({key for metrics in models.values() for key in metrics}, key=_position)
    groups: dict[str, list[dict[str, Any]]] = {}
    for key in keys:
        metric, values = metric_of(key), {name: models[name].get(key) for name in in_order(models)}
        if any(isinstance(value, int | float) for value in values.values()):
            beside = {name: (validation or {}).get(name, {}).get(key) for name in values}
            cells = _cells(values, beside, metric)
            row = {"key": key, "metric": metric, "cells": cells, "verdict": verdicts.get(key)}
            groups.setdefault(metric.group, []).append(row)
    return sorted(groups.items(), key=lambda group: _group_position(group[0]))


def in_order(models: Mapping[str, Any]) -> list[str]:
    """Return the names of the models in the order of the page."""
    return [name for name in MODEL_NAMES if name in models] + [name for name in models if name not in MODEL_NAMES]


def natural(key: str) -> list[tuple[int, str]]:
    """Sort k10 before k100 and after k9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def _pattern_of(name: str) -> str | None:
    return next((known for known, pattern in PATTERNS.items() if pattern.fullmatch(name)), None)


def _direction(name: str) -> bool | None:
    try:
        return is_higher_better(name)
    except ValueError:  # such as temperature
        return None


def _position(key: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort metrics as in NAMES, unknown ones last; k9 before k10."""
    last = key.rpartition("/")[2]
    known = _pattern_of(last)
    return (len(NAMES) if known is None else list(NAMES).index(known)), natural(key)


def _group_position(group: str) -> tuple[int, str]:
    """The groups of NAMES, then further test sets, then what is not known."""
    if group in GROUPS:
        return GROUPS.index(group), ""
    return len(GROUPS) + (group == "Other"), group


def _cells(values: Mapping[str, Any], beside: Mapping[str, Any], metric: Metric) -> list[dict[str, Any]]:
    """Show values as text. The best is found on the text, so that two equal texts are both marked or both not."""
    texts = {name: _text(value, metric) for name, value in values.items()}
    finite = {name: float(texts[name]) for name, value in values.items() if _is_finite(value)}
    choose = max if metric.higher_is_better else min
    best = choose(finite.values()) if finite and metric.higher_is_better is not None else None
    return [
        {
            "value": values[name],
            "model": name,
            "text": text,
            "validation": None if beside[name] is None else _text(beside[name], metric),
            "is_best": best is not None and finite.get(name) == best,
        }
        for name, text in texts.items()
    ]


def _text(value: Any, metric: Metric) -> str:
    if value is None:
        return "–"
    if not _is_finite(value):
        return "NaN"
    return f"{100 * value:.2f}" if metric.is_share else f"{value:.4f}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
