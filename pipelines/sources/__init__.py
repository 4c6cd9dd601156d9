"""Where images come from: `data.source` to a `Source`."""

from pathlib import Path

from pipelines.sources.source import SPLITS, LeftOut, Source

__all__ = ["SPLITS", "LeftOut", "Source", "open_source"]


def open_source(source: str, *, task: str = "classification", void_index: int | None = None) -> Source:
    """Open `data.source`.

    Args:
        source: digits | folder:PATH | npz:PATH | csv:PATH | huggingface:NAME | torchvision:NAME
        task: classification, or segmentation (folder alone).
        void_index: The value in masks that is no class.

    Raises:
        FileNotFoundError: The path does not exist, or holds no images; or a set that is neither here nor can be had.
        ValueError: The layout is not what the source expects.
    """
    raise NotImplementedError
