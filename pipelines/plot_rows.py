"""Rows of the tables that DVC's plots are drawn from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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
