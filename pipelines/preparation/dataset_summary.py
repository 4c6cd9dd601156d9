"""What the prepared data are, in numbers: dataset.json, and the lines that prepare ends with."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.preparation.description import STATISTICS
from pipelines.sources.source import SPLITS, Source

SHOWN = 5  # files that cannot be used, by name


def is_usable(manifest: pa.Table) -> NDArray[np.bool_]:
    """Return whether each image can be decoded, and its mask used."""
    usable: NDArray[np.bool_] = np.all([pc.equal(manifest[name], "").to_numpy() for name in _errors(manifest)], axis=0)
    return usable


def check_readable(source: Source, errors: pa.ChunkedArray) -> None:
    """Refuse a source without a single image.

    Raises:
        ValueError: Nothing of it can be decoded.
    """
    if pc.all(pc.not_equal(errors, "")).as_py():
        first = "".join(
            f"; {id_!r}: {error}" for id_, error in zip(source.ids[:1], errors[:1].to_pylist(), strict=True)
        )
        raise ValueError(f"none of the {len(errors)} files of {source.name} can be decoded{first}")


def summarize(
    source: Source, manifest: pa.Table, *, origin: str, split: dict[str, float], void_index: int | None
) -> dict[str, Any]:
    """Return dataset.json: classes, counts per split and class, and the channel statistics of the training images.

    The standard deviation of a channel that is the same in all training images is given as 1: it is divided by.

    Raises:
        ValueError: No training image can be used.
    """
    good = manifest.filter(is_usable(manifest))
    is_train = pc.equal(good["split"], "train")
    train = np.stack([good[name].filter(is_train).to_numpy().astype(np.float64) for name in STATISTICS], axis=1)
    if not len(train):
        raise ValueError(
            f"none of the {len(manifest)} images of {source.name} is a training image that can be used"
            + "".join(f"; {line}" for name in _errors(manifest) for line in _examples(manifest, name)[:1])
        )
    mean, square = train[:, :3].mean(axis=0), (train[:, :3] ** 2 + train[:, 3:] ** 2).mean(axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    is_segmentation = source.read_mask is not None
    return {
        "task": "segmentation" if is_segmentation else "classification",
        "name": source.name,
        "source": origin,
        "classes": list(source.classes),
        "counts": count_images(source.classes, good),
        "split": split,
        "mean": mean.round(6).tolist(),
        "std": np.where(std < 1e-4, 1.0, std).round(6).tolist(),
        **({"mask_values": source.mask_values, "void_index": void_index} if is_segmentation else {}),
    }


def count_images(classes: list[str], good: pa.Table) -> dict[str, dict[str, int]]:
    """Return how many images of each split are of a class; in segmentation, in how many it occurs."""
    counts = {}
    for split in SPLITS:
        mine = good.filter(pc.equal(good["split"], split))
        if "mask_counts" in good.column_names:
            pixels = mine["mask_counts"].combine_chunks().flatten().to_numpy().reshape(-1, len(classes))
            numbers = (pixels > 0).sum(axis=0)
        else:
            numbers = np.bincount(mine["label"].to_numpy(), minlength=len(classes))
        counts[split] = dict(zip(classes, numbers.tolist(), strict=True))
    return counts


def print_summary(source: Source, manifest: pa.Table, output: Path) -> None:
    """Print what the data are, and what of the source is not among them."""
    sizes = "  ".join(f"{split} {pc.sum(pc.equal(manifest['split'], split)).as_py():,}" for split in SPLITS)
    print(f"{source.name}: {len(manifest):,} images, {len(source.classes)} classes -> {output}")
    print(f"splits  {sizes}")
    _print_files("cannot be decoded", _examples(manifest, "decode_error"))
    if "mask_error" in manifest.column_names:
        _print_files("have no usable mask", _examples(manifest, "mask_error"))
    _print_files("left out", [f"{other.id!r}: {other.reason}" for other in source.left_out])


def _errors(manifest: pa.Table) -> list[str]:
    return [name for name in ("decode_error", "mask_error") if name in manifest.column_names]


def _examples(manifest: pa.Table, column: str) -> list[str]:
    """Return the files with a reason in a column; `repr`, because a name may hold line breaks and escape sequences."""
    bad = manifest.select(["id", column]).filter(pc.not_equal(manifest[column], ""))
    return [f"{row['id']!r}: {row[column]}" for row in bad.to_pylist()]


def _print_files(what: str, files: list[str]) -> None:
    if files:
        more = f"\n  and {len(files) - SHOWN:,} more" if len(files) > SHOWN else ""
        print("\n  ".join([f"{what}  {len(files):,}", *files[:SHOWN]]) + more)
