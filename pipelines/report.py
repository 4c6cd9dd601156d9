"""Write `reports/index.html`: one page that needs no network and says whether GRPO-RM helped, and why."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grpo_rm.evaluation.comparison import Interval, describe, shown
from pipelines import plots
from pipelines.svg import SVG_NAMESPACE

TEMPLATE = "report.html.j2"
MAX_CLASS_ROWS = 30
MAX_CONFUSIONS = 8
WORDS = ("better", "worse", "no difference shown")  # of `describe`
NAMED_VERDICTS = ("accuracy", "knn", "linear_probe_top1", "nll")


class Metric(NamedTuple):
    """How a metric is called, which direction is better (None: neither), and is it a share told in percent."""

    name: str
    group: str
    higher_is_better: bool | None
    is_share: bool = False
    short: str = ""


METRICS = {
    "accuracy": Metric("Accuracy", "Classification", True, True, "accuracy"),
    "f1_macro": Metric("Macro F1", "Classification", True, True, "macro F1"),
    "nll": Metric("NLL, nats", "Calibration", False, False, "NLL"),
    "brier": Metric("Brier score", "Calibration", False),
    "ece": Metric("ECE", "Calibration", False),
    "temperature": Metric("Temperature", "Calibration", None),
    "nll_calibrated": Metric("NLL, scaled, nats", "Calibration", False),
    "brier_calibrated": Metric("Brier score, scaled", "Calibration", False),
    "ece_calibrated": Metric("ECE, scaled", "Calibration", False),
    "linear_probe_top1": Metric("Softmax regression (linear probe)", "Embedding", True, True, "softmax regression"),
    "alignment": Metric("Alignment", "Embedding", False),
    "uniformity": Metric("Uniformity", "Embedding", False),
    "effective_rank": Metric("Effective rank", "Embedding", None),
}
KNN_NAME = re.compile(r"knn_top1_k(?P<k>\d+)_t(?P<t>[\d.]+)")


@dataclass(frozen=True)
class Verdict:
    """One compared metric: GRPO-RM minus the control, in words and as an interval."""

    metric: Metric
    word: str  # one of WORDS
    bounds: str  # "+0.83 to +1.94 points"
    difference: str
    low: float
    high: float
    center: float
    reach: float  # the interval lies in [-reach, reach]


def write_report(path: Path | str, **content: Any) -> None:
    """Write the page atomically: an interrupted run leaves the earlier page as it was.

    Args:
        path: usually `reports/index.html`; its folder is made.
        content: the arguments of `render_report`.
    """
    path = Path(path)
    html = render_report(**content)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(html, encoding="utf-8", newline="\n")
    partial.replace(path)


def render_report(
    *,
    evaluation: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    dataset: Mapping[str, Any],
    reliability: Mapping[str, Sequence[Mapping[str, Any]]],
    confusion: np.ndarray,
    lineage: Mapping[str, str],
) -> str:
    """Return the page as HTML; the same arguments give the same text.

    Args:
        evaluation: the content of `reports/evaluation.json`: `models` and `comparison`.
        histories: model name to the rows of its learning curve; GRPO statistics are shown where they are.
        dataset: the content of `data/prepared/dataset.json`.
        reliability: model name to the rows of `plots.reliability_rows`.
        confusion: (K, K) counts of the GRPO-RM model, actual classes down, in the order of `dataset["classes"]`.
        lineage: what the page was made from, in the order to be shown: commit, data hash, versions, hardware, seed...

    Raises:
        ValueError: the confusion matrix does not fit the classes.
    """
    models, comparison, classes = evaluation["models"], evaluation.get("comparison", {}), dataset["classes"]
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(
            f"got a confusion matrix of shape {confusion.shape}, expected K x K for {len(classes)} classes"
        )
    verdicts = compare_metrics(comparison)
    main_verdicts = [verdicts[key] for key in _main_metrics(verdicts)]
    arms = {name: rows for name, rows in reliability.items() if name != "pretrain"}
    context = {
        "dataset": dataset,
        "sentence": group_by_word(main_verdicts),
        "verdicts": main_verdicts,
        "interval": next((value for value in comparison.values() if "confidence" in value), None),
        "mcnemar": comparison.get("mcnemar"),
        "models": {name: plots.MODEL_NAMES.get(name, name) for name in _in_order(models)},
        "groups": metric_table(models, verdicts),
        "learning": plots.learning_panels(histories),
        "statistics": plots.statistics_panels(histories),
        "reliability": plots.reliability_panels(arms, models),
        "confusion_svg": plots.confusion_figure(confusion, classes),
        "confusions": largest_confusions(confusion, classes),
        "num_classes": len(classes),
        "num_errors": int(confusion.sum() - np.trace(confusion)),
        "num_images": int(confusion.sum()),
        "counts": class_counts(dataset),
        "lineage": lineage,
        "commit": next((c for c in [lineage.get("commit", "")] if re.fullmatch(r"[0-9a-f]{7,64}", c)), None),
    }
    return str(_template().render(context))


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
        difference = f"{100 * interval.difference:+.2f}" if metric.is_share else f"{interval.difference:+.4f}"
        reach = 1.1 * max(abs(interval.low), abs(interval.high)) or 1.0
        verdicts[key] = Verdict(
            metric, word, bounds.rstrip(")"), difference, interval.low, interval.high, interval.difference, reach
        )
    return verdicts


def group_by_word(verdicts: Sequence[Verdict]) -> list[tuple[str, list[Verdict]]]:
    """Group the verdicts of the headline: better first, then worse, then no difference shown; empty groups left out."""
    groups = [(word, [verdict for verdict in verdicts if verdict.word == word]) for word in WORDS]
    return [(word, members) for word, members in groups if members]


def metric_of(key: str) -> Metric:
    """Return how a metric of `evaluation.json` is shown; one that is not known is shown under its own name."""
    if key in METRICS:
        return METRICS[key]
    if match := KNN_NAME.fullmatch(key):
        return Metric(f"k-NN, k = {match['k']}, T = {match['t']}", "Embedding", True, True, "k-NN")
    return Metric(key, "Other", None)


def metric_table(
    models: Mapping[str, Mapping[str, Any]], verdicts: Mapping[str, Verdict]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Lay out all scalar metrics: groups of rows, one cell per model, the best of a row marked."""
    keys = sorted({key for metrics in models.values() for key in metrics}, key=_position)
    groups: dict[str, list[dict[str, Any]]] = {"Classification": [], "Embedding": [], "Calibration": [], "Other": []}
    for key in keys:
        metric, values = metric_of(key), {name: models[name].get(key) for name in _in_order(models)}
        if any(isinstance(value, int | float) for value in values.values()):
            cells = _cells(values, metric)
            groups[metric.group].append({"key": key, "metric": metric, "cells": cells, "verdict": verdicts.get(key)})
    return [(name, rows) for name, rows in groups.items() if rows]


