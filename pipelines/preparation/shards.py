"""Parquet shards of the prepared data: which images go together in one, and how it is written.

Any Parquet reader can read them. Written as they are here, uncompressed and with the images of a row group in one page,
`grpo_rm.shards` finds every image in them without reading the others.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

FORMAT = 2  # of the shards: with another one, all are written anew
KEY = b"grpo_rm"  # in the metadata

# A shard is what DVC stores anew when an image in it changes, and what processes write side by side: small enough for
# both, large enough that a million images are some hundred files.
USUAL_BYTES, USUAL_IMAGES = 64 * 2**20, 4_000
USUAL_COST = USUAL_BYTES * USUAL_IMAGES
MIN_SHARD, MAX_SHARD = 0.5, 2  # times the usual

# A row group is in memory, three times over, while it is written.
GROUP_BYTES, GROUP_IMAGES = 16 * 2**20, 1_000
PAGE_BYTES = 2**31 - 1  # the format's limit, so that a row group is one page

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class ShardRow(NamedTuple):
    """A row of a shard.

    Attributes:
        id: Of the image.
        image: Its file.
        label: Its class; of no meaning in segmentation.
        mask: The file of its mask, in segmentation.
    """

    id: str
    image: bytes
    label: int
    mask: bytes | None = None


def plan_shards(ids: Sequence[str], sizes: Sequence[int] | NDArray[np.int64]) -> list[range]:
    """Cut rows, ordered by id, into shards of about 64 MiB or 4,000 images, whichever is reached first.

    Where a shard begins depends on the ids and sizes of the rows around alone, as in content-defined chunking: an image
    that is added or removed changes the shard that it falls into and at most a few neighbors, not all that follow.

    Args:
        ids: Of the images.
        sizes: Bytes of each, its mask included.

    Returns:
        The rows of each shard: at most 128 MiB and 8,000 images, but for a single image that is larger.
    """
    costs = np.maximum(np.asarray(sizes, dtype=np.int64) * USUAL_IMAGES, USUAL_BYTES)  # in whole numbers: exact
    candidates = np.flatnonzero(_hashes(ids) < costs / (USUAL_COST * (1 - MIN_SHARD)))
    ends = np.cumsum(costs)
    starts, start = [], 0
    while start < len(ends):
        starts.append(start)
        least, most = ends[start] - costs[start] + (int(MIN_SHARD * USUAL_COST), MAX_SHARD * USUAL_COST)
        candidate = np.searchsorted(candidates, np.searchsorted(ends, least) + 1)
        following = candidates[candidate] if candidate < len(candidates) else len(ends)
        start = max(start + 1, int(min(following, np.searchsorted(ends, most, side="right"))))
    return [range(*bounds) for bounds in pairwise([*starts, len(ends)])]


def _hashes(ids: Sequence[str]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each id."""
    digests = b"".join(hashlib.blake2b(id_.encode(), digest_size=8).digest() for id_ in ids)
    return np.frombuffer(digests, dtype="<u8") / 2**64


def shard_key(
    ids: Sequence[str], digests: Sequence[str], labels: Sequence[int] | NDArray[np.int64], *, classes: Sequence[str]
) -> str:
    """Return what the content of a shard follows from: where the key is the same, so is the shard.

    Args:
        ids: Of its images.
        digests: Of their files; in segmentation of the masks too, joined to the image's.
        labels: Of its images.
        classes: Names of all classes.
    """
    content = [FORMAT, list(classes), list(ids), list(digests), [int(label) for label in labels]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_key(path: Path) -> str | None:
    """Return the key of a shard; None where there is none, or no shard that can be read."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    return metadata[KEY].decode() if KEY in metadata else None


def is_intact(path: Path) -> bool:
    """Whether the content of a shard is what was written, by the checksums of its pages."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group, use_threads=False)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def write_shard(path: Path, rows: Iterable[ShardRow], *, classes: Sequence[str], key: str) -> None:
    """Write a shard: the same bytes for the same rows. Of the rows, about 16 MiB are in memory at once.

    Args:
        path: The file. It is there when all is written, and not before.
        rows: Ordered by id, one or more; all with a mask, or none.
        classes: Names of the classes.
        key: Of `shard_key`.
    """
    partial = path.with_name(f"{path.name}.partial")  # closed by an exception, half a shard would have its key too
    groups = _row_groups(rows)
    group = next(groups)
    schema = _schema(classes, key, is_segmentation=group[0].mask is not None)
    with pq.ParquetWriter(
        partial,
        schema,
        compression="none",
        use_dictionary=False,
        write_statistics=["id", "label", "size", "mask_size"],  # the smallest file would be in it, and the largest
        data_page_size=PAGE_BYTES,
        max_rows_per_page=GROUP_IMAGES,
        write_page_checksum=True,
    ) as writer:
        while group:
            writer.write_table(_to_table(group, schema))
            group = next(groups, [])
    partial.replace(path)


def _row_groups(rows: Iterable[ShardRow]) -> Iterator[list[ShardRow]]:
    group: list[ShardRow] = []
    size = 0
    for row in rows:
        added = len(row.image) + len(row.mask or b"")
        if group and (len(group) == GROUP_IMAGES or size + added > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(row)
        size += added
    yield group


def _schema(classes: Sequence[str], key: str, *, is_segmentation: bool) -> pa.Schema:
    """Return the columns; for the `datasets` library, with what they are: images, and names of classes."""
    target = [("mask", FILE)] if is_segmentation else [("label", pa.int64())]
    sizes = [("size", pa.int32()), *([("mask_size", pa.int32())] if is_segmentation else [])]
    schema = pa.schema([("id", pa.string()), ("image", FILE), *target, *sizes])
    features: dict[str, dict[str, Any]] = {
        name: {"_type": "Image"} if type_ == FILE else {"dtype": str(type_), "_type": "Value"}
        for name, type_ in zip(schema.names, schema.types, strict=True)
    }
    if not is_segmentation:
        features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    return schema.with_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode(), KEY: key})


def _to_table(rows: Sequence[ShardRow], schema: pa.Schema) -> pa.Table:
    ids = pa.array([row.id for row in rows], pa.string())
    images = [row.image for row in rows]
    if "mask" in schema.names:
        masks = [row.mask or b"" for row in rows]
        columns = [ids, _files(images, ids), _files(masks, ids), _sizes(images), _sizes(masks)]
    else:
        columns = [ids, _files(images, ids), pa.array([row.label for row in rows], pa.int64()), _sizes(images)]
    return pa.Table.from_arrays(columns, schema=schema)


def _files(files: Sequence[bytes], ids: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array(files, pa.binary()), ids], fields=list(FILE))


def _sizes(files: Sequence[bytes]) -> pa.Array:
    return pa.array([len(file) for file in files], pa.int32())
