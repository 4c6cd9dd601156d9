"""Embeddings of many images, without torch: decoded in threads, run in batches, and kept in parts.

A run that ends early leaves its parts behind, and the next one goes on from there. However often that happens, the
batches are the same: so are the embeddings, to the last bit.
"""

import hashlib
import io
import itertools
import os
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from pipelines.image_files import ImageFile, ImageFiles
from pipelines.lineage import sha256
from pipelines.parts import Parts
from pipelines.stage import deferred_interrupt
from pipelines.tables import write_csv
from serving.deployment import FILES, LiveModel, load_file, load_version
from serving.follower import parse_alias
from serving.preprocessing import ImageError, Pixels, decode
from serving.processors import count_processors
from serving.registry import open_registry

BATCH_SIZE = 32
DENSE_BATCH_SIZE = 2  # of whole images, some of which are in memory
THUMBNAIL_SIZE = 96  # of the longer side


@dataclass(frozen=True)
class Encoder:
    """The model that embeds.

    Attributes:
        live: As the server has it.
        onnx_sha256: Of its file: a quantized one has the weights' `model_sha256` too, but other embeddings.
        dimension: D of its embeddings.
    """

    live: LiveModel
    onnx_sha256: str
    dimension: int

    def describe(self) -> dict[str, str]:
        """Return what is kept with its embeddings."""
        live = self.live
        return {
            "name": live.name,
            "version": live.version,
            "data_hash": live.data_hash,
            "model_sha256": live.onnx.model_sha256,
            "onnx_sha256": self.onnx_sha256,
        }


def open_encoder(model: str) -> Encoder:
    """Open a file of stage export, or the version an alias points to, with the checks of the server.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not what stage export makes, or failed a check.
        ConnectionError: The registry cannot be asked.
    """
    alias = parse_alias(model)
    if alias is None:
        live, onnx_sha256 = load_file(Path(model)), sha256(Path(model))
    else:
        registry = open_registry(os.environ.get("MLFLOW_TRACKING_URI", ""))
        with tempfile.TemporaryDirectory(prefix="grpo-rm-") as directory:
            live = load_version(registry, registry.find(alias.name, alias.alias), Path(directory))
            onnx_sha256 = sha256(Path(directory) / FILES["fp32"].onnx)
    for warning in live.warnings:
        print(f"warning: {live.name} version {live.version}: {warning}", file=sys.stderr)
    return Encoder(live, onnx_sha256, live.onnx.shapes["embedding"][0])


def schema(dimension: int) -> pa.Schema:
    """Return the columns of a part. An image that could not be read has an `error`, and zeros for an embedding.

    Arrow writes nulls in such lists, but cannot read them again.
    """
    return pa.schema(
        [
            ("id", pa.string()),
            ("label", pa.string()),
            ("embedding", pa.list_(pa.float32(), dimension)),
            ("sha256", pa.string()),
            ("error", pa.string()),
            ("thumbnail", pa.binary()),
        ]
    )


def embed(files: ImageFiles, encoder: Encoder, directory: Path, *, has_thumbnails: bool) -> Parts:
    """Embed the images that an earlier run did not, and return the rows of all.

    Raises:
        FileExistsError: The directory holds rows of other images or another model.
        ValueError: None of the images can be read.
        KeyboardInterrupt: On SIGTERM or Ctrl-C, when all that was embedded is on disk.
    """
    plan = {"model": encoder.describe(), "images": files.state(), "thumbnails": has_thumbnails}
    parts = Parts(directory, plan)
    try:
        _go_on(files, encoder, parts, has_thumbnails)
        _check_any(parts)
    except BaseException:
        parts.close()
        raise
    return parts


def _go_on(files: ImageFiles, encoder: Encoder, parts: Parts, has_thumbnails: bool) -> None:
    batches = _decoded_batches(files.read_from(parts.done), _Decoder(encoder.live, has_thumbnails))
    # disable=None: no bar where stderr is not a terminal
    bar = tqdm(total=len(files), initial=parts.done, desc="embed", unit=" images", smoothing=0.05, disable=None)
    try:
        with deferred_interrupt() as is_interrupted, closing(batches), bar:
            for decoded in batches:
                parts.add(_run(decoded, encoder))
                bar.update(len(decoded))
                if is_interrupted():
                    break
            parts.flush()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted after {parts.done:,} of {len(files):,} images; the same command goes on from there"
        ) from None


