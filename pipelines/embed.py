"""`grpo-rm embed`: the embeddings of a folder or of Parquet shards, as one Parquet file."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import embedding
from pipelines.image_files import open_image_files

COLUMNS = ["id", "label", "embedding", "sha256"]
METADATA = b"grpo_rm.embeddings"  # in the file's own metadata, as JSON
GROUP_ROWS = 8192


def embed_to_file(sources: Sequence[Path], *, model: str, out: Path) -> None:
    """Write the embeddings of all images, and beside them a table of those that could not be read.

    Columns: `id`, `label`, `embedding` (D float32), `sha256` of the image file. The file appears when it is whole;
    until then OUT.partial/ holds what is done, and the same call goes on from there.

    Raises:
        FileNotFoundError: A source or the model is not there.
        FileExistsError: `out` is there already, or OUT.partial/ is of something else.
        ValueError: A source or the model cannot be used.
        ConnectionError: The registry cannot be asked.
        KeyboardInterrupt: On SIGTERM or Ctrl-C, when all that was embedded is on disk.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already: delete it, or name another --out")
    if out.suffix != ".parquet":
        raise ValueError(f"--out is {out}, expected a name that ends in .parquet")
    files = open_image_files(sources)
    encoder = embedding.open_encoder(model)
    for remark in files.remarks():
        print(remark)
    started = time.monotonic()
    with embedding.embed(files, encoder, out.with_name(f"{out.name}.partial"), has_thumbnails=False) as parts:
        seconds = time.monotonic() - started
        skipped = embedding.report_skipped(parts, out.with_suffix(".skipped.csv"))
        about = {
            "model": encoder.describe(),
            "sources": [str(source) for source in sources],
            "images": len(files) - skipped,
            "skipped": skipped,
        }
        whole = parts.directory / "whole"
        _write(parts.tables(), whole, encoder.dimension, about)
        whole.replace(out)
        parts.remove()
    print(f"{len(files) - skipped:,} embeddings of dimension {encoder.dimension} in {seconds:,.1f} s -> {out}")


def read_about(path: Path) -> dict[str, Any]:
    """Return what a file of embeddings says of itself: model, sources, images, skipped.

    Raises:
        ValueError: It is none.
    """
    metadata = pq.read_schema(path).metadata or {}
    if METADATA not in metadata:
        raise ValueError(f"{path} does not say of which model its embeddings are: expected a file of `grpo-rm embed`")
    about: dict[str, Any] = json.loads(metadata[METADATA])
    return about


def _write(tables: Iterable[pa.Table], path: Path, dimension: int, about: dict[str, Any]) -> None:
    """Write the rows that have an embedding, in groups that do not depend on how they come."""
    schema = pa.schema([embedding.schema(dimension).field(name) for name in COLUMNS], {METADATA: json.dumps(about)})
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=["label"]) as writer:
        waiting = schema.empty_table()
        for table in tables:
            good = embedding.readable(table).select(COLUMNS).cast(schema)
            waiting = pa.concat_tables([waiting, good])
            while len(waiting) >= GROUP_ROWS:
                writer.write_table(waiting.slice(0, GROUP_ROWS).combine_chunks())
                waiting = waiting.slice(GROUP_ROWS)
        writer.write_table(waiting.combine_chunks())
