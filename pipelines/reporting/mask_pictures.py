"""Masks as small pictures that a page holds in itself, in colors told apart by most color-blind readers."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from grpo_rm.masks import VOID
from pipelines.reporting.thumbnails import data_uri

# Chosen greedily, each as far as can be from those before in OKLab, as seen by normal, protan and deutan eyes.
PALETTE = (
    *("#4477aa", "#f0c808", "#c8385a", "#ffa5ff", "#3c00a5", "#78000f", "#f08778", "#b4ffd2"),
    *("#b478ff", "#2d4be1", "#3c3c5a", "#c37800", "#a596c3", "#4b6900", "#e1c3a5", "#5a4b96"),
    *("#d2ff69", "#f09600", "#b47887", "#d2e1ff", "#783c3c", "#5a0f78", "#e1e196", "#00785a"),
)
MAX_COLORS = 255  # of a palette PNG, beside void; classes beyond share them
GOLDEN_ANGLE = 0.381966  # of a full turn: any number of hues in a row lie far apart


def mask_colors(num_classes: int) -> list[str]:
    """Return a CSS color for each class; beyond the palette they are hues, and beyond 255 classes they repeat."""
    colors = [PALETTE[label] if label < len(PALETTE) else _hue(label) for label in range(MAX_COLORS)]
    return [colors[label % MAX_COLORS] for label in range(num_classes)]


def mask_picture(mask: NDArray[np.integer], *, side: int) -> str:
    """Return a mask as a data: URI, a palette PNG that shows void as transparent.

    Args:
        mask: (H, W) class indices, VOID where there is none.
        side: pixels of the longer side, at most; a larger mask is sampled, so that no class comes in that is not there.
    """
    indices = np.where(mask == VOID, MAX_COLORS, mask % MAX_COLORS).astype(np.uint8)
    picture = Image.fromarray(_sampled(indices, side)).convert("P")
    picture.frombytes(_sampled(indices, side).tobytes())
    colors = [bytes.fromhex(color[1:]) for color in mask_colors(MAX_COLORS)]
    picture.putpalette(b"".join(colors) + bytes(3))
    return data_uri(picture, "png", optimize=True, transparency=MAX_COLORS)


def describe_mask(mask: NDArray[np.integer], classes: Sequence[str], *, limit: int = 5) -> str:
    """Return the largest classes of a mask (H, W) with their shares of all its pixels, void left out."""
    labels, counts = np.unique(mask[mask != VOID], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    parts = [f"{classes[labels[i]]} {100 * counts[i] / mask.size:.0f} %" for i in order[:limit]]
    return ", ".join([*parts, "..."] if len(order) > limit else parts) or "void alone"


def _sampled(indices: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Take the pixels in the middle of the cells of a grid whose longer side has at most `side` cells."""
    shrink = min(1.0, side / max(indices.shape))
    rows, columns = (
        ((np.arange(cells) + 0.5) * length / cells).astype(np.int64)
        for length in indices.shape
        for cells in (max(1, math.floor(length * shrink + 0.5)),)
    )
    return np.ascontiguousarray(indices[np.ix_(rows, columns)])


def _hue(label: int) -> str:
    channels = colorsys.hls_to_rgb(label * GOLDEN_ANGLE % 1, (0.35, 0.55, 0.75)[label % 3], 0.6)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
