"""IoU of each class, the models below each other, with the class's share of the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.reporting.figures import MODEL_NAMES, Panel, legend_above, short_name
from pipelines.reporting.svg import COLORS, MUTED, OTHER_COLOR, PAGE, render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CLASSES = 60  # more would be a figure of several pages
WIDTH, CLASS_HEIGHT, FRAME_HEIGHT = 440, 31, 62  # points
BAR = 0.26  # of a class's height; three and a gap

Rows = Sequence[Mapping[str, Any]]


def class_panels(rows_of: Mapping[str, Rows]) -> list[Panel]:
    """Draw IoU bars of the models, in the order of the page; none where nothing was measured.

    Args:
        rows_of: model name to rows, one per class in the order of the classes, with `class`, `pixels` of the truth and
            `iou`, which a class lacks that is neither in the truth nor predicted. Of more than 60 classes those with
            the most pixels are shown.
    """
    models = [name for name in MODEL_NAMES if rows_of.get(name)]
    if not models:
        return []
    pixels = np.array([float(row["pixels"]) for row in rows_of[models[0]]])
    shown = sorted(np.argsort(-pixels, kind="stable")[:MAX_CLASSES].tolist())
    names = [short_name(str(rows_of[models[0]][place]["class"])) for place in shown]
    shares = pixels[shown] / max(pixels.sum(), 1)
    ious = {model: [rows_of[model][place].get("iou") for place in shown] for model in models}
    notes = [f"The {MAX_CLASSES} of {len(pixels)} classes with the most pixels."] if len(pixels) > len(shown) else []
    if any(value is None for values in ious.values() for value in values):
        notes.append("–: neither in the truth nor predicted.")
    return [Panel("IoU of each class, %", " ".join(notes), _figure(names, shares.tolist(), ious))]


def _figure(names: Sequence[str], shares: Sequence[float], ious: Mapping[str, Sequence[float | None]]) -> str:
    def draw(axes: Axes) -> None:
        for index, (model, values) in enumerate(ious.items()):
            places = np.arange(len(names)) + (index - (len(ious) - 1) / 2) * BAR
            _draw_bars(axes, model, places.tolist(), values)
        for place, share in enumerate(shares):
            style: dict[str, Any] = {"ha": "right", "va": "center", "color": MUTED}
            axes.text(1.16, place, share_text(share), transform=axes.get_yaxis_transform(), **style)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set(xlim=(0, 100), ylim=(len(names) - 0.5, -0.5), xlabel="IoU, %; right: the class's share of the pixels")
        legend_above(axes)

    height = FRAME_HEIGHT + CLASS_HEIGHT * len(names)
    return render_svg(draw, name="class-iou", title="IoU of each class", size=(WIDTH, height))


def _draw_bars(axes: Axes, model: str, places: Sequence[float], values: Sequence[float | None]) -> None:
    """Draw the bars of a model, each with its number; of a class that was not measured, a dash."""
    lengths = [100 * (value or 0.0) for value in values]
    color, label = COLORS.get(model, OTHER_COLOR), MODEL_NAMES[model].removesuffix(" (control)")
    axes.barh(places, lengths, height=BAR * 0.88, color=color, linewidth=0, label=label)
    for place, length, value in zip(places, lengths, values, strict=True):
        text = "–" if value is None else f"{length:.1f}"
        is_inside = length > 90
        axes.text(
            length - 0.8 if is_inside else length + 0.8,
            place,
            text,
            ha="right" if is_inside else "left",
            va="center_baseline",
            fontsize=7.5,
            color=PAGE if is_inside else MUTED,
        )


def share_text(share: float) -> str:
    """Return a share of the pixels in percent; a share that is not 0 is never called 0."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
