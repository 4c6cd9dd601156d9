"""The models on the extra sets: metrics, and what a paired comparison needs.

Images that models have seen, in training or in validation, are left out of both.
"""

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
    """A set as it is prepared: for each image whether it is, or is nearly, a training or validation image."""

    name: str
    is_left_out: NDArray[np.bool_]

    @property
    def num_images(self) -> int:
        """How many images are measured."""
        return int((~self.is_left_out).sum())


def read_extra_sets(names: Iterable[str]) -> list[ExtraSet]:
    """Read which images of each set are left out, in the order of `read_split`."""
    return [_read_extra_set(name) for name in names]


def measured_images(name: str) -> int:
    """Return on how many images of a set models are measured; 0 where no such set is prepared."""
    return _read_extra_set(name).num_images if place_of(name)[0].is_dir() else 0


def _read_extra_set(name: str) -> ExtraSet:
    folder, split = place_of(name)
    columns = ["id", "copy_of", "near_duplicate_of"]
    rows = pq.read_table(folder / "manifest.parquet", columns=columns).to_pylist()
    originals = {row["id"]: row["copy_of"] or row["near_duplicate_of"] for row in rows}
    return ExtraSet(name, np.array([originals[id_] != "" for id_ in read_ids(folder, split)], dtype=np.bool_))


def extra_metrics(outputs: Outputs, extra_sets: Iterable[ExtraSet]) -> dict[str, float]:
    """Return `<set>/<metric>` of one model."""
    return {name: sums.value for extra in extra_sets for name, sums in extra_sums(outputs, extra).items()}


def extra_sums(outputs: Outputs, extra: ExtraSet) -> dict[str, MetricSums]:
    """Return what one model is compared by on a set."""
    predictions, is_measured = outputs[extra.name], ~extra.is_left_out
    sums = extra_set_sums(predictions.logits[is_measured], predictions.labels[is_measured])
    return {f"{extra.name}/{metric}": values for metric, values in sums.items()}
