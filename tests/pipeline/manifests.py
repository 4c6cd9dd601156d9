"""Small manifests, as the prepare stage writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from grpo_rm.config import Expectations, load_config
from pipelines.validation.manifest import CHANNELS, COLUMNS, MASK_COLUMNS

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["cat", "dog"]
COPIES = 2  # images of each class in each split
TYPES = {"str": pa.string(), "int32": pa.int32(), "int64": pa.int64(), "float32": pa.float32()}
TYPES["list<int64>"] = pa.list_(pa.int64())
UNKNOWN = dict.fromkeys(CHANNELS, float("nan"))


def make_rows() -> pd.DataFrame:
    """Twelve good images: t0 to t3 in train, v0 to v3 in val, e0 to e3 in test. Even ones are cats, odd ones dogs."""
    ids = [f"{letter}{k}" for letter in "tve" for k in range(len(CLASSES) * COPIES)]
    rows = {
        "id": ids,
        "split": [{"t": "train", "v": "val", "e": "test"}[image_id[0]] for image_id in ids],
        "label": [int(image_id[1]) % 2 for image_id in ids],
        "group": "",
        "width": 32,
        "height": 32,
        "mode": "L",
        "format": "PNG",
        "bytes": 100,
        "sha256": [f"{k:064x}" for k in range(len(ids))],
        "perceptual_hash": [f"{k:064x}" for k in range(len(ids))],
        "near_duplicate_of": "",
        "decode_error": "",
        **dict.fromkeys(CHANNELS, 0.25),
    }
    return pd.DataFrame(rows)


def make_mask_rows() -> pd.DataFrame:
    """The same images with good masks, which show both classes and have a tenth of void."""
    rows = make_rows().assign(label=-1, mask_error="", void_share=0.1)
    return rows.assign(mask_counts=[[600, 320]] * len(rows))


def with_values(ids: list[str], rows: pd.DataFrame | None = None, **values: object) -> pd.DataFrame:
    rows = make_rows() if rows is None else rows
    for column, value in values.items():
        rows.loc[rows["id"].isin(ids), column] = value
    return rows


def with_broken(ids: list[str], rows: pd.DataFrame | None = None, error: str = "truncated") -> pd.DataFrame:
    """Images as the prepare stage records them when they cannot be decoded."""
    nothing = {"width": 0, "height": 0, "mode": "", "format": "", "perceptual_hash": ""}
    return with_values(ids, rows, decode_error=error, **nothing, **UNKNOWN)


def to_manifest(rows: pd.DataFrame) -> pa.Table:
    kinds = {name: kind for name, kind in (COLUMNS | MASK_COLUMNS).items() if name in rows.columns}
    return pa.table(
        {name: pa.array(rows[name].tolist(), TYPES[kind], from_pandas=kind == "str") for name, kind in kinds.items()}
    )


def to_left_out(reasons: Mapping[str, str]) -> pa.Table:
    text = pa.string()
    return pa.table({"id": pa.array(list(reasons), text), "reason": pa.array(list(reasons.values()), text)})


def write_prepared(
    directory: Path, rows: pd.DataFrame, left_out: Mapping[str, str] | None = None, **fields: object
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(to_manifest(rows), directory / "manifest.parquet")
    pq.write_table(to_left_out(left_out or {}), directory / "left_out.parquet")
    counts = {"train": {"cat": 20, "dog": 20}}
    task = "segmentation" if "mask_error" in rows.columns else "classification"
    dataset = {"task": task, "name": "pets", "source": "folder:pets", "classes": CLASSES, "counts": counts, **fields}
    (directory / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    return directory


def limits(**changes: Mapping[str, Any]) -> Expectations:
    """Those of params.yaml, but for these."""
    expectations = load_config(ROOT / "params.yaml").data.expectations.model_dump()
    return Expectations.model_validate(
        {name: {**block, **changes.get(name, {})} for name, block in expectations.items()}
    )
