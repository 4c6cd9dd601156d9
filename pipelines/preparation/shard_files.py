"""The shards of the prepared data: kept where nothing changed, else written, by all processors together."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.preparation.replacement import sync
from pipelines.preparation.shards import ShardRow, is_intact, plan_shards, read_key, shard_key, write_shard
from pipelines.preparation.stored_files import digest_of, resize_file, resize_mask
from pipelines.preparation.workers import mark
from pipelines.sources.source import SPLITS, Source


class ChangedFileError(ValueError):
    """A file is not the one that was described a moment ago."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard that is to be there.

    Attributes:
        path: Its file, relative to the prepared data.
        rows: Of the source, ordered by id.
        digests: Of the files, as `digest_of` gives them.
        size: Bytes of the files in it.
        key: Of `shard_key`.
        former: A file of the earlier version that has the same content, if it is intact.
    """

    path: Path
    rows: NDArray[np.int64]
    digests: Sequence[str]
    size: int
    key: str
    former: Path | None


class Provided(NamedTuple):
    """What was done for a shard."""

    images: int
    was_kept: bool


def plan(
    source: Source,
    splits: Sequence[str],
    digests: Sequence[str],
    sizes: NDArray[np.int64],
    *,
    is_good: NDArray[np.bool_],
    former: Mapping[str, Path],
) -> list[PlannedShard]:
    """Return the shards of all splits.

    Args:
        source: Where the images are.
        splits: Of each image.
        digests: Of each image's files.
        sizes: Bytes of each image's files.
        is_good: Whether an image can be used; the others are in no shard.
        former: Shards of the earlier version of the data, by their key.
    """
    shards: list[PlannedShard] = []
    for split in SPLITS:
        rows = np.flatnonzero(is_good & np.array([other == split for other in splits], dtype=bool))
        ids = [source.ids[row] for row in rows.tolist()]
        for number, part in enumerate(plan_shards(ids, sizes[rows]) if ids else []):
            mine = rows[part.start : part.stop]
            own_digests = [digests[row] for row in mine.tolist()]
            own_ids = ids[part.start : part.stop]
            key = shard_key(own_ids, own_digests, source.labels[mine], classes=source.classes)
            path, size = Path(split, f"{number:05d}.parquet"), int(sizes[mine].sum())
            shards.append(PlannedShard(path, mine, own_digests, size, key, former.get(key)))
    return shards


def find_shards(prepared: Path) -> dict[str, Path]:
    """Return the shards of prepared data by their keys."""
    paths = (path for split in SPLITS for path in sorted((prepared / split).glob("*.parquet")))
    return {key: path for path in paths if (key := read_key(path))}


def provide(source: Source, shard: PlannedShard, output: Path, *, shorter_side: int | None) -> Provided:
    """Have a shard in the prepared data: that of the earlier version if it is intact, else a new one.

    Raises:
        ChangedFileError: A file changed since it was described.
    """
    path, images = output / shard.path, len(shard.rows)
    if shard.former and is_intact(shard.former):
        _keep(shard.former, path)
        return Provided(images, was_kept=True)
    write_shard(path, _read_rows(source, shard, shorter_side), classes=source.classes, key=shard.key)
    sync(path)
    return Provided(images, was_kept=False)


def _keep(former: Path, path: Path) -> None:
    """Have the same file under a second name, or a copy of it."""
    real = former.resolve()  # DVC may have put a link to its cache here
    try:
        path.hardlink_to(real)
    except OSError:
        shutil.copyfile(real, path)
        sync(path)


def _read_rows(source: Source, shard: PlannedShard, shorter_side: int | None) -> Iterator[ShardRow]:
    for row, digest in zip(shard.rows.tolist(), shard.digests, strict=True):
        mark(row)
        data = source.read(row)
        mask = source.read_mask(row) if source.read_mask else None
        if digest_of(data, mask, shorter_side) != digest:
            raise ChangedFileError(f"{source.ids[row]!r} changed while it was being prepared: run again")
        stored_mask = None if mask is None else resize_mask(mask, shorter_side)
        yield ShardRow(source.ids[row], resize_file(data, shorter_side), int(source.labels[row]), stored_mask)
