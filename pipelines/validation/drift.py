"""How far the data has moved from its previous version: population stability index and Kolmogorov-Smirnov statistic."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.validation.class_counts import label_counts
from pipelines.validation.manifest import CHANNELS, is_decodable, to_numpy

Amounts = NDArray[np.float64] | NDArray[np.int64]
BINS = 10
SMALLEST_SHARE = 1e-4  # of an empty bin: the index would be infinite


def population_stability_index(previous: Amounts, present: Amounts) -> float:  # (B,), (B,)
    """sum_b (q_b - p_b) ln(q_b / p_b), the shares p (previous) and q (present) of the bins from how much is in each.

    As a rule of thumb, below 0.1 nothing has changed, over 0.2 it has.
    """
    p, q = (np.maximum(part / max(part.sum(), 1), SMALLEST_SHARE) for part in (previous, present))
    return float(np.sum((q - p) * np.log(q / p)))


def count_in_bins(
    previous: NDArray[np.float64], present: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # (N,), (M,) -> (B,), (B,)
    """How many values are between the deciles of the previous ones; equal deciles count once."""
    edges = np.unique(np.quantile(previous, np.arange(1, BINS) / BINS)) if len(previous) else np.empty(0)
    counts = (np.bincount(np.searchsorted(edges, part), minlength=len(edges) + 1) for part in (previous, present))
    return next(counts), next(counts)


def kolmogorov_smirnov(previous: NDArray[np.float64], present: NDArray[np.float64]) -> float:  # (N,), (M,)
    """The largest distance between the two cumulative distributions, in [0, 1]; 1 where one alone is empty."""
    if not len(previous) or not len(present):
        return float(len(previous) != len(present))
    previous, present = np.sort(previous), np.sort(present)
    values = np.concatenate([previous, present])
    values.sort(kind="stable")
    shares = (np.searchsorted(part, values, side="right") / len(part) for part in (previous, present))
    return float(np.max(np.abs(next(shares) - next(shares))))


def channel_table(previous: pa.Table, present: pa.Table) -> pd.DataFrame:
    """One row per image of both versions that can be decoded: the statistics of its channels, `is_previous`."""
    parts = [
        pd.DataFrame({name: to_numpy(manifest[name])[is_decodable(manifest)] for name in CHANNELS})
        for manifest in (previous, present)
    ]
    is_previous = np.arange(sum(map(len, parts))) < len(parts[0])
    return pd.concat(parts, ignore_index=True).assign(is_previous=is_previous)


def label_table(
    previous: pa.Table, previous_classes: Sequence[str], present: pa.Table, classes: Sequence[str]
) -> pd.DataFrame:
    """One row per version and class: `class`, `amount` (images; in segmentation pixels), `is_previous`."""
    parts = [
        pd.DataFrame({"class": names, "amount": label_counts(manifest, len(names)), "is_previous": is_previous})
        for is_previous, manifest, names in (
            (True, previous, list(previous_classes)),
            (False, present, list(classes)),
        )
    ]
    return pd.concat(parts, ignore_index=True)