def largest_confusions(counts: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the largest off-diagonal cells of a confusion matrix (K, K), the largest first, ties in class order."""
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:MAX_CONFUSIONS]
    cells = [divmod(int(flat), len(classes)) for flat in order if errors.flat[flat] > 0]
    return [
        {
            "actual": classes[a],
            "predicted": classes[p],
            "count": int(errors[a, p]),
            "share": errors[a, p] / counts[a].sum(),
        }
        for a, p in cells
    ]


def class_counts(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Lay out the images per split and class; of many classes the rarest in the first split are listed."""
    splits, classes = list(dataset["counts"]), dataset["classes"]
    rows = [(name, [dataset["counts"][split].get(name, 0) for split in splits]) for name in classes]
    totals = [sum(row[1][i] for row in rows) for i in range(len(splits))]
    first = sorted(row[1][0] for row in rows)
    listed = rows if len(rows) <= MAX_CLASS_ROWS else sorted(rows, key=lambda row: row[1][0])[:MAX_CLASS_ROWS]
    spread = {"least": first[0], "median": float(np.median(first)), "most": first[-1]}
    return {"splits": splits, "rows": listed, "totals": totals, "spread": spread, "num_hidden": len(rows) - len(listed)}


def _cells(values: Mapping[str, Any], metric: Metric) -> list[dict[str, Any]]:
    """Show values as text. The best is found on the text, so that two equal texts are both marked or both not."""
    texts = {name: _text(value, metric) for name, value in values.items()}
    finite = {name: float(texts[name]) for name, value in values.items() if _is_finite(value)}
    choose = max if metric.higher_is_better else min
    best = choose(finite.values()) if finite and metric.higher_is_better is not None else None
    return [
        {"model": name, "value": values[name], "text": text, "is_best": best is not None and finite.get(name) == best}
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


def _main_metrics(verdicts: Mapping[str, Verdict]) -> list[str]:
    """The metrics of the headline that were compared; of several k-NN the one with the most neighbours."""
    largest_knn = max((key for key in verdicts if KNN_NAME.fullmatch(key)), key=_natural, default="")
    keys = [largest_knn if key == "knn" else key for key in NAMED_VERDICTS]
    return [key for key in keys if key in verdicts]


def _position(key: str) -> tuple[float, list[tuple[int, str]]]:
    """Sort metrics as in METRICS, k-NN before the other metrics of the embedding, unknown ones last."""
    names = list(METRICS)
    if key in METRICS:
        return names.index(key), []
    is_knn = KNN_NAME.fullmatch(key) is not None
    return (names.index("linear_probe_top1") - 0.5 if is_knn else len(names)), _natural(key)


def _in_order(models: Mapping[str, Any]) -> list[str]:
    return [name for name in plots.MODEL_NAMES if name in models] + [n for n in models if n not in plots.MODEL_NAMES]


def _natural(key: str) -> list[tuple[int, str]]:
    """Sort k10 before k100 and after k9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(Path(__file__).parent)
    # autoescape: class names and file names are the user's, and a page is opened in a browser.
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Only SVG of our own passes unescaped; its text was escaped when it was written.
    environment.filters["inline_svg"] = lambda svg: Markup(svg.replace(f' xmlns="{SVG_NAMESPACE}"', ""))
    return environment.get_template(TEMPLATE)