def _check_any(parts: Parts) -> None:
    if not any(len(readable(table)) for table in parts.tables()):
        first = next(parts.tables())
        parts.remove()
        raise ValueError(
            f"none of the {parts.done:,} images can be read, the first is {first['id'][0]}: {first['error'][0]}"
        )


@dataclass(frozen=True)
class _Decoded:
    """A row without its embedding, and what the model is given."""

    id: str
    label: str | None
    sha256: str | None
    error: str | None
    thumbnail: bytes | None
    pixels: Pixels | None


class _Decoder:
    """Reads and decodes images as the server does."""

    def __init__(self, live: LiveModel, has_thumbnails: bool) -> None:
        self._onnx, self._has_thumbnails = live.onnx, has_thumbnails
        self.batch_size = DENSE_BATCH_SIZE if live.onnx.is_dense else BATCH_SIZE

    def decode_all(self, batch: Sequence[ImageFile]) -> list[_Decoded]:
        return [self._decode(file) for file in batch]

    def _decode(self, file: ImageFile) -> _Decoded:
        digest = None
        try:
            data = file.read()
            digest = hashlib.sha256(data).hexdigest()
            image = decode(data, channels=self._onnx.preprocessing["channels"])
        except (ImageError, OSError) as error:
            reason = str(error) if isinstance(error, ImageError) else f"it cannot be read: {error.strerror}"
            return _Decoded(file.id, file.label, digest, reason, None, None)
        thumbnail = make_thumbnail(image) if self._has_thumbnails else None
        return _Decoded(file.id, file.label, digest, None, thumbnail, self._onnx.view(image))


def make_thumbnail(image: Image.Image) -> bytes:
    """Return a JPEG of at most 96 x 96 pixels; a smaller image keeps its size."""
    small = image.copy() if max(image.size) <= THUMBNAIL_SIZE else _shrink(image)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _shrink(image: Image.Image) -> Image.Image:
    scale = THUMBNAIL_SIZE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _decoded_batches(files: Iterator[ImageFile], decoder: _Decoder) -> Generator[list[_Decoded], None, None]:
    """Decode batches in threads, in order, some ahead of what is asked for: memory holds no more than these."""
    threads = count_processors()
    waiting: deque[Future[list[_Decoded]]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        while batch := list(itertools.islice(files, decoder.batch_size)):
            waiting.append(pool.submit(decoder.decode_all, batch))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _run(decoded: Sequence[_Decoded], encoder: Encoder) -> pa.Table:
    good = np.array([each.pixels is not None for each in decoded])
    embedding = np.zeros((len(decoded), encoder.dimension), np.float32)
    if good.any():
        embedding[good] = _embeddings([each.pixels for each in decoded if each.pixels is not None], encoder)
    columns = {
        name: [getattr(each, name) for each in decoded] for name in ("id", "label", "sha256", "error", "thumbnail")
    }
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(embedding.ravel()), encoder.dimension)
    return pa.table(columns, schema(encoder.dimension))


def _embeddings(pixels: Sequence[Pixels], encoder: Encoder) -> NDArray[np.float32]:
    """Run the model on a batch; a dense one on one image after the other, which have sizes of their own."""
    onnx = encoder.live.onnx
    if onnx.is_dense:
        return np.concatenate([onnx.run(image[None]).embedding for image in pixels])
    return onnx.run(np.stack(pixels)).embedding


def readable(rows: pa.Table) -> pa.Table:
    """Return the rows of images that could be read."""
    return rows.filter(pc.is_null(rows["error"]))


def to_array(embedding: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a column of embeddings as (N, D)."""
    flat = np.asarray(embedding.combine_chunks().flatten(), dtype=np.float32)
    return flat.reshape(-1, embedding.type.list_size)


def report_skipped(parts: Parts, path: Path) -> int:
    """Write the images that could not be read into a table, if there are any, and return how many."""
    tables = [table.filter(pc.is_valid(table["error"])).select(["id", "error"]) for table in parts.tables()]
    rows = [row for table in tables for row in table.to_pylist()]
    path.unlink(missing_ok=True)  # of an earlier run
    if rows:
        write_csv(path, rows)
        print(
            f"warning: {len(rows):,} of {parts.done:,} images could not be read, and are left out: {path} says why",
            file=sys.stderr,
        )
    return len(rows)
