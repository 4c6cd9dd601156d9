"""Images with masks: PATH/images and PATH/masks, or both below each of PATH/{train,val,test}; names in classes.txt."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.file_tree import file_id, read_file
from pipelines.sources.folder import find_splits, require_folder
from pipelines.sources.source import SPLITS, Source, make_source
from pipelines.sources.strays import Stray, leave_out, list_folder

CLASSES = "classes.txt"
MAX_CLASSES = 256  # values of an 8-bit mask
EXPECTED = "images and masks, or train, val and test with images and masks in each"


class _Pairs(NamedTuple):
    images: list[str]
    masks: list[str]
    strays: list[Stray]


def open_segmentation(root: Path, *, void_index: int | None) -> Source:
    """Open a folder of images with masks of equal stem: images/street/1.jpg goes with masks/street/1.png.

    Line k of classes.txt, counted from 0, names the value k in the masks.

    Args:
        root: The folder.
        void_index: The value that is no class; its line in classes.txt, where there is one, is not used.

    Raises:
        FileNotFoundError: There is no classes.txt, or no image with a mask.
        ValueError: classes.txt or the layout is not what is expected.
    """
    require_folder(root)
    content = list_folder(root, known=(CLASSES,))
    if not any(path.rpartition("/")[2] in ("images", "masks") for path in content.directories if path.count("/") < 2):
        raise ValueError(
            f"{root} holds no directories images and masks; for `task: segmentation` expected {EXPECTED}. Where it has "
            "a directory per class, set `task: classification` in params.yaml"
        )
    tops = [path for path in content.directories if "/" not in path and path not in ("images", "masks")]
    given = find_splits(root, tops)
    names = _read_classes(root, next((stray.reason for stray in content.strays if stray.path == CLASSES), ""))
    values = [value for value in range(len(names)) if value != void_index]
    pairs = _pair(content.images, level=1 if given else 0)
    if not pairs.images:
        first = f", the first is {file_id(pairs.strays[0].path)}: {pairs.strays[0].reason}" if pairs.strays else ""
        raise FileNotFoundError(f"{root} holds no image with a mask; expected {EXPECTED}{first}")
    directory = str(root)
    return make_source(
        file_id(root.resolve().name),
        [names[value] for value in values],
        [file_id(path) for path in pairs.images],
        labels=np.full(len(pairs.images), -1, np.int64),
        splits=[path.partition("/")[0] if given else None for path in pairs.images],
        read=lambda k: read_file(f"{directory}/{pairs.images[k]}"),
        read_mask=lambda k: read_file(f"{directory}/{pairs.masks[k]}"),
        mask_values=values,
        left_out=leave_out(root, [*content.strays, *pairs.strays]),
    )


def _read_classes(root: Path, stray: str) -> list[str]:
    path = root / CLASSES
    if stray or not path.is_file():
        raise FileNotFoundError(
            f"{path} {f'is {stray}' if stray else 'does not exist'}; expected a file with a name per line: line k, "
            "counted from 0, names the value k in the masks"
        )
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason}), expected a name per line") from error
    for number, name in enumerate(names, start=1):
        if not name:
            raise ValueError(f"{path}: line {number} is empty, expected a name for the value {number - 1} in the masks")
        if name in names[: number - 1]:
            raise ValueError(f"{path}: line {number} names {name!r} again, expected a name once")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{path} has {len(names)} lines, expected at most {MAX_CLASSES}: masks have 8 bits")
    return names


def _pair(paths: Sequence[str], *, level: int) -> _Pairs:
    """Bring together what has the same stem below images and masks of a split."""
    found: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: {"images": [], "masks": []})
    pairs = _Pairs([], [], [])
    for path in paths:
        parts = path.split("/", level + 1)
        is_below = len(parts) == level + 2 and parts[level] in ("images", "masks")
        if not is_below or (level and parts[0] not in SPLITS):
            pairs.strays.append(Stray(path, f"neither in images nor in masks, expected {EXPECTED}"))
            continue
        stem = os.path.splitext(parts[-1])[0]  # noqa: PTH122
        found[*parts[:level], stem][parts[level]].append(path)
    for sides in found.values():
        images, masks = sides["images"], sides["masks"]
        if len(images) == len(masks) == 1:
            pairs.images.append(images[0])
            pairs.masks.append(masks[0])
        else:
            reason = _say_why(images, masks)
            pairs.strays.extend(Stray(path, reason) for path in (*images, *masks))
    return pairs


def _say_why(images: Sequence[str], masks: Sequence[str]) -> str:
    for kind, several in (("images", images), ("masks", masks)):
        if len(several) > 1:
            return f"{kind} with the same stem, so it is not clear which is meant: {', '.join(map(file_id, several))}"
    return "a mask without an image of the same stem" if masks else "an image without a mask of the same stem"
