"""The tables that DVC's plots are drawn from."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_rm.datasets import read_dataset
from grpo_rm.evaluation.calibration import reliability_bins
from grpo_rm.evaluation.classification import per_class_metrics
from pipelines.batches import PREPARED
from pipelines.predictions import Outputs
from pipelines.tables import write_csv

PLOTS = Path("reports/plots")


def write_plots(name: str, outputs: Outputs, *, temperature: float) -> None:
    """Write confusions, reliability and metrics per class of a model.

    Args:
        name: Of the model.
        outputs: Of val and test.
        temperature: Fitted on validation.
    """
    classes, test = read_dataset(PREPARED)["classes"], outputs["test"]
    bins = (reliability_bins(test.logits / np.float32(t), test.labels) for t in (1, temperature))
    confusion = confusion_rows(test.logits.argmax(axis=1), test.labels, classes)
    write_csv(PLOTS / "confusion" / f"{name}.csv", confusion)
    write_csv(PLOTS / "reliability" / f"{name}.csv", reliability_rows(*bins))
    for folder, split in {"classes": "test", "validation_classes": "val"}.items():
        rows = per_class_metrics(outputs[split].logits, outputs[split].labels)
        write_csv(PLOTS / folder / f"{name}.csv", [{"class": classes[row["label"]], **row} for row in rows])


def confusion_rows(predictions: Iterable[int], labels: Iterable[int], classes: Sequence[str]) -> list[dict[str, str]]:
    """One row per image for DVC's `confusion` template.

    Args:
        predictions: (N,) predicted class indices.
        labels: (N,) true class indices.
        classes: K class names.

    Returns:
        N rows with the class names `actual` and `predicted`.

    Raises:
        ValueError: the two differ in length, or an index is outside [0, K).
    """
    predicted, actual = _class_indices(predictions, "prediction", classes), _class_indices(labels, "label", classes)
    if len(predicted) != len(actual):
        raise ValueError(f"got {len(predicted)} predictions for {len(actual)} labels; give one prediction per label")
    return [{"actual": classes[a], "predicted": classes[p]} for a, p in zip(actual, predicted, strict=True)]


def reliability_rows(
    raw_bins: Iterable[Mapping[str, Any]], calibrated_bins: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of a reliability diagram before (`kind` raw) and after (`kind` calibrated) temperature scaling.

    Args:
        raw_bins: what `grpo_rm.evaluation.calibration.reliability_bins` returns for the logits.
        calibrated_bins: the same for the logits divided by the temperature.

    Returns:
        Rows with `confidence` and `accuracy` in [0, 1], `count` and `kind`; empty bins are left out.
    """
    kinds = {"raw": raw_bins, "calibrated": calibrated_bins}
    return [
        {"confidence": b["confidence"], "accuracy": b["accuracy"], "count": int(b["count"]), "kind": kind}
        for kind, bins in kinds.items()
        for b in bins
        if b["count"] > 0
    ]


def _class_indices(values: Iterable[int], what: str, classes: Sequence[str]) -> list[int]:
    indices = [int(value) for value in values]
    outside = [index for index in indices if not 0 <= index < len(classes)]
    if outside:
        raise ValueError(f"got {what} {outside[0]}, expected a class index from 0 to {len(classes) - 1}")
    return indices
