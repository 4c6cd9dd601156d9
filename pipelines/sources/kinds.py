"""The kinds of sources: `data.source` to a `Source`."""

from collections.abc import Callable
from pathlib import Path

from grpo_rm.config_errors import nearest
from pipelines.sources.arrays import open_digits, open_npz
from pipelines.sources.folder import open_folder
from pipelines.sources.huggingface import open_huggingface
from pipelines.sources.segmentation import open_segmentation
from pipelines.sources.shapes import open_shapes
from pipelines.sources.source import Source
from pipelines.sources.table import open_csv
from pipelines.sources.torchvision import open_torchvision

BY_PATH: dict[str, Callable[[Path], Source]] = {"folder": open_folder, "npz": open_npz, "csv": open_csv}
BY_NAME: dict[str, Callable[[str], Source]] = {"huggingface": open_huggingface, "torchvision": open_torchvision}


def open_source(source: str, *, task: str = "classification", void_index: int | None = None) -> Source:
    """Open `data.source`.

    Args:
        source: digits | shapes | folder:PATH | npz:PATH | csv:PATH | huggingface:NAME | torchvision:NAME
        task: classification, or segmentation (shapes and folder alone).
        void_index: The value in masks that is no class.

    Raises:
        FileNotFoundError: The path does not exist, or holds no images; or a set that is neither here nor can be had.
        ValueError: The layout is not what the source expects.
    """
    kind, _, rest = source.partition(":")
    if source == "shapes":
        return _open_shapes(task, void_index)
    if task == "segmentation" and kind != "folder":
        raise ValueError(
            f"data.source is {source}, expected folder:PATH for `task: segmentation`, with images and masks, or shapes"
        )
    if source == "digits":
        return open_digits()
    if kind in BY_NAME and rest:
        return BY_NAME[kind](rest)
    if kind not in BY_PATH or not rest:
        if Path(source).expanduser().is_dir():
            raise ValueError(f"data.source is {source!r}; did you mean folder:{source}?")
        known = ["digits", "shapes", *(f"{name}:PATH" for name in BY_PATH), *(f"{name}:NAME" for name in BY_NAME)]
        raise ValueError(f"data.source is {source!r}; {nearest(source, known)}")
    path = Path(rest).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"data.source is {source}, but {path.absolute()} does not exist")
    return open_segmentation(path, void_index=void_index) if task == "segmentation" else BY_PATH[kind](path)


def _open_shapes(task: str, void_index: int | None) -> Source:
    if task != "segmentation":
        raise ValueError("data.source is shapes, which has masks and no labels: set `task: segmentation`")
    return open_shapes(void_index=void_index)
