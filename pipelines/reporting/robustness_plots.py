"""Accuracy over the strength of each corruption, one small figure per corruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.reporting.figures import Panel, draw_curves
from pipelines.reporting.svg import render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
Curves = Mapping[str, Sequence[tuple[float, float]]]


def robustness_panels(robustness: Mapping[str, Rows]) -> list[Panel]:
    """Draw the models together, one panel per corruption.

    Args:
        robustness: model name to rows with `strength` and the accuracy under each corruption, a column each.
    """
    columns = dict.fromkeys(name for rows in robustness.values() for row in rows for name in row if name != "strength")
    values = [100 * float(row[name]) for rows in robustness.values() for row in rows for name in columns] or [0.0]
    # One axis for all: a panel that falls must look worse than one that does not.
    limits = max(0.0, min(values) - 5), min(101.0, max(values) + 5)
    in_order = sorted(columns, key=lambda name: name != "mean")
    return [Panel(title_of(name), "", _figure(_curves(robustness, name), name, limits=limits)) for name in in_order]


def title_of(column: str) -> str:
    """Return what a corruption, or their mean, is called on the page."""
    return "JPEG" if column == "jpeg" else column.capitalize()


def _curves(robustness: Mapping[str, Rows], column: str) -> Curves:
    return {
        model: [(float(row["strength"]), 100 * float(row[column])) for row in rows]
        for model, rows in robustness.items()
    }


def _figure(curves: Curves, corruption: str, *, limits: tuple[float, float]) -> str:
    def draw(axes: Axes) -> None:
        draw_curves(axes, curves)
        axes.set(xlabel="Strength", ylabel="Accuracy, %", ylim=limits)
        axes.set_xticks(sorted({strength for points in curves.values() for strength, _ in points}))

    return render_svg(
        draw, name=f"robustness-{corruption}", title=f"Accuracy over strength: {corruption}", size=(280, 200)
    )
