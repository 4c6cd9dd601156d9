"""Images in a directory per class: PATH/CLASS/..., or PATH/{train,val,test}/CLASS/..."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.file_tree import file_id, read_file
from pipelines.sources.source import SPLITS, Source, make_source
from pipelines.sources.strays import Stray, leave_out, list_folder

LIKE_SPLITS = {  # what others call them
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
    **dict(zip(SPLITS, SPLITS, strict=True)),
}


def open_folder(root: Path) -> Source:
    """Open a folder of images, anywhere below the directories of their classes.

    A class is named by its directory, in Unicode's composed form (NFC): a name with accents comes decomposed from some
    file systems, and looks the same. Upper and lower case are two classes, as with letters; where one is of a mistake,
    stage validate tells which classes are missing from a split. A directory without images is a class all the same.

    Raises:
        FileNotFoundError: There are no classes, or no images.
        ValueError: It is no folder, or its directories are not all classes or all splits.
    """
    require_folder(root)
    content = list_folder(root)
    top = [path for path in content.directories if "/" not in path]
    given = find_splits(root, top)
    _refuse_segmentation(root, content.directories)
    level = 1 if given else 0
    names = {path.split("/")[level]: "" for path in content.directories if path.count("/") == level}
    names = {name: unicodedata.normalize("NFC", file_id(name)) for name in names}
    classes = sorted(set(names.values()))
    if not classes:
        raise FileNotFoundError(f"{root} holds no directories, expected one directory of images per class")
    paths = [path for path in content.images if path.count("/") > level]
    beside = [path for path in content.images if path.count("/") <= level]
    if not paths:
        raise FileNotFoundError(
            f"the {len(classes)} class directories in {root} hold no images{_first(content.strays)}"
        )
    indices = {name: classes.index(label) for name, label in names.items()}
    known = {split: split for split in SPLITS}
    directory = str(root)
    return make_source(
        file_id(root.resolve().name),
        classes,
        [file_id(path) for path in paths],
        labels=np.fromiter((indices[path.split("/", level + 1)[level]] for path in paths), np.int64, len(paths)),
        splits=[known[path.partition("/")[0]] if given else None for path in paths],
        read=lambda k: read_file(f"{directory}/{paths[k]}"),
        left_out=leave_out(root, [*content.strays, *(Stray(path, BESIDE) for path in beside)]),
    )


BESIDE = "an image beside the directories of the classes, expected in one of them: move it"


def require_folder(root: Path) -> None:
    """Raise ValueError unless `root` is a directory."""
    if not root.is_dir():
        raise ValueError(f"{root} is a file, expected a folder; unpack an archive first")


def find_splits(root: Path, top: Sequence[str]) -> list[str]:
    """Return which splits the directories are; none where they are classes.

    Raises:
        ValueError: They are some of each, or have the names that others give to splits.
    """
    given = [name for name in top if name in SPLITS]
    others = [name for name in top if name not in SPLITS]
    alike = {name: LIKE_SPLITS[name.lower()] for name in others if name.lower() in LIKE_SPLITS}
    if given and others:
        hint = "".join(f" Rename {file_id(name)} to {split}." for name, split in alike.items())
        raise ValueError(
            f"{root} holds {', '.join(given)} beside {', '.join(map(file_id, others[:5]))}; expected either one "
            f"directory per class, or only {', '.join(SPLITS)}."
            f"{hint or ' Rename the class that is called like a split'}"
        )
    if len(alike) > 1 and len(alike) == len(others):
        renamed = ", ".join(f"{file_id(name)} to {split}" for name, split in alike.items())
        raise ValueError(
            f"{root} holds {', '.join(others)}, expected classes, or {', '.join(SPLITS)}: rename {renamed}"
        )
    return given


def _refuse_segmentation(root: Path, directories: Sequence[str]) -> None:
    names = set(directories)
    for parent in ("", *(f"{split}/" for split in SPLITS)):
        if {f"{parent}images", f"{parent}masks"} <= names:
            raise ValueError(
                f"{root} holds {parent}images and {parent}masks, expected one directory per class; where these are "
                "images with masks, set `task: segmentation` in params.yaml"
            )


def _first(strays: Sequence[Stray]) -> str:
    return f"; left out: {len(strays):,} others, the first is {file_id(strays[0].path)}" if strays else ""
