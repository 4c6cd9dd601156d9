"""Images to embed: those below a folder, or in Parquet shards as stage prepare writes them. Nothing is decoded here."""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.file_tree import EXTENSIONS, Found, extension_of, file_id, walk
from pipelines.sources.source import SPLITS

MAX_REMARKS = 5  # on what cannot be used
ROWS_AT_ONCE = 64  # of a shard: its images are not all in memory


@dataclass(frozen=True)
class ImageFile:
    """An image that was not read yet.

    Attributes:
        id: Unique among all, and stable.
        label: The name of its class, or None.
        read: Gives the bytes of the file.
    """

    id: str
    label: str | None
    read: Callable[[], bytes]


class ImageFiles(Protocol):
    """Images in one order."""

    def __len__(self) -> int:
        """Return how many."""

    def read_from(self, start: int) -> Iterator[ImageFile]:
        """Go through them, without the first `start`."""

    def ids(self) -> Iterable[str]:
        """Return their ids, without a look at the images."""

    def state(self) -> str:
        """Return a hash that changes when an image is added, removed or written."""

    def remarks(self) -> list[str]:
        """Return what a person may not expect, such as files that were left out."""


def open_image_files(sources: Sequence[Path]) -> ImageFiles:
    """Open folders of images, Parquet files, or folders of Parquet files, one after the other.

    Raises:
        FileNotFoundError: One is not there, or holds no image.
        ValueError: One is something else, or two images have the same id.
    """
    opened = [_open(source) for source in sources]
    files = opened[0] if len(opened) == 1 else _Several(opened)
    repeated = next((id_ for id_, count in Counter(files.ids()).items() if count > 1), None)
    if repeated is not None:
        raise ValueError(
            f"two images have the id {repeated!r}, expected ids that are unique: give one folder above them all"
        )
    return files


def _open(source: Path) -> ImageFiles:
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist, expected a folder of images, or Parquet files")
    if source.is_file():
        if source.suffix != ".parquet":
            raise ValueError(f"{source} is a file, expected a folder of images, or Parquet files")
        return _Shards([source])
    shards = sorted(path for path in source.glob("*.parquet") if not path.name.startswith("."))
    return _Shards(shards) if shards else _Folder(source)


