"""Accuracy over strength in small figures, one per corruption."""

import re
from typing import Any

from pipelines.reporting.robustness_plots import robustness_panels


def rows(accuracies: list[float]) -> list[dict[str, Any]]:
    return [{"strength": i + 1, "noise": value, "blur": 1.0} for i, value in enumerate(accuracies)]


ROBUSTNESS = {"pretrain": rows([0.9, 0.5, 0.2]), "cross_entropy": rows([0.9, 0.6, 0.4]), "grpo_rm": rows([1, 1, 1])}


def line_heights(svg: str, color: str) -> list[float]:
    """The y of the points of the line that has this color; y grows downwards."""
    match = re.search(rf'<path d="([^"]*)"[^>]*style="[^"]*stroke: var\(--{color}, ', svg)
    assert match
    return [float(y) for y in re.findall(r"[ML] \S+ (\S+)", match[1])]


def test_one_panel_per_corruption_in_the_order_of_the_columns() -> None:
    assert [panel.title for panel in robustness_panels(ROBUSTNESS)] == ["Noise", "Blur"]
    assert robustness_panels({}) == []


def test_lines_show_the_accuracies_of_their_model() -> None:
    svg = robustness_panels(ROBUSTNESS)[0].svg
    pretrain, control, candidate = (line_heights(svg, color) for color in ("pretrain", "cross-entropy", "grpo-rm"))
    assert pretrain[0] < pretrain[1] < pretrain[2]
    assert control[0] == pretrain[0] and control[1] < pretrain[1]
    assert candidate[0] == candidate[1] == candidate[2] < control[0]


def test_all_panels_have_one_scale() -> None:
    noise, blur = (line_heights(panel.svg, "grpo-rm") for panel in robustness_panels(ROBUSTNESS))
    assert noise == blur


def test_the_same_input_gives_the_same_bytes() -> None:
    assert robustness_panels(ROBUSTNESS) == robustness_panels(ROBUSTNESS)
