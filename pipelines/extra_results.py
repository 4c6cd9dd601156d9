"""The models on the extra sets: metrics, and what a paired comparison needs."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from grpo_rm.datasets import read_ids
from grpo_rm.evaluation.metric_sums import extra_set_sums
from grpo_rm.evaluation.resampling import MetricSums
from pipelines.predictions import Outputs, place_of


@dataclass(frozen=True)
class ExtraSet:
    """A set as it is prepared: for each image whether it is, or is nearly, one that models were trained on."""

    name: str
    is_trained_on: NDArray[np.bool_]


def read_extra_sets(names: Iterable[str]) -> list[ExtraSet]:
    """Read which images of each set models were trained on, in the order of `read_split`, and print how many."""
    extra_sets = [_read_extra_set(name) for name in names]
    for extra in extra_sets:
        if extra.is_trained_on.any():
            count = f"{extra.is_trained_on.sum()} of {len(extra.is_trained_on)} images"
            print(f"warning: {extra.name}: {count} are training images or nearly so; see accuracy_without_copies")
    return extra_sets


def _read_extra_set(name: str) -> ExtraSet:
    folder, split = place_of(name)
    columns = ["id", "copy_of", "near_duplicate_of"]
    rows = pq.read_table(folder / "manifest.parquet", columns=columns).to_pylist()
    originals = {row["id"]: row["copy_of"] or row["near_duplicate_of"] for row in rows}
    return ExtraSet(name, np.array([originals[id_] != "" for id_ in read_ids(folder, split)], dtype=np.bool_))


def extra_metrics(outputs: Outputs, extra_sets: Iterable[ExtraSet]) -> dict[str, float]:
    """Return `<set>/<metric>` of one model; `accuracy_without_copies` where a set has copies, and other images."""
    metrics: dict[str, float] = {}
    for extra in extra_sets:
        predictions, is_new = outputs[extra.name], ~extra.is_trained_on
        metrics |= {metric: sums.value for metric, sums in extra_sums(outputs, extra.name).items()}
        if is_new.any() and not is_new.all():
            is_right = predictions.logits.argmax(axis=1) == predictions.labels
            metrics[f"{extra.name}/accuracy_without_copies"] = float(is_right[is_new].mean())
    return metrics


def extra_sums(outputs: Outputs, name: str) -> dict[str, MetricSums]:
    """Return what one model is compared by on a set."""
    sums = extra_set_sums(outputs[name].logits, outputs[name].labels)
    return {f"{name}/{metric}": values for metric, values in sums.items()}
