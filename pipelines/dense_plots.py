"""The tables that DVC's plots of dense predictions are drawn from."""

from collections.abc import Sequence
from typing import Any

from grpo_rm.datasets import read_dataset
from grpo_rm.evaluation.pixels import Counts, PixelSums
from grpo_rm.evaluation.segmentation import class_ious, pixel_reliability
from pipelines.batches import PREPARED
from pipelines.dvc_plots import PLOTS
from pipelines.tables import write_csv

ROWS = 100  # of the table of confusions, per class: DVC counts rows


def write_plots(name: str, *, val: PixelSums, test: PixelSums) -> None:
    """Write confusions, reliability and metrics per class of a model."""
    classes = read_dataset(PREPARED)["classes"]
    write_csv(PLOTS / "confusion" / f"{name}.csv", pixel_confusion_rows(test.confusion, classes))
    reliability = [{**point, "kind": "raw"} for point in pixel_reliability(test)]
    write_csv(PLOTS / "reliability" / f"{name}.csv", reliability)
    for folder, sums in {"classes": test, "validation_classes": val}.items():
        write_csv(PLOTS / folder / f"{name}.csv", class_rows(sums.confusion, classes))


def class_rows(confusion: Counts, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return `class`, `iou`, `recall` and `pixels` of each class; what is not defined is None.

    Args:
        confusion: (N, K, K) of the images.
        classes: K names.
    """
    measured = class_ious(confusion)
    return [
        {"class": classes[row["label"]], "iou": row["iou"], "recall": row["accuracy"], "pixels": row["pixels"]}
        for row in measured
    ]


def pixel_confusion_rows(confusion: Counts, classes: Sequence[str]) -> list[dict[str, str]]:
    """Return rows with the class names `actual` and `predicted`, each for about a percent of the pixels of its class.

    Args:
        confusion: (N, K, K) of the images.
        classes: K names.
    """
    total = confusion.sum(axis=0)
    return [
        {"actual": classes[actual], "predicted": classes[predicted]}
        for actual, counts in enumerate(total)
        for predicted, count in enumerate(counts)
        for _ in range(round(ROWS * count / max(1, counts.sum())))
    ]
