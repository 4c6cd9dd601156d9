"""Sets of the Hugging Face `datasets` library: saved to disk, in Parquet files, or of the Hub."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.file_tree import is_inside, is_regular, read_file
from pipelines.sources.source import SPLITS, LeftOut, Source, make_source

TO_OURS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
LABELS = ("label", "labels", "fine_label", "class", "target")  # where there are several: the first of these
# What may read files of strangers: formats without code and without pickles.
BUILDERS = ("arrow", "cache", "imagefolder", "parquet")
FIX = "Keep what is meant with select_columns or rename_column, and give the folder that save_to_disk writes"


def open_huggingface(name: str) -> Source:
    """Open a set.

    Args:
        name: A folder of `save_to_disk`, a folder of Parquet files, or USER/SET or USER/SET:CONFIGURATION of the Hub.
            What was downloaded before is taken without the network.

    Raises:
        FileNotFoundError: It is not here, and cannot be downloaded; or has no labeled images.
        ValueError: Its splits or columns are not what is expected.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    path = Path(name)
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"huggingface:{name} is no folder: correct the path, or give USER/SET of the Hub")
    parts = _name_splits(name, _open_folder(path) if path.is_dir() else _download(name))
    first = next(iter(parts.values()))
    image, label = _find_image(name, first), _find_label(name, first)
    _check_alike(name, parts, [image, label])
    tables = {split: _table(part, label) for split, part in parts.items()}
    classes = _list_classes(first.features[label], list(tables.values()))
    labels = {split: _index(column, first.features[label], classes) for split, column in tables.items()}
    rows = [(split, int(row)) for split, of_split in labels.items() for row in np.flatnonzero(of_split >= 0)]
    if not rows:
        raise FileNotFoundError(f"huggingface:{name} has no labeled images, expected some with a label in {label!r}")
    readers = {split: _reader(part, image, path) for split, part in parts.items()}
    return make_source(
        path.resolve().name if path.is_dir() else name.rpartition("/")[2].replace(":", "-"),
        classes,
        [f"{split or 'image'}-{row:06d}" for split, row in rows],
        labels=np.concatenate([of_split[of_split >= 0] for of_split in labels.values()]),
        splits=[split for split, _ in rows],
        read=lambda k: readers[rows[k][0]](rows[k][1]),
        left_out=_leave_out(labels),
    )


def _open_folder(path: Path) -> Any:
    import datasets  # slow to import

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _read(path, lambda: datasets.load_from_disk(str(path)))
    files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{path} holds neither what save_to_disk writes nor Parquet files")
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(path)), []).append(str(file))
    return _read(path, lambda: datasets.load_dataset("parquet", data_files=by_split))


def _split_of(file: Path) -> str:
    """Return the split that a folder or the name of a file has: train/0.parquet, or train-00000-of-00002.parquet."""
    return next((part for part in file.parts[:-1] if part in TO_OURS), file.stem.partition("-")[0])


