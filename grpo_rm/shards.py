"""The shards of a split, read in place: a set that is larger than memory opens at once and costs none.

In a shard the images of a row group are one uncompressed page, at the end of their part of the file, each after its
length in 4 bytes. So the column `size` says where every image is.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

T = TypeVar("T")

COLUMNS = ("id", "label", "size")  # those that are read when a shard is opened
DENSE_COLUMNS = ("id", "size", "mask_size")  # the same of a shard for segmentation
IMAGES, MASKS = "image.bytes", "mask.bytes"
LENGTH = 4  # bytes before each image
MAX_HEADER = 256  # bytes of a page that are not images: about 30, as long as all have one
AT_ONCE = 10_000  # ids


class Shard(NamedTuple):
    """What is in a shard, and where. The arrays have an entry per image."""

    path: Path
    ids: pa.ChunkedArray
    labels: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int32]


def open_shard(path: Path) -> Shard:
    """Read all of a shard but the images.

    Raises:
        ValueError: It is no shard as stage prepare writes them, or one for segmentation.
    """
    with _reading(path) as file:
        _check_columns(path, file.schema_arrow.names)
        table = file.read(COLUMNS, use_threads=False)
        sizes = table["size"].to_numpy()
        return Shard(path, table["id"], table["label"].to_numpy(), _offsets(path, file.metadata, sizes, IMAGES), sizes)


def open_dense_shard(path: Path) -> tuple[Shard, Shard]:
    """Read all of a shard for segmentation but the images and masks, and return the shard of each. Labels are -1.

    Raises:
        ValueError: It is no shard as stage prepare writes them, or one without masks.
    """
    with _reading(path) as file:
        _check_dense_columns(path, file.schema_arrow.names)
        table = file.read(DENSE_COLUMNS, use_threads=False)
        labels = np.full(len(table), -1, dtype=np.int64)
        sizes = {IMAGES: table["size"].to_numpy(), MASKS: table["mask_size"].to_numpy()}
        images, masks = (
            Shard(path, table["id"], labels, _offsets(path, file.metadata, column_sizes, column), column_sizes)
            for column, column_sizes in sizes.items()
        )
        return images, masks


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:  # Arrow's OSErrors name no file
        raise _damage(path) from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if "mask" in names:
        raise ValueError(f"{path} has masks, expected labels: training of segmentation is not there yet")
    missing = [name for name in (*COLUMNS, "image") if name not in names]
    if missing:
        raise _damage(path, f" has no column {missing[0]!r}:")


def _check_dense_columns(path: Path, names: Sequence[str]) -> None:
    if "label" in names:
        raise ValueError(f"{path} has labels, expected masks: run `dvc repro prepare` with `task: segmentation`")
    missing = [name for name in (*DENSE_COLUMNS, "image", "mask") if name not in names]
    if missing:
        raise _damage(path, f" has no column {missing[0]!r}:")


def _damage(path: Path, what: str = "") -> ValueError:
    return ValueError(
        f"{path}{what} is damaged, or not written by this version: delete it, then run `dvc checkout` or "
        "`dvc repro prepare`"
    )


def _offsets(path: Path, metadata: pq.FileMetaData, sizes: NDArray[np.int32], name: str) -> NDArray[np.int64]:
    """Return where each image, or mask, begins in the file."""
    column = next(k for k in range(metadata.num_columns) if metadata.schema.column(k).path == name)
    offsets = np.empty(len(sizes), dtype=np.int64)
    first = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows = slice(first, first + group.num_rows)
        offsets[rows] = _offsets_in(path, group.column(column), sizes[rows])
        first = rows.stop
    return offsets


def _offsets_in(path: Path, chunk: pq.ColumnChunkMetaData, sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    ends: NDArray[np.int64] = np.cumsum(sizes.astype(np.int64) + LENGTH)
    header = chunk.total_compressed_size - int(ends[-1])
    is_plain = chunk.compression == "UNCOMPRESSED" and set(chunk.encodings) <= {"PLAIN", "RLE"}
    if not is_plain or not 0 < header <= MAX_HEADER:
        raise _damage(path)
    begins: NDArray[np.int64] = ends - sizes + (chunk.data_page_offset + header)
    return begins


class _Column(Sequence[T]):
    """A column of all shards of a split: a sequence that holds none of its values."""

    def _at(self, index: int) -> T:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        """Return the value of a row, or a list of those of several."""
        chosen = range(len(self))[index]
        return self._at(chosen) if isinstance(chosen, int) else [self._at(row) for row in chosen]


class Ids(_Column[str]):
    """The ids of a split."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        chunks = [chunk for shard in shards for chunk in shard.ids.chunks]
        self._ids = pa.chunked_array(chunks, pa.string()).cast(pa.large_string()).combine_chunks()

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_ONCE):
            yield from self._ids.slice(start, AT_ONCE).to_pylist()

    def _at(self, index: int) -> str:
        return str(self._ids[index])


class Files(_Column[bytes]):
    """The image files of a split. Each process maps a shard into its memory when it first reads an image of it."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._paths = [shard.path for shard in shards]
        self._starts = np.cumsum([0, *(len(shard.sizes) for shard in shards)]).tolist()
        self._offsets = np.concatenate([shard.offsets for shard in shards])
        self._sizes = np.concatenate([shard.sizes for shard in shards])
        self._maps: dict[int, memoryview] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process gets: it maps the shards itself."""
        return self.__dict__ | {"_maps": {}}

    def _at(self, index: int) -> bytes:
        shard = bisect_right(self._starts, index) - 1
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        data = self._map(shard)
        image = bytes(data[offset : offset + size])
        if int.from_bytes(data[offset - LENGTH : offset], "little") != size or len(image) != size:
            raise _damage(self._paths[shard])
        return image

    def _map(self, shard: int) -> memoryview:
        if shard not in self._maps:
            path = self._paths[shard]
            # not the mmap of Python, which keeps the file open: there may be thousands
            mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
            self._maps[shard] = mapped.numpy().data
        return self._maps[shard]
