"""Images in arrays: the embedded digits, and .npz files. They are read as PNG files."""

import io
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from pipelines.sources.source import SPLITS, LeftOut, Source, make_source

REQUIRED, OPTIONAL = ("images", "labels"), ("classes",)
MAX_UNNAMED = 100_000  # classes without names: a label of 10^12 would name as many


@dataclass(frozen=True)
class _Arrays:
    images: Any  # (N, H, W), or (N, H, W, 1 or 3)
    labels: Any  # (N,)
    classes: list[str]
    prefix: str  # of the ids
    split: str | None


def open_digits() -> Source:
    """Open the 1,797 digits of 8 x 8 that scikit-learn has."""
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    classes = [str(name) for name in digits.target_names]
    return _to_source("digits", [_Arrays(images, digits.target, classes, "digit", None)], [])


def open_npz(path: Path) -> Source:
    """Open one .npz file, or a folder with train.npz and, where there are any, val.npz and test.npz.

    The arrays are held in memory, as they are in the file: `images` uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), or
    uint16 (N, H, W); `labels` integers (N,); `classes`, the names of the labels, may be missing.

    Raises:
        FileNotFoundError: The folder has none of these files.
        ValueError: A file is not like this, has Python objects, or does not fit into memory.
    """
    if not path.is_dir():
        return _to_source(path.resolve().stem, [_read_npz(path, "image", None)], [])
    files = {split: path / f"{split}.npz" for split in SPLITS if (path / f"{split}.npz").is_file()}
    if not files:
        raise FileNotFoundError(f"{path} holds none of {', '.join(f'{split}.npz' for split in SPLITS)}")
    others = sorted(set(path.glob("*.npz")) - set(files.values()))
    reason = f"expected the names {', '.join(f'{split}.npz' for split in SPLITS)}: rename it"
    parts = [_read_npz(file, split, split) for split, file in files.items()]
    if any(part.classes != parts[0].classes for part in parts):
        names = {f"{part.split}.npz": part.classes for part in parts}
        raise ValueError(f"the .npz files in {path} name different classes: {names}; save the same `classes` in each")
    return _to_source(path.resolve().name, parts, [LeftOut(other.name, reason) for other in others])


def encode_png(image: Image.Image) -> bytes:
    """Return a PNG file; packed loosely, which takes a third of the time."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _to_source(name: str, parts: Sequence[_Arrays], left_out: list[LeftOut]) -> Source:
    starts = [0, *accumulate(len(part.images) for part in parts)]

    def read(k: int) -> bytes:
        part = bisect_right(starts, k) - 1
        pixels = parts[part].images[k - starts[part]]
        return encode_png(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))

    return make_source(
        name,
        parts[0].classes,
        [f"{part.prefix}-{row:06d}" for part in parts for row in range(len(part.images))],
        labels=np.concatenate([part.labels for part in parts]).astype(np.int64),
        splits=[part.split for part in parts for _ in range(len(part.images))],
        read=read,
        left_out=left_out,
    )


def _read_npz(file: Path, prefix: str, split: str | None) -> _Arrays:
    arrays = _load(file)
    missing = set(REQUIRED) - set(arrays)
    if missing:
        raise ValueError(
            f"{file} has no array {', '.join(sorted(missing))}; expected {', '.join(REQUIRED)}, as in "
            "numpy.savez(file, images=..., labels=..., classes=...)"
        )
    images, labels = arrays["images"], arrays["labels"]
    _check_images(file, images)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{file} has labels {labels.dtype} {labels.shape}, expected integers ({len(images)},)")
    if "classes" not in arrays and labels.max() >= MAX_UNNAMED:
        raise ValueError(
            f"{file} has labels to {labels.max()}, expected 0, 1, 2 and so on, or their names in `classes`"
        )
    classes = _name_classes(file, arrays.get("classes", np.arange(int(labels.max()) + 1)))
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"{file} has labels {labels.min()} to {labels.max()}, but {len(classes)} classes")
    return _Arrays(images, labels, classes, prefix, split)


def _load(file: Path) -> dict[str, Any]:
    expected = "Expected an .npz file, as numpy.savez writes it, without Python objects"
    try:
        with file.open("rb") as opened:
            _check_memory(file, opened)
            with np.load(opened, allow_pickle=False) as archive:
                return {name: _take(archive, name) for name in (*REQUIRED, *OPTIONAL) if name in archive.files}
    except MemoryError as error:
        raise ValueError(
            f"{file} cannot be read: it says that it holds more than fits into memory. {expected}"
        ) from error
    except (
        AttributeError,
        EOFError,
        NotImplementedError,
        OSError,
        OverflowError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{file} cannot be read: {error}. {expected}") from error


def _take(archive: Any, name: str) -> Any:
    array = archive[name]
    if not isinstance(array, np.ndarray):  # numpy gives the bytes of what does not begin like an array
        raise TypeError(f"{name} is no array")
    return array


def _check_memory(file: Path, opened: Any) -> None:
    """Refuse what would fill the memory: a small archive may unpack to a thousand times its size."""
    if not zipfile.is_zipfile(opened):
        raise ValueError("it is no archive")
    with zipfile.ZipFile(opened) as archive:
        members = [f"{name}.npy" for name in (*REQUIRED, *OPTIONAL)]
        needed = sum(member.file_size for member in archive.infolist() if member.filename in members)
    opened.seek(0)
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"its arrays take {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free; "
            f"save the images of {file.name} as files in a directory per class instead"
        )


def _check_images(file: Path, images: Any) -> None:
    is_color = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3)
    if not (is_color or (images.dtype in (np.uint8, np.uint16) and images.ndim == 3)) or not images.size:
        raise ValueError(
            f"{file} has images {images.dtype} {images.shape}, expected uint8 (N, H, W) or (N, H, W, 1 or 3), or "
            "uint16 (N, H, W)"
        )


def _name_classes(file: Path, classes: Any) -> list[str]:
    if classes.ndim != 1 or classes.dtype.kind not in "USiu":
        raise ValueError(f"{file} has classes {classes.dtype} {classes.shape}, expected names (C,)")
    names = [name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name) for name in classes]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{file} names the class {repeated!r} twice, expected each name once")
    return names
