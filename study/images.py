"""Images of the tasks: how they are drawn from the sets in shared/data, by seed and per class.

What is drawn for validation and test depends neither on how many images are for training nor on what is done to their
labels, so tasks of one set share them.
"""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (N, H, W) or (N, H, W, 3), labels (N,)
Rows = NDArray[np.int64]

SEED = 0  # of all draws here, whatever the seed of a training
FASHION, TINY = "fashion_mnist", "tinyimagenet50.tar.gz"
FASHION_TRAIN, FASHION_VAL, FASHION_TEST = 200, 200, 1000  # of a class
LONGEST, RATIO = 600, 50  # images of the most frequent class, and how many times those of the rarest
NOISY_TRAIN = 400
TINY_SIDE, PRETRAINING_CLASSES, PRETRAINING_VAL = 32, 30, 20
TINY_TRAIN, TINY_VAL, TINY_TEST = 150, 100, 300
FEW = 10


def write_fashion(folder: Path, shared: Path) -> None:
    """Write the balanced task."""
    _write_fashion(folder, shared, [FASHION_TRAIN] * 10)


def write_long_tail(folder: Path, shared: Path) -> None:
    """Write the task whose classes, in a seeded order, have ever fewer training images."""
    order = np.random.default_rng([SEED, 1]).permutation(10)
    counts = np.empty(10, np.int64)
    counts[order] = long_tail_counts(10)
    _write_fashion(folder, shared, counts.tolist())


def write_noisy_20(folder: Path, shared: Path) -> None:
    """Write the task with a fifth of the training labels wrong."""
    _write_fashion(folder, shared, [NOISY_TRAIN] * 10, noise=0.2)


def write_noisy_40(folder: Path, shared: Path) -> None:
    """Write the task with two fifths of the training labels wrong."""
    _write_fashion(folder, shared, [NOISY_TRAIN] * 10, noise=0.4)


def write_pretraining(folder: Path, shared: Path) -> None:
    """Write the classes of Tiny-ImageNet that the encoder learns. Nothing is tested: test.npz is val.npz again."""
    classes = _tiny_classes(shared)[0]
    images, labels = read_tiny(shared, classes)
    val, train = split_classes(labels, [PRETRAINING_VAL, None])
    parts = {"train": (images[train], labels[train]), "val": (images[val], labels[val])}
    write_splits(folder, parts | {"test": parts["val"]}, classes)


def write_tiny(folder: Path, shared: Path) -> None:
    """Write the other classes."""
    _write_tiny(folder, shared, TINY_TRAIN)


def write_few_shot(folder: Path, shared: Path) -> None:
    """Write them with a few training images, which are among those of `write_tiny`."""
    _write_tiny(folder, shared, FEW)


def link_camvid(folder: Path, shared: Path) -> None:
    """Link the set as it is: its splits are given."""
    folder.symlink_to((shared / "camvid").resolve(), target_is_directory=True)


def _write_fashion(folder: Path, shared: Path, counts: list[int], *, noise: float = 0.0) -> None:
    (images, labels), (test_images, test_labels) = (_read_fashion(shared, split) for split in ("train", "test"))
    val, rest = split_classes(labels, [FASHION_VAL, None])
    train = np.concatenate([rest[labels[rest] == label][:count] for label, count in enumerate(counts)])
    (test,) = split_classes(test_labels, [FASHION_TEST])
    parts = {
        "train": (images[train], with_noise(labels[train], noise, num_classes=10)),
        "val": (images[val], labels[val]),
        "test": (test_images[test], test_labels[test]),
    }
    write_splits(folder, parts, [str(label) for label in range(10)])


def _write_tiny(folder: Path, shared: Path, count: int) -> None:
    """Test and validation are drawn first: a class has 548 to 550 images, so the last few of train may be missing."""
    classes = _tiny_classes(shared)[1]
    images, labels = read_tiny(shared, classes)
    test, val, rest = split_classes(labels, [TINY_TEST, TINY_VAL, None])
    train = np.concatenate([rest[labels[rest] == label][:count] for label in range(len(classes))])
    rows = {"train": train, "val": val, "test": test}
    write_splits(folder, {name: (images[part], labels[part]) for name, part in rows.items()}, classes)


def split_classes(labels: Rows, counts: list[int | None]) -> list[Rows]:
    """Return the rows of disjoint parts with `counts` images of each class, drawn by the seed; None: all that are left.

    Raises:
        ValueError: A class has too few.
    """
    parts: list[list[Rows]] = [[] for _ in counts]
    for label in range(int(labels.max()) + 1):
        rows = np.random.default_rng([SEED, 2, label]).permutation(np.flatnonzero(labels == label))
        for part, count in zip(parts, counts, strict=True):
            if count is not None and len(rows) < count:
                raise ValueError(f"class {label} has too few images: {len(rows)} are left, expected {count}")
            part.append(rows[:count])
            rows = rows[len(part[-1]) :]
    return [np.concatenate(part) for part in parts]


def long_tail_counts(num_classes: int) -> list[int]:
    """Return the training images of each class, the most frequent first."""
    shares = np.arange(num_classes) / (num_classes - 1)
    return [round(LONGEST * RATIO**-share) for share in shares]


def with_noise(labels: Rows, rate: float, *, num_classes: int) -> Rows:
    """Return labels of which `rate` in each class are replaced by another class, drawn uniformly."""
    generator, noisy = np.random.default_rng([SEED, 3]), labels.copy()
    for label in range(num_classes):
        rows = generator.permutation(np.flatnonzero(labels == label))
        chosen = rows[: round(rate * len(rows))]
        noisy[chosen] = (label + generator.integers(1, num_classes, len(chosen))) % num_classes
    return noisy


def read_tiny(shared: Path, classes: list[str]) -> Part:
    """Return all images of some classes, in the order of their names: in color, halved by a 2 x 2 box filter."""
    found: list[tuple[str, bytes]] = []
    with tarfile.open(shared / TINY) as archive:
        for member in archive:
            if member.isfile() and Path(member.name).parent.name in classes:
                found.append((member.name, archive.extractfile(member).read()))  # type: ignore[union-attr]
    found.sort()
    labels = [classes.index(Path(name).parent.name) for name, _ in found]
    return np.stack([_small(file) for _, file in found]), np.array(labels, np.int64)


def _small(file: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return np.asarray(image.resize((TINY_SIDE, TINY_SIDE), Image.Resampling.BOX))


def _tiny_classes(shared: Path) -> tuple[list[str], list[str]]:
    """Return the classes of the pretraining, and those of the tasks."""
    with tarfile.open(shared / TINY) as archive:
        names = sorted({Path(member.name).parent.name for member in archive if member.isfile()})
    order = [names[row] for row in np.random.default_rng([SEED, 4]).permutation(len(names))]
    return sorted(order[:PRETRAINING_CLASSES]), sorted(order[PRETRAINING_CLASSES:])


def _read_fashion(shared: Path, split: str) -> Part:
    with np.load(shared / FASHION / f"{split}.npz") as file:
        return file["images"], file["labels"]


def write_splits(folder: Path, parts: Mapping[str, Part], classes: list[str]) -> None:
    """Write train.npz and so on, as `pipelines.sources.arrays` reads them."""
    folder.mkdir(parents=True)
    for split, (images, labels) in parts.items():
        arrays: dict[str, Any] = {"images": images, "labels": labels, "classes": np.array(classes)}
        np.savez(folder / f"{split}.npz", **arrays)
