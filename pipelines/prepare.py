"""Stage prepare: any source to Parquet shards, a manifest with a row per image, and dataset.json."""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from grpo_rm.config import load_config
from grpo_rm.transforms import decode
from pipelines.sources import SPLITS, Item, Source, open_source
from pipelines.splits import assign_splits
from pipelines.stage import run_stage

MAX_SHARD_IMAGES, MAX_SHARD_BYTES = 5_000, 256 * 2**20
GRAY_HASH_SIZE = (9, 8)

SHARD_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
    ]
)
STATISTICS = [f"{name}_{channel}" for name in ("mean", "std") for channel in "rgb"]
MANIFEST_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("label", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("perceptual_hash", pa.string()),
        ("decode_error", pa.string()),
        *((name, pa.float32()) for name in STATISTICS),
    ]
)


def prepare(source: Source, output: Path, *, val_fraction: float, test_fraction: float, seed: int, origin: str) -> None:
    """Write the prepared data. `output` is replaced as a whole when all is written.

    Raises:
        ValueError: There is one class only, or a class has too few images.
    """
    if len(source.classes) < 2:
        raise ValueError(f"{source.name} has one class, {source.classes[0]!r}; expected at least 2")
    rows = [describe(item) for item in tqdm(source.items, desc="read", unit=" images", disable=None)]
    splits = assign_splits(
        source, [row["sha256"] for row in rows], val_fraction=val_fraction, test_fraction=test_fraction, seed=seed
    )
    for row, split in zip(rows, splits, strict=True):
        row["split"] = split
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split in SPLITS:
        good = [
            item
            for item, row in zip(source.items, rows, strict=True)
            if row["split"] == split and not row["decode_error"]
        ]
        write_shards(good, partial / split)
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), partial / "manifest.parquet")
    split_by = {"seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    description = summarize(source, rows, origin=origin, split=split_by)
    (partial / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    print(f"{source.name}: {len(rows):,} images, {len(source.classes)} classes -> {output}")


def describe(item: Item) -> dict[str, Any]:
    """Return the manifest row of an item, without its split. A file that cannot be decoded has a `decode_error`."""
    data = item.read()
    row: dict[str, Any] = {
        "id": item.id,
        "label": item.label,
        "width": 0,
        "height": 0,
        "mode": "",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "perceptual_hash": "",
        "decode_error": "",
        **dict.fromkeys(STATISTICS, float("nan")),
    }
    try:
        mode = Image.open(io.BytesIO(data)).mode
        image = decode(data, channels=3)  # as training will
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow names the buffer and its address, which would differ at every run
        reason = re.sub(r" <_io\.BytesIO.*?>", "", f"{type(error).__name__}: {error}")
        return row | {"decode_error": reason[:200]}
    pixels = np.asarray(image, dtype=np.float32).reshape(-1, 3) / 255
    statistics = np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]).tolist()
    return row | {
        "width": image.width,
        "height": image.height,
        "mode": mode,
        "perceptual_hash": difference_hash(image),
        **dict(zip(STATISTICS, statistics, strict=True)),
    }


def difference_hash(image: Image.Image) -> str:
    """Return 64 bits as 16 hex digits: whether brightness falls from each of 9 x 8 points to its right neighbor."""
    gray = np.asarray(image.convert("L").resize(GRAY_HASH_SIZE, Image.Resampling.BOX))
    return np.packbits(gray[:, 1:] > gray[:, :-1]).tobytes().hex()


def write_shards(items: Iterable[Item], directory: Path) -> None:
    """Write the files as they came, at most 5,000 or about 256 MiB a shard."""
    directory.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    size, number = 0, 0
    for item in items:
        data = item.read()
        if rows and (len(rows) == MAX_SHARD_IMAGES or size + len(data) > MAX_SHARD_BYTES):
            _write_shard(rows, directory, number)
            rows, size, number = [], 0, number + 1
        rows.append({"id": item.id, "image": {"bytes": data, "path": item.id}, "label": item.label})
        size += len(data)
    if rows:
        _write_shard(rows, directory, number)


def _write_shard(rows: list[dict[str, Any]], directory: Path, number: int) -> None:
    table = pa.Table.from_pylist(rows, SHARD_SCHEMA)
    pq.write_table(table, directory / f"{number:05d}.parquet", compression="none")


def summarize(source: Source, rows: list[dict[str, Any]], *, origin: str, split: dict[str, float]) -> dict[str, Any]:
    """Return dataset.json: classes, counts per split and class, and the channel statistics of the training images.

    The standard deviation of a channel that is the same in all training images is given as 1: it is divided by.
    """
    good = [row for row in rows if not row["decode_error"]]
    counts = {split: dict.fromkeys(source.classes, 0) for split in SPLITS}
    for row in good:
        counts[row["split"]][source.classes[row["label"]]] += 1
    train = np.array([[row[name] for name in STATISTICS] for row in good if row["split"] == "train"]).reshape(-1, 6)
    if not len(train):
        raise ValueError(f"none of the {len(rows)} files of {source.name} is a readable training image")
    mean, square = train[:, :3].mean(axis=0), (train[:, :3] ** 2 + train[:, 3:] ** 2).mean(axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return {
        "task": "classification",
        "name": source.name,
        "source": origin,
        "classes": source.classes,
        "counts": counts,
        "split": split,
        "mean": mean.round(6).tolist(),
        "std": np.where(std < 1e-4, 1.0, std).round(6).tolist(),
    }


def main() -> None:
    """Prepare the source named in params.yaml."""
    config = load_config()
    source = open_source(config.data.source)
    prepare(
        source,
        Path("data/prepared"),
        val_fraction=config.data.val_fraction,
        test_fraction=config.data.test_fraction,
        seed=config.seed,
        origin=config.data.source,
    )


if __name__ == "__main__":
    run_stage(main)