def _read(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # datasets and pyarrow have many of their own
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(f"{path} cannot be read by datasets: {reason}. Write it again with save_to_disk") from error


def _download(name: str) -> Any:
    import datasets  # slow to import

    repository, _, configuration = name.partition(":")
    try:
        builder = datasets.load_dataset_builder(repository, configuration or None)
        kind = type(builder).__module__.rpartition(".")[2]
        if kind in BUILDERS:
            builder.download_and_prepare()
            return builder.as_dataset()
    except Exception as error:  # of the network and the Hub: there are dozens, and some are no OSError
        reason = str(error).strip().partition("\n")[0]
        load = ", ".join(map(repr, [repository, *([configuration] if configuration else [])]))
        raise FileNotFoundError(
            f"huggingface:{name} is neither a folder nor a set in {datasets.config.HF_DATASETS_CACHE}, and cannot be "
            f'downloaded ({reason}). Where there is a network, run `python -c "from datasets import load_dataset; '
            f"load_dataset({load}).save_to_disk('data/raw/set')\"`, copy the folder here, and set "
            "`source: huggingface:data/raw/set`; or point HF_HOME to a cache that has it"
        ) from error
    raise ValueError(f"huggingface:{name} has files that {kind} reads, expected images in {', '.join(BUILDERS)}")


def _name_splits(name: str, opened: Any) -> dict[str | None, Any]:
    if not isinstance(opened, dict):
        return {None: opened}
    unknown = [split for split in opened if split not in TO_OURS]
    named: dict[str | None, Any] = {TO_OURS[split]: part for split, part in opened.items() if split in TO_OURS}
    if unknown or len(named) < len(opened):
        raise ValueError(
            f"huggingface:{name} has the splits {', '.join(opened)}, expected train, validation and test, or some of "
            "them. Rename them in a DatasetDict, and give the folder that its save_to_disk writes"
        )
    return {split: named[split] for split in SPLITS if split in named}


def _find_image(name: str, part: Any) -> str:
    import datasets

    columns = [column for column, kind in part.features.items() if isinstance(kind, datasets.Image)]
    if len(columns) != 1:
        raise ValueError(
            f"huggingface:{name} has {len(columns)} columns of type Image{_told(columns)}, expected one among its "
            f"columns {_describe(part)}. {FIX}"
        )
    return str(columns[0])


def _find_label(name: str, part: Any) -> str:
    import datasets

    named = [column for column in LABELS if column in part.features and _is_label(part.features[column])]
    columns = [column for column, kind in part.features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(columns) != 1 and not named:
        raise ValueError(
            f"huggingface:{name} has {len(columns)} columns of type ClassLabel{_told(columns)}, expected one, or a "
            f"column {' or '.join(LABELS)} of integers or names, among its columns {_describe(part)}. {FIX}"
        )
    return columns[0] if len(columns) == 1 else named[0]


def _check_alike(name: str, parts: dict[str | None, Any], columns: list[str]) -> None:
    """Refuse splits that number their classes differently: the labels of one would mean others."""
    kinds = {split: [part.features.get(column) for column in columns] for split, part in parts.items()}
    for split, kind in kinds.items():
        if kind != next(iter(kinds.values())):
            raise ValueError(
                f"huggingface:{name} has other types of {' and '.join(columns)} in its split {split}: {kind}, expected "
                f"those of the first split, {next(iter(kinds.values()))}. Bring them together with cast_column"
            )


def _is_label(kind: Any) -> bool:
    return getattr(kind, "dtype", "").startswith(("int", "uint", "string", "large_string"))


def _told(columns: list[str]) -> str:
    return f" ({', '.join(columns)})" if columns else ""


def _describe(part: Any) -> str:
    return ", ".join(f"{column} ({type(kind).__name__})" for column, kind in part.features.items())


def _table(part: Any, label: str) -> Any:
    return part.select_columns([label]).with_format("arrow")[:][label].combine_chunks()


def _list_classes(kind: Any, columns: list[Any]) -> list[str]:
    """Return the names of a ClassLabel; else all values there are, sorted, without those that say unknown."""
    if hasattr(kind, "names"):
        return [str(name) for name in kind.names]
    values = {value for column in columns for value in pc.unique(column).to_pylist()}
    return [str(value) for value in sorted(value for value in values if value not in (None, -1))]


def _index(column: Any, kind: Any, classes: list[str]) -> Any:
    """Return labels (N,) int64; -1 where there is none."""
    if not hasattr(kind, "names"):
        column = pc.index_in(pc.cast(column, pa.string()), value_set=pa.array(classes, pa.string()))
    return pc.fill_null(column, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _leave_out(labels: dict[str | None, Any]) -> list[LeftOut]:
    counts = {split or "image": int((of_split < 0).sum()) for split, of_split in labels.items()}
    reason = "images without a label (-1 or none), as where the labels of a test set are kept secret"
    return [LeftOut(split, f"{count:,} {reason}") for split, count in counts.items() if count]


def _reader(part: Any, image: str, folder: Path) -> Callable[[int], bytes]:
    import datasets
    from huggingface_hub import constants

    files = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    # not all of HF_HOME: the token of the user is in it
    homes = [folder, *map(Path, (datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE))]
    real_homes = [os.path.realpath(home) for home in homes if home.is_dir()]

    def read(row: int) -> bytes:
        file = files[row][image] or {}
        if file.get("bytes") is not None:
            return bytes(file["bytes"])
        real = os.path.realpath(file.get("path") or "")
        is_ours = any(is_inside(real, home) for home in real_homes)  # a set may name any file of this machine
        if not is_ours or not is_regular(real):
            raise OSError("the set has no bytes of this image, and no path within the set")
        return read_file(real)

    return read
