"""The classes of the prepared data: how many images each has, and which ones came or went."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.sources.source import SPLITS
from pipelines.validation.manifest import is_decodable, to_numpy


def class_table(manifest: pa.Table, classes: Sequence[str]) -> pd.DataFrame:
    """One row per split and class: `id` (split/class), `images` that can be decoded, `times_rarer`.

    In segmentation an image counts for each class that its mask shows. `times_rarer` is the count of the largest class
    over the count of this one, in train and for classes with images.
    """
    count = _count_masks if "mask_counts" in manifest.column_names else _count_labels
    images = np.concatenate([count(_usable(manifest, split), len(classes)) for split in SPLITS])
    in_train = (np.arange(len(images)) < len(classes)) & (images > 0)
    rarer = np.divide(images[: len(classes)].max(), images, out=np.full(len(images), np.nan), where=in_train)
    ids = [f"{split}/{name}" for split in SPLITS for name in classes]
    return pd.DataFrame({"id": ids, "images": images, "times_rarer": rarer})


def label_counts(manifest: pa.Table, num_classes: int) -> NDArray[np.int64]:  # (C,)
    """Images of each class in all splits; in segmentation pixels."""
    usable = _usable(manifest)
    if "mask_counts" in manifest.column_names:
        counts: NDArray[np.int64] = mask_counts(usable, num_classes).sum(axis=0)
        return counts
    return _count_labels(usable, num_classes)


def class_changes(classes: Sequence[str], expected: Sequence[str], *, gone: str, new: str) -> pd.DataFrame:
    """One row per class, present or expected: `id` (its name), `change` (null where it is both).

    Args:
        classes: Those of the data.
        expected: Those it should have.
        gone: What to say of a class that is expected and not there.
        new: What to say of a class that is there and not expected.
    """
    names = sorted({*classes, *expected})
    change = [None if {name} <= {*classes} & {*expected} else new if name in {*classes} else gone for name in names]
    return pd.DataFrame({"id": names, "change": pd.Series(change, dtype=object)})


def find_renamed(
    previous: pa.Table, previous_classes: Sequence[str], present: pa.Table, classes: Sequence[str]
) -> dict[str, str]:
    """The classes that are gone of which most images, by their bytes, have one label that is new: old name to new."""
    labels, before = to_numpy(present["label"]), to_numpy(previous["label"])
    gone = [label for label, name in enumerate(previous_classes) if name not in {*classes}]
    new = np.array([name not in {*previous_classes} for name in classes], dtype=bool)
    if not gone or not new.any():
        return {}
    of_gone = previous.select(["sha256", "label"]).filter(pa.array(np.isin(before, gone)))
    rows = pc.index_in(of_gone["sha256"].combine_chunks(), value_set=present["sha256"].combine_chunks())
    old, now = to_numpy(of_gone["label"]), to_numpy(pc.fill_null(pa.array(labels).take(rows), -1))
    is_new = (now >= 0) & (now < len(classes)) & new[now.clip(0, len(classes) - 1)]
    pairs, counts = np.unique(old[is_new] * len(classes) + now[is_new], return_counts=True)
    has_most = 2 * counts > np.bincount(old, minlength=len(previous_classes))[pairs // len(classes)]
    return {previous_classes[pair // len(classes)]: classes[pair % len(classes)] for pair in pairs[has_most]}


def mask_counts(manifest: pa.Table, num_classes: int) -> NDArray[np.int64]:  # (N, C)
    """Pixels of each class in each mask; every mask of the manifest has to be readable."""
    return np.asarray(manifest["mask_counts"].combine_chunks().flatten()).reshape(-1, num_classes)


def _count_labels(manifest: pa.Table, num_classes: int) -> NDArray[np.int64]:  # (C,)
    labels = to_numpy(manifest["label"])
    return np.bincount(labels[(labels >= 0) & (labels < num_classes)], minlength=num_classes)


def _count_masks(manifest: pa.Table, num_classes: int) -> NDArray[np.int64]:  # (C,)
    return np.asarray(np.count_nonzero(mask_counts(manifest, num_classes), axis=0))


def _usable(manifest: pa.Table, split: str | None = None) -> pa.Table:
    """Images of a split, or of all, that can be decoded, with masks that can be used."""
    usable = pa.array(is_decodable(manifest))
    if "mask_error" in manifest.column_names:
        usable = pc.and_(usable, pc.equal(manifest["mask_error"], ""))
    if split is not None:
        usable = pc.and_(usable, pc.equal(manifest["split"], split))
    names = [name for name in ("label", "mask_counts") if name in manifest.column_names]
    return manifest.select(names).filter(usable)
