"""Sets that torchvision knows by name. Their files are in data/raw/torchvision, where DVC tracks them."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_rm.config_errors import nearest
from pipelines.file_tree import read_file
from pipelines.sources.arrays import encode_png
from pipelines.sources.source import Source, make_source

ROOT = Path("data/raw/torchvision")


def _by_split(**names: str) -> dict[str | None, dict[str, Any]]:
    return {ours: {"split": theirs} for ours, theirs in names.items()}


_BY_TRAIN: dict[str | None, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
# Our splits, and the arguments that open them. No pickle from strangers is loaded: of these, CIFAR alone has pickles,
# and torchvision compares their MD5 with its own before it opens them. Sets with other pickles (LSUN) are not here.
KNOWN: dict[str, dict[str | None, dict[str, Any]]] = {
    "CIFAR10": _BY_TRAIN,
    "CIFAR100": _BY_TRAIN,
    "Country211": _by_split(train="train", val="valid", test="test"),
    "DTD": _by_split(train="train", val="val", test="test"),
    "EuroSAT": {None: {}},
    "FGVCAircraft": _by_split(train="train", val="val", test="test"),
    "FashionMNIST": _BY_TRAIN,
    "Flowers102": _by_split(train="train", val="val", test="test"),
    "Food101": _by_split(train="train", test="test"),
    "GTSRB": _by_split(train="train", test="test"),
    "Imagenette": _by_split(train="train", val="val"),
    "KMNIST": _BY_TRAIN,
    "MNIST": _BY_TRAIN,
    "OxfordIIITPet": _by_split(train="trainval", test="test"),
    "RenderedSST2": _by_split(train="train", val="val", test="test"),
    "STL10": _by_split(train="train", test="test"),
    "SVHN": _by_split(train="train", test="test"),
    "USPS": _BY_TRAIN,
}
FILES = ("_image_files", "_images", "_samples", "samples")  # attributes with a path per image
LABELS = ("_labels", "targets", "labels")


def open_torchvision(name: str, *, root: Path = ROOT) -> Source:
    """Open a set by the name of its class in torchvision.datasets; it is downloaded where its files are not there.

    Raises:
        FileNotFoundError: It is not there, and cannot be downloaded.
        ValueError: There is no such set, or its files are damaged.
    """
    if name not in KNOWN:
        raise ValueError(
            f"data.source is torchvision:{name}, which is no set that can be read; {nearest(name, list(KNOWN))}"
        )
    _refuse_pickles(name, root)
    sets = {split: _open(name, root, arguments) for split, arguments in KNOWN[name].items()}
    labels = [_labels_of(opened) for opened in sets.values()]
    count = max(int(part.max()) for part in labels) + 1
    known = getattr(next(iter(sets.values())), "classes", range(count))
    classes = [names[0] if isinstance(names, tuple) else str(names) for names in known]  # Imagenette has synonyms
    readers = [_reader(opened) for opened in sets.values()]
    rows = [(part, row) for part, of_part in enumerate(labels) for row in range(len(of_part))]
    names = [split or "image" for split in sets]
    return make_source(
        name,
        classes,
        [f"{names[part]}-{row:06d}" for part, row in rows],
        labels=np.concatenate(labels),
        splits=[split for split, of_part in zip(sets, labels, strict=True) for _ in range(len(of_part))],
        read=lambda k: readers[rows[k][0]](rows[k][1]),
    )


def _refuse_pickles(name: str, root: Path) -> None:
    """Early versions of torchvision left pickles there, which it still prefers to the files they were made from."""
    if (root / name / "processed").exists():
        raise ValueError(f"{root / name / 'processed'} has pickles, which are not loaded; remove this folder")


def _open(name: str, root: Path, arguments: dict[str, Any]) -> Any:
    import torchvision  # slow to import

    known = getattr(torchvision.datasets, name)
    try:
        return known(str(root), **arguments)
    except (OSError, RuntimeError):  # it is not there, or not whole
        return _download(known, root, arguments)
    except Exception as error:  # whatever its parsers raise
        raise ValueError(
            f"the files of {name} in {root} are damaged: {error}; remove them, or bring good ones"
        ) from error


def _download(known: Callable[..., Any], root: Path, arguments: dict[str, Any]) -> Any:
    name = known.__name__
    try:
        root.mkdir(parents=True, exist_ok=True)
        return known(str(root), **arguments, download=True)
    except Exception as error:  # of the network, of archives, of parsers
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise FileNotFoundError(
            f"torchvision.datasets.{name} is not whole in {root.absolute()}, and cannot be downloaded ({reason[0]}). "
            f'Where there is a network, run `python -c "import torchvision; torchvision.datasets.{name}'
            f"({', '.join([repr(root.as_posix()), *(f'{key}={value!r}' for key, value in arguments.items())])}, "
            f'download=True)"`, and copy the folder here'
        ) from error


def _labels_of(opened: Any) -> Any:
    labels = next((getattr(opened, name) for name in LABELS if hasattr(opened, name)), None)
    if labels is None:
        labels = [label for _, label in _files_of(opened) or ()]
    return np.asarray(labels, dtype=np.int64)


def _files_of(opened: Any) -> Sequence[Any] | None:
    return next((getattr(opened, name) for name in FILES if hasattr(opened, name)), None)


def _reader(opened: Any) -> Callable[[int], bytes]:
    """Return what reads image k: the file as it is where there is one, else a PNG file of its pixels."""
    files = _files_of(opened)
    if files is None:
        return lambda row: encode_png(opened[row][0])
    paths = [os.fspath(file[0] if isinstance(file, tuple) else file) for file in files]
    return lambda row: read_file(paths[row])
