"""A run of segmentation as stage evaluate leaves it, of made-up models: the truth with wrong blocks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from image_sets import encode

from grpo_rm.dense_datasets import DenseSplit, read_dense_split
from grpo_rm.evaluation.boundary import boundary_f1
from grpo_rm.evaluation.pixels import PixelSums, join_sums, pixel_sums
from grpo_rm.evaluation.segmentation import class_ious, pixel_metrics, pixel_reliability
from pipelines.batches import PREPARED
from pipelines.models import predictions_of
from pipelines.tables import write_csv

ERRORS = {"pretrain": 0.35, "cross_entropy": 0.2, "grpo_rm": 0.15}  # share of the blocks that are wrong
MARGIN = 3.0  # of the logit of the predicted class


def write_run(classes: list[str]) -> dict[str, dict[str, float]]:
    """Write predictions and plots of three models below the working directory; return their metrics on test."""
    metrics = {}
    for place, (name, share) in enumerate(ERRORS.items()):
        rows: list[dict[str, Any]] = []
        for part in ("val", "test"):
            split = read_dense_split(PREPARED, part)
            predictions = [predict(split, k, len(classes), share, seed=1000 * place + k) for k in range(len(split.ids))]
            sums, part_rows = answer(split, part, predictions, len(classes))
            rows += part_rows
        path = predictions_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        metrics[name] = {key: float(value.value) for key, value in pixel_metrics(sums).items()}
        write_plots(name, sums, classes)
    return metrics


def predict(split: DenseSplit, row: int, num_classes: int, share: float, *, seed: int) -> np.ndarray:
    """Return the mask of an image with some blocks of it given to the next class; void is given to class 0."""
    rng = np.random.default_rng(seed)
    mask = split.masks[row].astype(np.int64)
    coarse = rng.random((8, 8)) < share * rng.uniform(0.2, 1.8)
    rows, columns = (np.arange(length) * 8 // length for length in mask.shape)
    wrong = coarse[np.ix_(rows, columns)]
    return np.where(wrong, (np.maximum(mask, 0) + 1) % num_classes, np.maximum(mask, 0))


def answer(
    split: DenseSplit, part: str, predictions: list[np.ndarray], num_classes: int
) -> tuple[PixelSums, list[dict[str, Any]]]:
    """Return the sums of a split, and a row per image as reports/predictions has it."""
    parts, rows = [], []
    for place, predicted in enumerate(predictions):
        mask = split.masks[place].astype(np.int64)[None]
        logits = MARGIN * torch.eye(num_classes)[torch.from_numpy(predicted)].permute(2, 0, 1)[None]
        parts.append(pixel_sums(logits, torch.from_numpy(mask)))
        scores = boundary_f1(predicted[None], mask, num_classes)[0]
        rows.append(
            {
                "id": split.ids[place],
                "split": part,
                **{name: value[0].ravel().tolist() for name, value in vars(parts[-1]).items() if name != "nll"},
                "nll": float(parts[-1].nll[0]),
                "boundary_f1": [None if np.isnan(score) else float(score) for score in scores],
                "mask": encode(predicted.astype(np.uint8)),
            }
        )
    return join_sums(parts), rows


def write_plots(name: str, sums: PixelSums, classes: list[str]) -> None:
    """Write reports/plots."""
    plots = Path("reports/plots")
    rows = [{"class": classes[row["label"]], **row} for row in class_ious(sums.confusion)]
    write_csv(plots / "classes" / f"{name}.csv", [{k: v for k, v in row.items() if k != "label"} for row in rows])
    write_csv(plots / "reliability" / f"{name}.csv", [row | {"kind": "raw"} for row in pixel_reliability(sums)])
