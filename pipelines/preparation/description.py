"""An image file to its row of the manifest. No file makes it fail: what cannot be decoded has its reason in its row."""

import math
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from grpo_rm.transforms import ImageError, convert, decode, open_image, open_mask, refuse
from pipelines.preparation.near_duplicates import perceptual_hash
from pipelines.preparation.stored_files import digest_of, resize_file, resize_mask
from pipelines.preparation.workers import mark
from pipelines.sources.source import Source

MAX_REASON = 200  # characters
NAN = math.nan
STATISTICS = [f"{name}_{channel}" for name in ("mean", "std") for channel in "rgb"]
HISTOGRAM = struct.Struct(f"{3 * 256}I")
POWERS = np.stack([np.arange(256.0), np.arange(256.0) ** 2], axis=1)  # (256, 2)

# Columns of the manifest that follow from a file alone, and of `stored` that say what its shard will hold.
IMAGE_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("mode", pa.string()),
    ("format", pa.string()),
    ("bytes", pa.int64()),
    ("sha256", pa.string()),
    ("perceptual_hash", pa.string()),
    ("decode_error", pa.string()),
    *((name, pa.float32()) for name in STATISTICS),
]
MASK_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("mask_error", pa.string()),
    ("void_share", pa.float32()),
    ("mask_counts", pa.list_(pa.int64())),
]
STORED_COLUMNS: list[tuple[str, pa.DataType]] = [("digest", pa.string()), ("stored_bytes", pa.int64())]


class Description(NamedTuple):
    """What is known of an image file; the fields are IMAGE_COLUMNS."""

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    bytes: int = 0
    sha256: str = ""
    perceptual_hash: str = ""
    decode_error: str = ""
    mean_r: float = NAN
    mean_g: float = NAN
    mean_b: float = NAN
    std_r: float = NAN
    std_g: float = NAN
    std_b: float = NAN


class MaskDescription(NamedTuple):
    """What is known of a mask; the fields are MASK_COLUMNS."""

    error: str
    void_share: float
    counts: list[int]


def describe_rows(source: Source, rows: Iterable[int], *, shorter_side: int | None, void_index: int | None) -> pa.Table:
    """Return a row for each of some images of a source: what the manifest says of its files, and what is stored."""
    described = []
    for row in rows:
        mark(row)
        try:
            data = source.read(row)
            mask = source.read_mask(row) if source.read_mask else None
        except OSError as error:
            described.append(_unreadable(source, error))
        else:
            described.append(_describe_files(source, data, mask, shorter_side, void_index))
    columns = [*IMAGE_COLUMNS, *(MASK_COLUMNS if source.read_mask else []), *STORED_COLUMNS]
    values = zip(*described, strict=True) if described else [[]] * len(columns)
    arrays = [pa.array(list(value), kind) for value, (_, kind) in zip(values, columns, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(columns))


def _unreadable(source: Source, error: OSError) -> tuple[object, ...]:
    reason = f"the file cannot be read: {error.strerror or error}"[:MAX_REASON]
    classes = len(source.mask_values or [])
    mask = MaskDescription(reason, NAN, [0] * classes) if source.read_mask else ()
    return (*Description(decode_error=reason), *mask, "", 0)


def _describe_files(
    source: Source, data: bytes, mask: bytes | None, shorter_side: int | None, void_index: int | None
) -> tuple[object, ...]:
    digest = digest_of(data, mask, shorter_side)
    image, stored_bytes = describe_image(data, digest.partition(":")[0], shorter_side)
    if mask is None:
        return (*image, digest, stored_bytes)
    about_mask, mask_bytes = describe_mask(
        mask, _upright_size(data, image, shorter_side), source.mask_values or [], shorter_side, void_index
    )
    return (*image, *about_mask, digest, stored_bytes + mask_bytes)


def _upright_size(data: bytes, image: Description, shorter_side: int | None) -> tuple[int, int] | None:
    """Return width and height of an image as it came; None where it cannot be decoded."""
    if image.decode_error:
        return None
    return (image.width, image.height) if shorter_side is None else convert(open_image(data), 1).size


def describe_image(data: bytes, sha256: str, shorter_side: int | None) -> tuple[Description, int]:
    """Return the description of an image file, and how many bytes of it are stored."""
    known = Description(bytes=len(data), sha256=sha256)
    try:
        opened = open_image(data)
        known = known._replace(mode=opened.mode, format=opened.format or "")
        stored = resize_file(data, shorter_side)
        image = convert(opened, 3) if stored is data else decode(stored, channels=3)  # as training will
        statistics = channel_statistics(image)
        perceptual = perceptual_hash(image).hex()
    except Exception as error:
        return known._replace(decode_error=explain(error)), 0
    width, height = image.size
    known = Description(width, height, *known[2:6], perceptual, "", *statistics)
    return known, len(stored)


def describe_mask(
    mask: bytes,
    size: tuple[int, int] | None,
    values: Sequence[int],
    shorter_side: int | None,
    void_index: int | None,
) -> tuple[MaskDescription, int]:
    """Return the description of a mask, and how many bytes of it are stored.

    Args:
        mask: Its file.
        size: Width and height of its image; None where they are not known.
        values: What stands for each class.
        shorter_side: As in `resize_file`.
        void_index: What stands for no class.
    """
    try:
        opened = open_mask(mask)
        _check_size(opened, size)
        stored = resize_mask(mask, shorter_side)
        pixels = np.asarray(opened if stored is mask else open_mask(stored)).astype(np.uint16, copy=False)
        counts = np.bincount(pixels.ravel(), minlength=65_536)
        _check_values(counts, values, void_index)
    except Exception as error:
        return MaskDescription(explain(error), NAN, [0] * len(values)), 0
    void = 0 if void_index is None else counts[void_index]
    return MaskDescription("", float(void / pixels.size), counts[values].tolist()), len(stored)


def _check_size(mask: Image.Image, size: tuple[int, int] | None) -> None:
    if size and mask.size != size:
        sizes = " and ".join(f"{width} x {height}" for width, height in (mask.size, size))
        raise ImageError(f"mask and image have {sizes} pixels, expected the same")


def _check_values(counts: NDArray[np.int64], values: Sequence[int], void_index: int | None) -> None:
    void = [] if void_index is None else [void_index]
    unknown = sorted(set(np.flatnonzero(counts).tolist()) - {*values, *void})
    if unknown:
        listed = ", ".join(f"{value} ({counts[value]:,} pixels)" for value in unknown[:5])
        known = f"{min(values)} to {max(values)}" if len(values) > 8 else ", ".join(map(str, values))
        raise ImageError(f"values of no class: {listed}; expected {known}{''.join(f', or {v} (void)' for v in void)}")


def channel_statistics(image: Image.Image) -> list[float]:
    """Return mean and standard deviation of red, green and blue, for pixel values from 0 to 1.

    From the histogram, in whole numbers: exact, and in the same memory for an image of any size.
    """
    packed = HISTOGRAM.pack(*image.histogram())  # four times faster than numpy.array of a list
    histogram = np.frombuffer(packed, dtype=np.uint32).reshape(3, 256)
    total, squares = (histogram @ POWERS).T
    count = image.width * image.height
    std = np.sqrt(np.maximum(squares * count - total * total, 0)) / count
    result: list[float] = (np.concatenate([total / count, std]) / 255).tolist()
    return result


def explain(error: Exception) -> str:
    """Return why a file cannot be used: one line of text, the same at each run."""
    try:
        refuse(error)
    except ImageError as refused:
        return str(refused).encode("utf-8", "backslashreplace").decode()[:MAX_REASON]
