"""SVG text from matplotlib, fit to be inlined in a page of light and dark theme.

The same input gives the same bytes. Colours are CSS custom properties with a fixed fallback: a figure follows the theme
of the page around it and still has colours as a file of its own.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SVG_NAMESPACE = "http://www.w3.org/2000/svg"

INK, MUTED, RULE, PAGE = "#1f2328", "#656d77", "#d8dee4", "#fffffe"
COLORS = {"pretrain": "#78828d", "cross_entropy": "#c2560c", "grpo_rm": "#0b6acb"}
OTHER_COLOR = "#8250de"  # a further model, such as the champion
THEME = {
    INK: "currentColor",
    MUTED: f"var(--muted, {MUTED})",
    RULE: f"var(--rule, {RULE})",
    PAGE: f"var(--page, {PAGE})",
    COLORS["pretrain"]: f"var(--pretrain, {COLORS['pretrain']})",
    COLORS["cross_entropy"]: f"var(--cross-entropy, {COLORS['cross_entropy']})",
    COLORS["grpo_rm"]: f"var(--grpo-rm, {COLORS['grpo_rm']})",
    OTHER_COLOR: f"var(--other, {OTHER_COLOR})",
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the font of the page
    "text.parse_math": False,  # a class may be called "$x$"
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.0,
}


def render_svg(draw: Callable[[Axes], None], *, name: str, title: str, size: tuple[int, int]) -> str:
    """Draw on one pair of axes, without pyplot's global state, and return the cleaned SVG text.

    Args:
        draw: draws on the axes it is given.
        name: identifies the figure; two figures of one page need two names.
        title: said to screen readers.
        size: width and height in points.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # "default" first: a matplotlibrc of the user must not change the bytes.
    with matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has its own fonts
        figure: Figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _clean_svg(buffer.getvalue(), name=name, title=title)


def _clean_svg(text: str, *, name: str, title: str) -> str:
    """Make matplotlib's SVG fit to be inlined beside others: themed, without metadata, ids that are its own."""
    ET.register_namespace("", SVG_NAMESPACE)
    root = ET.fromstring(text)
    for parent in [root, *root]:
        for child in list(parent):
            if child.tag in (
                f"{{{SVG_NAMESPACE}}}metadata",
                f"{{{SVG_NAMESPACE}}}style",
            ):  # a <style> would leak into the page
                parent.remove(child)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name).lower()
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    for element in root.iter():
        _clean_attributes(element, prefix, used)
    root.attrib.update({"role": "img", "aria-label": title, "stroke-linejoin": "round"})
    return re.sub(r">\s+<", "><", ET.tostring(root, encoding="unicode"))


def _clean_attributes(element: ET.Element, prefix: str, used: set[str]) -> None:
    identifier = element.attrib.pop("id", None)
    if identifier in used:
        element.set("id", f"{prefix}-{identifier}")
    link = element.attrib.pop("{http://www.w3.org/1999/xlink}href", None)
    if link is not None:
        element.set("href", f"#{prefix}-{link[1:]}" if link.startswith("#") else re.sub(r"\s", "", link))
    if "clip-path" in element.attrib:
        element.set("clip-path", element.get("clip-path", "").replace("url(#", f"url(#{prefix}-"))
    if "d" in element.attrib:
        element.set("d", re.sub(r"(\.\d\d)\d+|\s*\n", lambda match: match[1] or " ", element.get("d", "")).strip())
    if style := element.get("style"):
        style = re.sub(r"font-family: [^;]*", "font-family: system-ui, sans-serif", style)
        element.set("style", re.sub(r"#[0-9a-f]{6}\b", lambda match: THEME.get(match[0], match[0]), style))
