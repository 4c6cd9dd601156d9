"""What the page says of the gate, the champion, further seeds and the runs."""

import re
from html import unescape
from typing import Any

import numpy as np
import pytest

from pipelines.reporting.page import render_page

HOSTILE = "<img src=x onerror=alert(1)>"


def interval(low: float, high: float, p: float) -> dict[str, Any]:
    sides = {"difference": (low + high) / 2, "low": low, "high": high}
    return sides | {"confidence": 0.95, "num_samples": 400, "p_value": p, "p_corrected": p}


def registration(**more: Any) -> dict[str, Any]:
    clauses = [
        {"name": "accuracy", "has_passed": True, "reason": "accuracy 0.9863, expected at least 0.9"},
        {"name": "control.nll", "has_passed": False, "reason": f"nll {HOSTILE}"},
    ]
    return {
        "name": "grpo-rm-pets",
        "version": "3",
        "promotion": "champion stays version 1, because the gate failed",
        "gate": {"has_passed": False, "clauses": clauses},
        "comparison": {"control": {}, "champion": {}},
        "champion": None,
    } | more


def render(**more: Any) -> str:
    models = {name: {"accuracy": 0.9, "nll": 0.3} for name in ("pretrain", "cross_entropy", "grpo_rm")}
    base: dict[str, Any] = {
        "evaluation": {
            "models": models,
            "comparison": {"accuracy": interval(0.001, 0.03, 0.2), "nll": interval(-0.05, -0.01, 0.001)},
        },
        "histories": {},
        "reliability": {},
        "dataset": {"name": "pets", "source": "pets", "classes": ["cat"], "counts": {"test": {"cat": 400}}},
        "confusion": np.array([[400]]),
        "lineage": {"seed": "0"},
    }
    return render_page(**base | more)


def words(html: str) -> str:
    return " ".join(unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL)).split())


def row(html: str, metric: str) -> str:
    found = re.search(rf'<tr data-metric="{metric}">.*?</tr>', html, re.DOTALL)
    assert found
    return words(found[0])


def test_the_verdict_of_the_gate_stands_at_the_top_and_every_clause_below() -> None:
    html = render(registration=registration())
    text = words(html)
    assert "gate failed Version 3 of grpo-rm-pets : champion stays version 1, because the gate failed." in text
    assert "accuracy ✓ passed accuracy 0.9863, expected at least 0.9" in text
    assert f"control.nll ✗ failed nll {HOSTILE}" in text and HOSTILE not in html
    passed = registration(gate={"has_passed": True, "clauses": []})
    assert "✓ gate passed" in words(render(registration=passed))
    assert "gate" not in words(render())


def test_what_the_gate_compares_is_corrected_over_that_alone_and_marked() -> None:
    assert "no difference shown" in row(render(registration=registration()), "accuracy")
    declared = {"control": {"accuracy": interval(0.001, 0.03, 0.01)}, "champion": {}}
    html = render(registration=registration(comparison=declared))
    assert "Accuracy * " in row(html, "accuracy") and "▲ better" in row(html, "accuracy")
    assert "*" not in row(html, "nll")
    assert "over the 1 that the gate compares" in words(html)


def test_a_metric_that_only_the_gate_compares_is_in_the_headline() -> None:
    declared = {"control": {"robustness/accuracy": interval(0.01, 0.03, 0.01)}, "champion": {}}
    html = render(registration=registration(comparison=declared))
    headline = re.search(r"<h1>.*?</h1>", html, re.DOTALL)
    assert headline and "accuracy on corrupted images (+1.00 to +3.00 points)" in words(headline[0])


def test_the_champion_has_a_column_with_what_was_measured() -> None:
    html = render(registration=registration(champion={"version": "1", "metrics": {"accuracy": 0.8125}}))
    assert "Champion" in words(html) and "The champion is version 1" in words(html)
    assert "81.25" in row(html, "accuracy") and "–" in row(html, "nll")
    assert "Champion" not in words(render(registration=registration()))


def test_seeds_are_told() -> None:
    spread = {
        "accuracy": {"mean": 0.01, "standard_deviation": 0.004, "num_seeds": 3},
        "nll": {"mean": -0.02, "standard_deviation": 0.0123, "num_seeds": 3},
    }
    plain = render()
    evaluation = {"models": {"grpo_rm": {"accuracy": 0.9, "nll": 0.3}}, "seed_spread": spread}
    evaluation["comparison"] = {"accuracy": interval(0.001, 0.03, 0.2), "nll": interval(-0.05, -0.01, 0.001)}
    html = render(evaluation=evaluation)
    assert "over images and 3 seeds of fine-tuning" in words(html) and "seeds" not in words(plain)
    assert "sd of seeds 0.40 points" in row(html, "accuracy") and "sd of seeds 0.0123" in row(html, "nll")


def test_runs_are_links() -> None:
    address = "http://127.0.0.1:5000/#/experiments/1/runs/2"
    assert f'<a class="nowrap" href="{address}">evaluate</a>' in render(links={"evaluate": address})
    assert "In MLflow" not in render()


@pytest.mark.parametrize("width", [None, "with uncommitted changes"])
def test_the_commit_is_checked_out_only_where_it_has_all(width: str | None) -> None:
    commit = "0f3c9b1d2e4a5f60718293a4b5c6d7e8f9012345"
    shown = commit if width is None else f"{commit} {width}"
    assert (f"git checkout {commit}" in render(lineage={"commit": shown})) == (width is None)