class _Folder:
    """Images below a folder: the id is the relative path, the label the directory below the folder, or its split."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: list[str] = []
        self._others: Counter[str] = Counter()
        self._unusable: list[str] = []
        digest = hashlib.sha256()
        for found in walk(str(root), is_confined=False):
            if found.is_hidden:
                continue
            extension = extension_of(found.path)
            if found.reason and not _is_missing(found):
                self._unusable.append(f"{file_id(found.path)!r} is {found.reason}")
            elif extension in EXTENSIONS and not found.is_directory:
                self._paths.append(found.path)
                digest.update(_state(found).encode())
            elif not found.is_directory:
                self._others[extension or "no extension"] += 1
        self._digest = digest.hexdigest()
        if not self._paths:
            others = f" among its {self._others.total():,} files" if self._others else ""
            raise FileNotFoundError(
                f"{root} holds no image{others}: expected files that end in {', '.join(sorted(EXTENSIONS))}"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def read_from(self, start: int) -> Iterator[ImageFile]:
        for path in self._paths[start:]:
            yield ImageFile(file_id(path), _label(path), (self.root / path).read_bytes)

    def ids(self) -> Iterable[str]:
        return map(file_id, self._paths)

    def state(self) -> str:
        return self._digest

    def remarks(self) -> list[str]:
        remarks = [f"{remark}: left out" for remark in self._unusable[:MAX_REMARKS]]
        if len(self._unusable) > MAX_REMARKS:
            remarks.append(f"{len(self._unusable) - MAX_REMARKS:,} more in {self.root} are left out for such reasons")
        if self._others:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in self._others.most_common(5))
            count = self._others.total()
            remarks.append(f"{count:,} files in {self.root} have no extension of an image ({kinds}): left out")
        return remarks


class _Shards:
    """Parquet files with the columns `id`, `image.bytes` and, where there are labels, `label`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._rows = [_count_rows(path) for path in paths]
        self._names = _read_class_names(paths[0])
        if not sum(self._rows):
            raise FileNotFoundError(f"{paths[0].parent} holds no image: its Parquet files have no rows")

    def __len__(self) -> int:
        return sum(self._rows)

    def read_from(self, start: int) -> Iterator[ImageFile]:
        for path, rows in zip(self._paths, self._rows, strict=True):
            if start < rows:
                yield from self._read_shard(path, start)
            start = max(start - rows, 0)

    def _read_shard(self, path: Path, start: int) -> Iterator[ImageFile]:
        with pq.ParquetFile(path) as file:
            groups: list[int] = []
            for group in range(file.num_row_groups):  # whole row groups before `start` are not read
                rows = file.metadata.row_group(group).num_rows
                if groups or start < rows:
                    groups.append(group)
                else:
                    start -= rows
            names = file.schema_arrow.names
            columns = ["id", "image.bytes", *(["label"] if "label" in names else [])]
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=columns):
                used = batch.slice(min(start, len(batch)))
                start -= len(batch) - len(used)
                yield from self._image_files(used)

    def _image_files(self, batch: pa.RecordBatch) -> Iterator[ImageFile]:
        labels = batch["label"].to_pylist() if "label" in batch.schema.names else [None] * len(batch)
        images = batch["image"].field("bytes")
        for id_, label, image in zip(batch["id"].to_pylist(), labels, images, strict=True):
            yield ImageFile(str(id_), self._label(label), functools.partial(_bytes, image))

    def _label(self, label: Any) -> str | None:
        is_index = isinstance(label, int) and 0 <= label < len(self._names)
        return self._names[label] if is_index else None if label is None else str(label)

    def ids(self) -> Iterable[str]:
        for path in self._paths:
            yield from map(str, pq.read_table(path, columns=["id"])["id"].to_pylist())

    def state(self) -> str:
        states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._paths]
        return hashlib.sha256(json.dumps([states, self._names]).encode()).hexdigest()

    def remarks(self) -> list[str]:
        return []


class _Several:
    """One after the other."""

    def __init__(self, parts: Sequence[ImageFiles]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def read_from(self, start: int) -> Iterator[ImageFile]:
        for part in self._parts:
            yield from part.read_from(start)
            start = max(start - len(part), 0)

    def ids(self) -> Iterable[str]:
        for part in self._parts:
            yield from part.ids()

    def state(self) -> str:
        return hashlib.sha256(" ".join(part.state() for part in self._parts).encode()).hexdigest()

    def remarks(self) -> list[str]:
        return [remark for part in self._parts for remark in part.remarks()]


def _is_missing(found: Found) -> bool:
    """Whether it is a link to nothing: an image that cannot be read."""
    return found.entry.is_symlink() and not Path(found.entry.path).exists()


def _state(found: Found) -> str:
    state = found.entry.stat(follow_symlinks=not found.reason)
    return f"{file_id(found.path)} {state.st_size} {state.st_mtime_ns}\n"


def _label(path: str) -> str | None:
    *directories, _ = file_id(path).split("/")
    if directories and directories[0] in SPLITS:
        directories = directories[1:]
    return directories[0] if directories else None


def _bytes(image: pa.Scalar) -> bytes:
    return image.as_py() or b""


def _count_rows(path: Path) -> int:
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, int(file.metadata.num_rows)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from error
    has_bytes = "image" in schema.names and pa.types.is_struct(schema.field("image").type)
    if "id" not in schema.names or not (has_bytes and schema.field("image").type.get_field_index("bytes") >= 0):
        raise ValueError(
            f"{path} has the columns {', '.join(schema.names)}, expected id, image.bytes and label, as in "
            "data/prepared/train"
        )
    return rows


def _read_class_names(shard: Path) -> list[str]:
    """Return the classes of dataset.json beside the splits; none where the shards are of elsewhere."""
    description = shard.absolute().parents[1] / "dataset.json"
    if not description.is_file():
        return []
    return [str(name) for name in json.loads(description.read_text(encoding="utf-8"))["classes"]]
