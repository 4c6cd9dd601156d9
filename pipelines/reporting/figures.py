"""Figures of the report as SVG text.

The same input gives the same bytes (see `pipelines.reporting.svg`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.reporting.svg import COLORS, INK, MUTED, OTHER_COLOR, PAGE, render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL_NAMES = {
    "pretrain": "Pretrained",
    "cross_entropy": "Cross-entropy (control)",
    "grpo_rm": "GRPO-RM",
    "champion": "Champion",
}
MAX_CLASSES_WITH_TEXT = 30  # beyond it a cell is too small for a number
MAX_RASTER_CELLS = 400  # per side; more classes are summed in blocks, so the file stays small
MAX_MARKERS = 30  # a longer curve is a line without dots

# Arms differ in dashes as well as in colour: a grey print and a colour-blind reader must tell them apart.
DASHES: dict[str, Any] = {"pretrain": (0, (1, 1.5)), "cross_entropy": (0, (5, 2)), "grpo_rm": "-"}
MARKERS = {"pretrain": "s", "cross_entropy": "D", "grpo_rm": "o"}

LEARNING = [  # column, title, scale
    ("val_accuracy", "validation accuracy, %", 100.0),
    ("val_miou", "validation mIoU, %", 100.0),
    ("val_pixel_accuracy", "validation pixel accuracy, %", 100.0),
    ("val_nll", "validation NLL", 1.0),
]
GRPO_STATISTICS = [  # column, title, note, is the lowest possible value 0
    (
        "reward",
        "Reward",
        "Expected under the old policy; 0 for a policy that is sure and right, whose rewards cancel.",
        False,
    ),
    ("entropy", "Entropy of the policy", "In nats. 0 is a policy that is always certain.", True),
    ("clip_ratio/region_mean", "Clip fraction", "0 is expected while the old policy is fresh at every step.", True),
    ("old_kl", "KL from the old policy", "In nats, exact over the output set; 0 while the old policy is fresh.", True),
]


class Panel(NamedTuple):
    """One small figure of the report: what it shows, how to read it, and the SVG text."""

    title: str
    note: str
    svg: str


def learning_panels(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    """Validation metrics per epoch, those of `LEARNING` that there are: both arms together, then pretraining.

    Args:
        histories: model name to rows with `epoch` and a column for each metric.
    """
    panels = []
    arms = {name: rows for name, rows in histories.items() if name != "pretrain"}
    stages = [("Fine-tuning", arms), ("Pretraining", {k: v for k, v in histories.items() if k == "pretrain"})]
    for stage, members in stages:
        for column, title, scale in LEARNING:
            curves = {name: _points(rows, column, scale) for name, rows in members.items()}
            if any(curves.values()):
                svg = curve_figure(curves, name=f"{stage}-{column}", title=f"{stage}: {title}")
                panels.append(Panel(f"{stage}: {title}", "", svg))
    return panels


def statistics_panels(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    """Reward, entropy, clip fraction and KL per epoch, of every arm logging them; the control has entropy alone."""
    panels, arms = [], {name: rows for name, rows in histories.items() if name != "pretrain"}
    for column, title, note, is_zero_based in GRPO_STATISTICS:
        curves = {name: points for name, rows in arms.items() if (points := _points(rows, column))}
        if curves and not any(value for points in curves.values() for _, value in points):
            panels.append(Panel(f"{title}: 0 in every epoch.", note, ""))
        elif curves:
            svg = curve_figure(curves, name=f"grpo-{column}", title=title, is_zero_based=is_zero_based)
            panels.append(Panel(title, note, svg))
    return panels


def curve_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, name: str, title: str, is_zero_based: bool = False
) -> str:
    """Lines over epochs, one per model.

    Args:
        curves: model name to (epoch, value) points.
        name: identifies the figure; two figures of one page need two names.
        title: said to screen readers.
        is_zero_based: start the axis at 0.

    Returns:
        SVG text.
    """

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        draw_curves(axes, curves)
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        if is_zero_based:
            highest = max((value for points in curves.values() for _, value in points), default=0.0)
            axes.set_ylim(0, highest * 1.08 if highest > 0 else 1.0)
        legend_above(axes)

    return render_svg(draw, name=name, title=title, size=(400, 270))


def draw_curves(axes: Axes, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw the points of each model as a line in its color and dashes; a model without points is left out."""
    for model, points in curves.items():
        if points:
            marker = MARKERS.get(model, "v") if len(points) <= MAX_MARKERS else ""
            line = {"color": COLORS.get(model, OTHER_COLOR), "linestyle": DASHES.get(model, "-."), "marker": marker}
            axes.plot(*zip(*points, strict=True), label=MODEL_NAMES.get(model, model), **line)


def reliability_panels(
    reliability: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Mapping[str, Mapping[str, Any]]
) -> list[Panel]:
    """Reliability diagrams before and, where it was done, after temperature scaling, the models together.

    Args:
        reliability: model name to the rows of `reliability_rows`.
        metrics: model name to metrics; `ece` and `ece_calibrated` go to the legend where given.
    """
    panels = []
    is_scaled = any(row["kind"] == "calibrated" for rows in reliability.values() for row in rows)
    for kind, title, metric in [
        ("raw", "Before temperature scaling" if is_scaled else "Reliability", "ece"),
        ("calibrated", "After temperature scaling", "ece_calibrated"),
    ]:
        bins = {model: [row for row in rows if row["kind"] == kind] for model, rows in reliability.items()}
        labels = {model: _label_with_ece(model, metrics.get(model, {}).get(metric)) for model in bins}
        if any(bins.values()):
            panels.append(Panel(title, "", _reliability_figure(bins, labels, name=f"reliability-{kind}", title=title)))
    return panels


