"""Small sets of images, as a source gives them."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.prepare import prepare
from pipelines.sources.source import LeftOut, Source

FRACTIONS = {"val_fraction": 0.2, "test_fraction": 0.2}


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, shape: tuple[int, ...] = (5, 6, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def pets(count: int = 20) -> dict[str, bytes]:
    """Return files of two classes, by their names."""
    names = [f"{name}/{index:02d}.png" for name in ("cat", "dog") for index in range(count)]
    return {name: encode(noise(seed)) for seed, name in enumerate(names)}


def made(files: Mapping[str, bytes | Callable[[], bytes]], **fields: object) -> Source:
    """Return a source of files in memory; the class of one is the first part of its name."""
    ids = sorted(files)
    classes = sorted({name.split("/")[0] for name in ids})

    def read(row: int) -> bytes:
        data = files[ids[row]]
        return data if isinstance(data, bytes) else data()

    labels = np.array([classes.index(name.split("/")[0]) for name in ids])
    return Source("made", classes, ids, labels, [None] * len(ids), read, **fields)


def segmentation(
    files: Mapping[str, bytes], masks: Mapping[str, bytes], mask_values: list[int], **fields: object
) -> Source:
    """Return a source of images and masks in memory."""
    ids = sorted(files)
    return Source(
        "scenes",
        [f"class {value}" for value in mask_values],
        ids,
        np.full(len(ids), -1),
        [None] * len(ids),
        lambda row: files[ids[row]],
        read_mask=lambda row: masks[ids[row]],
        mask_values=mask_values,
        **fields,
    )


def prepare_made(source: Source, output: Path, **options: object) -> None:
    prepare(source, output, **{**FRACTIONS, "seed": 0, "origin": "here", **options})


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder; returns the folder."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def reasons(source: Source) -> dict[str, str]:
    """Return why each file of a source is left out."""
    return {left.id: left.reason for left in source.left_out}


def labels_of(source: Source) -> dict[str, str]:
    """Return the class of each image of a source."""
    return {id_: source.classes[label] for id_, label in zip(source.ids, source.labels, strict=True)}


def tree(root: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


__all__ = [
    "FRACTIONS",
    "LeftOut",
    "encode",
    "labels_of",
    "made",
    "noise",
    "pets",
    "prepare_made",
    "reasons",
    "segmentation",
    "tree",
    "write",
]
