"""Where images come from: `data.source` to a list of items. Nothing is decoded and nothing is written here."""

import functools
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        id: Unique in the source, and stable: a relative path, or a row number.
        label: Index into the classes of the source.
        split: "train", "val" or "test" where the source says so.
        read: Gives the bytes of the image file.
    """

    id: str
    label: int
    split: str | None
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Source:
    """A named set of labeled images."""

    name: str
    classes: list[str]
    items: list[Item]


def open_source(source: str) -> Source:
    """Open `digits`, `folder:PATH` or `npz:PATH`.

    Raises:
        FileNotFoundError: The path does not exist, or holds no images.
        ValueError: The layout is not what the source expects.
    """
    kind, _, path = source.partition(":")
    if kind == "digits":
        return _digits()
    if not Path(path).exists():
        raise FileNotFoundError(f"data.source is {source}, but {Path(path).absolute()} does not exist")
    return _folder(Path(path)) if kind == "folder" else _npz(Path(path))


def _digits() -> Source:
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Source(
        "digits", [str(name) for name in digits.target_names], _array_items(images, digits.target, "digit", None)
    )


def _folder(root: Path) -> Source:
    """PATH/CLASS/image, or PATH/{train,val,test}/CLASS/image."""
    if not root.is_dir():
        raise ValueError(f"{root} is a file, expected a folder with one directory of images per class")
    given = [split for split in SPLITS if (root / split).is_dir()]
    others = [path.name for path in _visible(root) if path.is_dir() and path.name not in SPLITS]
    if given and others:
        raise ValueError(
            f"{root} holds {', '.join(given)} beside {', '.join(others[:5])}; expected either one directory per class, "
            f"or only {', '.join(SPLITS)}. Rename a split (valid to val, say), or the class that is called like one"
        )
    parents: dict[Path, str | None] = {root / split: split for split in given} or {root: None}
    directories = {
        directory: split for parent, split in parents.items() for directory in _visible(parent) if directory.is_dir()
    }
    classes = sorted({directory.name for directory in directories})
    if not classes:
        raise FileNotFoundError(f"{root} holds no directories, expected one directory of images per class")
    items = [
        Item(file.relative_to(root).as_posix(), classes.index(directory.name), split, file.read_bytes)
        for directory, split in directories.items()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    ]
    if not items:
        raise FileNotFoundError(f"the {len(classes)} class directories in {root} hold no files")
    return Source(root.resolve().name, classes, items)


def _visible(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def _npz(path: Path) -> Source:
    """One .npz, or a folder with train.npz and, where there are any, val.npz and test.npz."""
    files: dict[Path, str | None] = {path: None}
    if path.is_dir():
        files = {path / f"{split}.npz": split for split in SPLITS if (path / f"{split}.npz").is_file()}
    if not files:
        raise FileNotFoundError(f"{path} holds none of {', '.join(f'{split}.npz' for split in SPLITS)}")
    items: list[Item] = []
    names: list[list[str]] = []
    for file, split in files.items():
        arrays = _read_npz(file)
        names.append([str(name) for name in arrays["classes"]])
        items += _array_items(arrays["images"], arrays["labels"], split or "image", split)
    if any(classes != names[0] for classes in names):
        raise ValueError(f"the .npz files in {path} name different classes: {names}")
    return Source(path.resolve().stem, names[0], items)


def _read_npz(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (AttributeError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} cannot be read: {error}. Expected an .npz file, as numpy.savez writes it, without Python objects"
        ) from error
    missing = {"images", "labels"} - set(arrays)
    if missing:
        raise ValueError(f"{file} has no array {', '.join(sorted(missing))}; it has {', '.join(arrays)}")
    images, labels = arrays["images"], arrays["labels"]
    is_image = images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3)))
    if not is_image or not images.size:
        raise ValueError(
            f"{file} has images {images.dtype} {images.shape}, expected uint8 (N, H, W) or (N, H, W, 1 or 3)"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{file} has labels {labels.dtype} {labels.shape}, expected integers ({len(images)},)")
    arrays.setdefault("classes", np.arange(int(labels.max()) + 1))
    if labels.min() < 0 or labels.max() >= len(arrays["classes"]):
        raise ValueError(f"{file} has labels {labels.min()} to {labels.max()}, but {len(arrays['classes'])} classes")
    return arrays


def _array_items(images: Any, labels: Any, prefix: str, split: str | None) -> list[Item]:
    return [
        Item(f"{prefix}-{row:06d}", int(label), split, functools.partial(_png, image))
        for row, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(buffer, "PNG")
    return buffer.getvalue()