def _reliability_figure(
    bins: Mapping[str, Sequence[Mapping[str, Any]]], labels: Mapping[str, str], *, name: str, title: str
) -> str:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        for model, rows in bins.items():
            x, y, share = ([row[key] for row in rows] for key in ("confidence", "accuracy", "count"))
            area = 14 + 170 * np.asarray(share) / max(sum(share), 1)
            color = COLORS.get(model, OTHER_COLOR)
            fill = color if model == "grpo_rm" else "none"  # rings and discs: both stay visible where they overlap
            axes.plot(x, y, linestyle=DASHES.get(model, "-."), linewidth=0.8, color=color, alpha=0.45)
            axes.scatter(x, y, s=area, facecolor=fill, edgecolor=color, linewidths=1.5, clip_on=False, zorder=3)
            axes.plot([], [], "o", markersize=6, markerfacecolor=fill, color=color, label=labels[model])
        axes.set(xlim=(0, 1), ylim=(0, 1.0), xlabel="Confidence", ylabel="Accuracy")
        legend_above(axes)

    return render_svg(draw, name=name, title=title, size=(400, 340))


def confusion_figure(counts: np.ndarray, classes: Sequence[str], *, in_percent: bool = False) -> str:
    """The confusion matrix; a cell is shaded by its share of the actual class.

    Args:
        counts: (K, K), actual classes down, predicted classes across.
        classes: K class names. Up to 30 are written out with the counts; more become an image of at most 400 x 400
            cells, in which neighbouring classes are summed.
        in_percent: write shares of the actual class instead of counts, and leave out what rounds to 0: for pixels, of
            which there are too many for numbers in cells, and some in nearly every cell.

    Returns:
        SVG text, below 1 MB whatever K is.
    """
    has_text = len(classes) <= MAX_CLASSES_WITH_TEXT
    side = 300 + 13 * len(classes) if has_text else 520
    title = f"Confusion matrix of {len(classes)} classes"
    least = 0.005 if in_percent else 0.0

    def draw(axes: Axes) -> None:
        if has_text:
            shares = _row_shares(counts)
            _draw_cells(axes, shares, np.rint(100 * shares).astype(int) if in_percent else counts, classes, least)
        else:
            _draw_raster(axes, counts, classes, least)
        axes.grid(visible=False)
        axes.spines[:].set_visible(True)
        axes.xaxis.set_label_position("top")
        axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
        axes.set(xlabel="Predicted class", ylabel="Actual class", aspect="equal")

    return render_svg(draw, name="confusion", title=title, size=(side, side))


def _draw_cells(axes: Axes, shares: np.ndarray, numbers: np.ndarray, classes: Sequence[str], least: float) -> None:
    from matplotlib.patches import Rectangle

    number_size = 10.5 if len(classes) <= 15 else 7.5
    for (row, column), share in np.ndenumerate(shares):
        if share > least:
            opacity = 0.12 + 0.88 * share
            cell = Rectangle((column - 0.5, row - 0.5), 1, 1, color=COLORS["grpo_rm"], alpha=opacity, linewidth=0)
            axes.add_patch(cell)
            ink = PAGE if share > 0.65 else INK
            style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": number_size, "color": ink}
            axes.text(column, row, str(numbers[row, column]), **style)
    names = [short_name(name) for name in classes]
    is_upright = max(map(len, names)) > 3
    axes.set_xticks(range(len(names)), names, rotation=90 if is_upright else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))


def _draw_raster(axes: Axes, counts: np.ndarray, classes: Sequence[str], least: float) -> None:
    block = math.ceil(len(classes) / MAX_RASTER_CELLS)
    starts = np.arange(0, len(classes), block)
    shares = _row_shares(np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1))
    red, green, blue = (int(COLORS["grpo_rm"][i : i + 2], 16) / 255 for i in (1, 3, 5))
    image = np.full((*shares.shape, 4), (red, green, blue, 0.0))
    # The square root keeps a single confusion visible beside a diagonal near 1.
    image[..., 3] = np.where(shares > least, 0.15 + 0.85 * np.sqrt(shares), 0)
    axes.imshow(image, interpolation="none", extent=(-0.5, len(classes) - 0.5, len(classes) - 0.5, -0.5))


def _row_shares(counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), dtype=np.float64)


def _points(rows: Sequence[Mapping[str, Any]], column: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """The (epoch, value) points of a column; rows without a finite value are left out."""
    pairs = [(float(row["epoch"]), scale * float(row[column])) for row in rows if row.get(column) not in (None, "")]
    return [(epoch, value) for epoch, value in pairs if math.isfinite(value)]


def _label_with_ece(model: str, ece: float | None) -> str:
    name = MODEL_NAMES.get(model, model).removesuffix(" (control)")
    return name if ece is None else f"{name}, ECE {ece:.3f}"


def legend_above(axes: Axes) -> None:
    """Put a legend above the axes, where there is more than one thing to tell apart."""
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderpad=0.2, handlelength=2.2)


def short_name(name: str, limit: int = 16) -> str:
    """Return a class name as a figure has room for it."""
    printable = "".join(c for c in " ".join(name.split()) if c.isprintable())
    half = limit // 2  # the middle goes: names of one family differ at the end
    return printable if len(printable) <= limit else f"{printable[: half - 1]}…{printable[-half:]}"
