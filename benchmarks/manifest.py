"""Prepared data of any size for benchmarks: a manifest, without images."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CLASSES = [f"class_{k:03}" for k in range(100)]
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
FAULTY = 0.001  # share of the images that have a given fault


def make_manifest(rows: int, *, seed: int = 0, faulty: float = FAULTY) -> pa.Table:
    """Return the manifest of a classification task as stage prepare writes it, with some of most faults.

    Args:
        rows: How many images.
        seed: Of what is random.
        faulty: Share of the images that have a given fault.
    """
    rng = np.random.default_rng(seed)

    def some() -> np.ndarray:
        return rng.random(rows) < faulty

    label = rng.integers(len(CLASSES), size=rows)
    ids = [f"{CLASSES[k]}/image_{row:08}.jpg" for row, k in enumerate(label.tolist())]
    digests = np.array([f"{k:064x}" for k in rng.permutation(rows).tolist()])
    copies, near = some(), some()
    digests[copies] = digests[0] if rows else ""
    is_broken = some()
    channels = rng.normal(0.5, 0.1, (6, rows)).astype(np.float32)
    channels[:, is_broken] = np.nan
    channels[3:, some()] = 0
    columns = {
        "id": ids,
        "split": rng.choice(list(SHARES), p=list(SHARES.values()), size=rows),
        "label": label,
        "group": np.where(some(), "patient 7", ""),
        "width": np.where(is_broken, 0, rng.integers(32, 512, size=rows)).astype(np.int32),
        "height": np.where(is_broken, 0, rng.integers(64, 256, size=rows)).astype(np.int32),
        "mode": np.where(is_broken, "", "RGB"),
        "format": np.where(is_broken, "", np.where(some(), "PNG", "JPEG")),
        "bytes": rng.integers(1_000, 100_000, size=rows),
        "sha256": digests,
        "perceptual_hash": np.where(is_broken, "", digests),
        "near_duplicate_of": np.where(near, ids[0] if rows else "", ""),
        "decode_error": np.where(is_broken, "truncated file", ""),
        **{f"{name}_{c}": channels[3 * k + j] for k, name in enumerate(("mean", "std")) for j, c in enumerate("rgb")},
    }
    return pa.table({name: pa.array(values) for name, values in columns.items()}).sort_by("id")


def write_prepared(directory: Path, manifest: pa.Table) -> None:
    """Write the files of prepared data but for the images."""
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(manifest, directory / "manifest.parquet")
    reasons = [("README.md", "no image"), ("notes.txt", "no image")]
    pq.write_table(
        pa.table({"id": [name for name, _ in reasons], "reason": [reason for _, reason in reasons]}),
        directory / "left_out.parquet",
    )
    dataset = {
        "task": "classification",
        "name": "generated",
        "source": "folder:data/raw/generated",
        "classes": CLASSES,
        "counts": {"train": {"any": int(0.8 * len(manifest))}},
    }
    (directory / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.manifest", description=__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    write_prepared(arguments.directory, make_manifest(arguments.rows))
    print(f"{arguments.rows:,} rows in {time.perf_counter() - start:.1f} s")
