"""`grpo-rm index`: the index that the server looks similar images up in, of images or of embeddings made before."""

import hashlib
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import embedding
from pipelines.embed import read_about
from pipelines.image_files import open_image_files
from serving.index import DESCRIPTION, FORMAT, ITEMS_TABLE, Description, directory_of, normalize


def index_images(sources: Sequence[Path], *, model: str, out: Path, has_thumbnails: bool) -> None:
    """Embed images and put their index in place of the model's former one in `out`.

    What is interrupted is gone on with by the same call.

    Raises:
        FileNotFoundError: A source or the model is not there.
        FileExistsError: The unfinished work of something else is in the way.
        ValueError: A source or the model cannot be used.
        ConnectionError: The registry cannot be asked.
        KeyboardInterrupt: On SIGTERM or Ctrl-C, when all that was embedded is on disk.
    """
    files = open_image_files(sources)
    encoder = embedding.open_encoder(model)
    for remark in files.remarks():
        print(remark)
    about = encoder.describe()
    target = directory_of(out, about["model_sha256"])
    partial = target.with_name(f"{target.name}.partial")
    with embedding.embed(files, encoder, partial, has_thumbnails=has_thumbnails) as parts:
        _build(
            map(embedding.readable, parts.tables()), target, about=about, dimension=encoder.dimension, sources=sources
        )
        embedding.report_skipped(parts, target / "skipped.csv")
        parts.remove()


def index_embeddings(path: Path, *, model: str | None, out: Path) -> None:
    """Put the index of a file of embeddings in place of the model's former one in `out`. It has no thumbnails.

    Raises:
        ValueError: The embeddings are of another model than the one that is named.
    """
    about = read_about(path)["model"]
    if model is not None:
        expected = embedding.open_encoder(model).live.onnx.model_sha256
        if about["model_sha256"] != expected:
            raise ValueError(
                f"{path} has embeddings of {about['name']} version {about['version']} (model_sha256 "
                f"{about['model_sha256'][:12]}...), but {model} is {expected[:12]}...: embed the images with that model"
            )
    with pq.ParquetFile(path) as file:
        dimension = file.schema_arrow.field("embedding").type.list_size
        tables = (pa.Table.from_batches([batch]) for batch in file.iter_batches(8192))
        _build(tables, directory_of(out, about["model_sha256"]), about=about, dimension=dimension, sources=[path])


def is_embeddings(path: Path) -> bool:
    """Whether a source is a file of embeddings and not of images."""
    try:
        return path.is_file() and "embedding" in pq.read_schema(path).names
    except pa.ArrowInvalid:
        return False


def _build(
    tables: Iterable[pa.Table], target: Path, *, about: dict[str, str], dimension: int, sources: Sequence[Path]
) -> None:
    """Write a new index beside the former one, and put it in place by its description."""
    import faiss

    target.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    vectors, items = target / f"{name}.faiss", target / f"{name}.sqlite"
    index = faiss.IndexFlatIP(dimension)
    with closing(sqlite3.connect(items)) as connection, connection:
        connection.execute("pragma journal_mode = off")
        connection.execute(ITEMS_TABLE)
        for table in tables:
            connection.executemany("insert into items values (?, ?, ?, ?)", _items(table, index.ntotal))
            index.add(normalize(embedding.to_array(table["embedding"])))
    faiss.write_index(index, str(vectors))
    with vectors.open("rb") as file:
        vectors_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    description = Description(
        format=FORMAT,
        model_sha256=about["model_sha256"],
        name=about["name"],
        version=about["version"],
        data_hash=about["data_hash"],
        sources=[str(source) for source in sources],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        count=index.ntotal,
        dimension=dimension,
        vectors=vectors.name,
        vectors_sha256=vectors_sha256,
        items=items.name,
    )
    written = target / f"{name}.json"
    written.write_text(description.to_json(), encoding="utf-8")
    written.replace(target / DESCRIPTION)
    for path in target.iterdir():  # the former index, and what a killed run has left
        if path.suffix in (".faiss", ".sqlite", ".json") and path not in (vectors, items, target / DESCRIPTION):
            path.unlink()
    print(f"{index.ntotal:,} embeddings of dimension {dimension} -> {target}")


def _items(table: pa.Table, first: int) -> Iterator[tuple[int, str, str | None, bytes | None]]:
    thumbnails = table["thumbnail"].to_pylist() if "thumbnail" in table.column_names else [None] * len(table)
    rows = range(first, first + len(table))
    return zip(rows, table["id"].to_pylist(), table["label"].to_pylist(), thumbnails, strict=True)
