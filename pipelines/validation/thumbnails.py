"""Small pictures of prepared images, to embed in a page."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from pipelines.sources.source import SPLITS

SIDE = 80  # pixels of the longer side


def read_thumbnails(prepared: Path, ids: Iterable[str]) -> dict[str, str]:
    """A data: URI of a PNG for each of these images; those that are not in the shards are left out.

    Args:
        prepared: What the prepare stage wrote.
        ids: Of the images. Only the row groups that have them are read.
    """
    wanted = pa.array(sorted(set(ids)), pa.string())
    uris: dict[str, str] = {}
    for split in SPLITS:
        shards = sorted((prepared / split).glob("*.parquet"))
        if shards and len(wanted):
            found = ds.dataset(shards).to_table(columns=["id", "image"], filter=ds.field("id").isin(wanted))
            uris.update((row["id"], _thumbnail(row["image"]["bytes"])) for row in found.to_pylist())
    return uris


def _thumbnail(image: bytes) -> str:
    from PIL import Image

    from grpo_rm.transforms import decode

    picture = decode(image, channels=3)
    scale = SIDE / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    encoded = io.BytesIO()
    picture.resize((size[0], size[1]), resample).save(encoded, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"
