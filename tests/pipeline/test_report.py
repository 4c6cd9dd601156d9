"""The report page and the rows behind DVC's plots, on a seeded simulation of three models."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo_rm.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    per_image_brier,
    per_image_nll,
    reliability_bins,
)
from grpo_rm.evaluation.classification import confusion_counts, f1_macro, per_image_accuracy
from grpo_rm.evaluation.comparison import paired_bootstrap
from grpo_rm.evaluation.proportions import mcnemar
from pipelines.dvc_plots import confusion_rows, reliability_rows
from pipelines.reporting import figures
from pipelines.reporting.metric_table import compare_metrics, metric_table
from pipelines.reporting.page import class_counts, largest_confusions, render_page, write_page

VOID = {"meta", "link", "br", "circle", "hr", "img"}
CLASSES = [str(digit) for digit in range(10)]
WITHOUT_CURVES: dict[str, Any] = {"histories": {}, "reliability": {}}  # fewer figures: a faster page


def simulate_logits(labels: np.ndarray, *, margin: float, scale: float, seed: int) -> np.ndarray:
    """Logits (N, K) of a model; models share a part of the noise: what is hard for one is hard for all."""
    shape = (len(labels), len(CLASSES))
    noise = np.random.default_rng(0).normal(size=shape) + 0.5 * np.random.default_rng(seed).normal(size=shape)
    noise[np.arange(len(labels)), labels] += margin
    return scale * noise


def simulate_history(num_epochs: int, *, start: float, end: float, has_statistics: bool) -> list[dict[str, Any]]:
    rng, rows = np.random.default_rng(num_epochs), []
    for epoch in range(1, num_epochs + 1):
        progress = 1 - np.exp(-3 * epoch / num_epochs)
        accuracy = start + (end - start) * progress + 0.003 * rng.normal()
        row = {
            "epoch": epoch,
            "step": 17 * epoch,
            "val_accuracy": float(accuracy),
            "val_nll": float(2.2 * (1 - accuracy)),
        }
        if has_statistics:
            row |= {"reward": 0.02 * progress, "reward_std": 0.31, "entropy": 0.4 - 0.3 * progress, "kl": 1e-4 * epoch}
            row |= {"clip_ratio/region_mean": 0.0}
        rows.append({key: float(value) if isinstance(value, np.floating) else value for key, value in row.items()})
    return rows


def interval(low: float, high: float) -> dict[str, Any]:
    return {"difference": (low + high) / 2, "low": low, "high": high, "confidence": 0.95, "num_samples": 360}


def calibration_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    scores = {"nll": per_image_nll(logits, labels), "brier": per_image_brier(logits, labels)}
    means = {name: float(values.mean()) for name, values in scores.items()}
    return means | {"ece": expected_calibration_error(logits, labels)}


def simulate_evaluation(logits: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    models: dict[str, dict[str, float]] = {}
    for index, (name, values) in enumerate(logits.items()):
        temperature = fit_temperature(values, labels)
        calibrated = calibration_metrics(values / temperature, labels)
        models[name] = {"accuracy": float(per_image_accuracy(values, labels).mean())}
        models[name] |= {"f1_macro": f1_macro(values, labels)} | calibration_metrics(values, labels)
        models[name] |= {"temperature": temperature} | {f"{key}_calibrated": value for key, value in calibrated.items()}
        models[name] |= {"knn_top1_k10_t0.07": 0.953 + 0.01 * index, "knn_top1_k20_t0.07": 0.95 + 0.0113 * index}
        models[name] |= {"linear_probe_top1": 0.961 + 0.0021 * index, "alignment": 0.41 - 0.03 * index}
        models[name] |= {"uniformity": -2.61 - 0.1 * index, "effective_rank": 21.4 + index}
    correct = {name: (values.argmax(1) == labels).astype(float) for name, values in logits.items()}
    nll = {name: per_image_nll(values, labels) for name, values in logits.items()}
    comparison: dict[str, Any] = {}
    for metric, scores in {"accuracy": correct, "nll": nll}.items():
        comparison[metric] = vars(
            paired_bootstrap(scores["grpo_rm"], scores["cross_entropy"], num_resamples=200, seed=0)
        )
    comparison["knn_top1_k10_t0.07"] = interval(-0.002, 0.022)
    comparison["knn_top1_k20_t0.07"] = interval(0.0028, 0.0222)
    comparison["linear_probe_top1"] = interval(-0.0215, -0.0028)
    comparison["mcnemar"] = vars(mcnemar(correct["grpo_rm"], correct["cross_entropy"]))
    return json.loads(json.dumps({"models": models, "comparison": comparison}))


def simulate_content() -> dict[str, Any]:
    """All arguments of `render_page`, for 360 test images of 10 classes."""
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(10), 36))
    margins = {"pretrain": (3.6, 1.0, 1), "cross_entropy": (3.9, 3.6, 2), "grpo_rm": (4.3, 1.9, 3)}
    logits = {
        name: simulate_logits(labels, margin=margin, scale=scale, seed=seed)
        for name, (margin, scale, seed) in margins.items()
    }
    evaluation = simulate_evaluation(logits, labels)
    reliability = {}
    for name, values in logits.items():
        temperature = evaluation["models"][name]["temperature"]
        bins = reliability_bins(values, labels), reliability_bins(values / temperature, labels)
        reliability[name] = reliability_rows(*bins)
    counts = {"train": [107, 109, 106, 110, 109, 109, 109, 107, 104, 108], "val": [35, 36] * 5, "test": [36] * 10}
    return {
        "evaluation": evaluation,
        "histories": {
            "pretrain": simulate_history(12, start=0.2, end=0.955, has_statistics=False),
            "cross_entropy": simulate_history(8, start=0.95, end=0.972, has_statistics=False),
            "grpo_rm": simulate_history(8, start=0.95, end=0.979, has_statistics=True),
        },
        "dataset": {
            "task": "classification",
            "name": "digits",
            "source": "digits",
            "classes": CLASSES,
            "counts": {split: dict(zip(CLASSES, numbers, strict=True)) for split, numbers in counts.items()},
            "mean": [0.3] * 3,
            "std": [0.37] * 3,
        },
        "reliability": reliability,
        "confusion": confusion_counts(logits["grpo_rm"].argmax(1), labels, 10),
        "lineage": {
            "commit": "0f3c9b1d2e4a5f60718293a4b5c6d7e8f9012345",
            "data hash": "3a1f0c9d8e7b6a5f4e3d2c1b0a998877.dir",
            "versions": "python 3.11.7, torch 2.12.1, timm 1.0.31, numpy 2.4.6",
            "hardware": "2 x Intel Xeon, no GPU",
            "seed": "0",
        },
    }


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return simulate_content()


@pytest.fixture(scope="module")
def page(content: dict[str, Any]) -> str:
    return render_page(**content)


class Page(HTMLParser):
    """Checks that tags nest, and collects the tags, the text and the <data> of every metric."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.values: dict[str, list[str | None]] = {}
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"<{tag}> has an attribute twice: {attrs}"
        self.tags.append((tag, attributes))
        if "data-metric" in attributes:
            self.metric = str(attributes["data-metric"])
        if tag == "data":
            self.values.setdefault(self.metric, []).append(attributes["value"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def test_page_is_well_formed_with_unique_ids(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page))
    assert targets <= set(ids)


def test_page_needs_no_network_and_no_script(page: str) -> None:
    assert not re.search(r"https?:|//cdn|@import|url\((?!#)", page)
    for tag, attributes in Page(page).tags:
        assert tag not in {"script", "iframe", "object", "base"}
        for key in ("src", "href"):
            assert re.match(r"#|data:", attributes.get(key) or "#"), f"<{tag} {key}> leaves the page"


def test_page_is_small_and_has_the_same_bytes_twice(page: str) -> None:
    assert render_page(**simulate_content()) == page
    assert len(page.encode()) < 500_000


def test_table_shows_the_numbers_given(page: str, content: dict[str, Any]) -> None:
    models = content["evaluation"]["models"]
    shown = {metric: [float(str(value)) for value in values] for metric, values in Page(page).values.items()}
    order = ["pretrain", "cross_entropy", "grpo_rm"]
    assert shown == {metric: [models[name][metric] for name in order] for metric in models["grpo_rm"]}
    assert f">{100 * models['grpo_rm']['accuracy']:.2f}<" in page
    assert f">{models['cross_entropy']['nll']:.4f}<" in page


def best_of(values: dict[str, float], key: str) -> list[str]:
    groups = metric_table({name: {key: value} for name, value in values.items()}, {})
    return [cell["model"] for cell in groups[0][1][0]["cells"] if cell["is_best"]]


def test_best_is_marked_in_the_right_direction() -> None:
    assert best_of({"pretrain": 0.9, "cross_entropy": 0.95, "grpo_rm": 0.97}, "accuracy") == ["grpo_rm"]
    assert best_of({"pretrain": 0.3, "cross_entropy": 0.1, "grpo_rm": 0.2}, "nll") == ["cross_entropy"]
    assert best_of({"pretrain": -2.0, "grpo_rm": -2.5}, "uniformity") == ["grpo_rm"]
    assert best_of({"pretrain": 1.0, "grpo_rm": 1.4}, "temperature") == []
    assert best_of({"cross_entropy": 0.95001, "grpo_rm": 0.95}, "accuracy") == ["cross_entropy", "grpo_rm"]
    assert best_of({"pretrain": float("nan"), "grpo_rm": 0.2}, "nll") == ["grpo_rm"]


def test_metrics_run_from_few_to_many_neighbours() -> None:
    metrics = {f"knn_top1_k{k}_t0.07": 0.9 for k in (100, 20, 9)} | {
        "alignment": 0.1,
        "accuracy": 0.9,
        "my_metric": 1.0,
    }
    groups = metric_table({"grpo_rm": metrics, "champion": {}}, {})
    keys = [row["key"] for _, rows in groups for row in rows]
    knn = ["knn_top1_k9_t0.07", "knn_top1_k20_t0.07", "knn_top1_k100_t0.07"]
    assert keys == ["accuracy", *knn, "alignment", "my_metric"]
    assert [cell["text"] for cell in groups[0][1][0]["cells"]] == ["90.00", "–"]


def headline(content: dict[str, Any], comparison: dict[str, Any]) -> str:
    evaluation = content["evaluation"] | {"comparison": comparison}
    page = render_page(**content | WITHOUT_CURVES | {"evaluation": evaluation})
    match = re.search(r"<h1>.*?</h1>", page, re.DOTALL)
    assert match is not None
    return Page(match[0]).words


def test_headline_says_what_the_intervals_show(content: dict[str, Any]) -> None:
    comparison = {
        "accuracy": interval(-0.004, 0.006),
        "nll": interval(-0.03, -0.01),
        "knn_top1_k10_t0.07": interval(-0.1, 0.1),
        "knn_top1_k20_t0.07": interval(0.0028, 0.0222),
        "linear_probe_top1": interval(-0.0215, -0.0028),
    }
    assert headline(content, comparison) == (
        "GRPO-RM is better than the cross-entropy control in k-NN (+0.28 to +2.22 points) and NLL (-0.0300 to -0.0100)"
        "; it is worse in softmax regression (-2.15 to -0.28 points)"
        "; no difference is shown in accuracy (-0.40 to +0.60 points)."
    )
    assert headline(content, {"accuracy": interval(0.0, 0.0)}) == (
        "No difference between GRPO-RM and the cross-entropy control is shown in accuracy (+0.00 to +0.00 points)."
    )


def test_lower_nll_is_better() -> None:
    interval = {"difference": -0.02, "low": -0.03, "high": -0.01, "confidence": 0.95, "num_samples": 360}
    words = {key: verdict.word for key, verdict in compare_metrics({"nll": interval, "accuracy": interval}).items()}
    assert words == {"nll": "better", "accuracy": "worse"}


def test_hostile_class_names_are_text(content: dict[str, Any]) -> None:
    hostile = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "$x_{$",
        "{{ 7 * 7 }}",
        "a&b",
        "名\x00\n猫",
    ]
    classes = [*hostile, *CLASSES[6:]]
    counts = {split: dict(zip(classes, range(10), strict=True)) for split in ("train", "val", "test")}
    dataset = content["dataset"] | {"name": hostile[0], "classes": classes, "counts": counts}
    page = Page(render_page(**content | WITHOUT_CURVES | {"dataset": dataset}))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text and "$x_{$" in page.text


def test_page_without_statistics_comparison_or_curves(content: dict[str, Any]) -> None:
    histories = {"cross_entropy": content["histories"]["cross_entropy"]}
    page = Page(render_page(**content | {"histories": histories}))
    assert "No GRPO statistics were recorded." in page.words
    evaluation = {"models": content["evaluation"]["models"]}
    page = Page(render_page(**content | WITHOUT_CURVES | {"evaluation": evaluation}))
    assert "were not compared" in page.words and "No learning curves were recorded." in page.words


def test_many_classes_stay_readable_and_small() -> None:
    num_classes = 1000
    names = [f"class {i}" for i in range(num_classes)]
    counts = np.random.default_rng(0).integers(0, 3, (num_classes, num_classes)) + 40 * np.eye(num_classes, dtype=int)
    svg = figures.confusion_figure(counts, names)
    assert len(svg) < 500_000 and "class 7" not in svg and "data:image/png;base64," in svg
    assert len(figures.confusion_figure(counts[:30, :30], names[:30])) < 500_000
    dataset = {"classes": names, "counts": {"train": {name: 1000 - i for i, name in enumerate(names)}}}
    layout = class_counts(dataset)
    assert layout["rows"][0] == ("class 999", [1]) and layout["num_hidden"] == 970 and layout["totals"] == [500500]


def test_long_class_names_keep_their_ends() -> None:
    svg = figures.confusion_figure(np.eye(2, dtype=int), ["a very long family name, 1", "a very long family name, 2"])
    assert "name, 1<" in svg and "name, 2<" in svg and "family name" not in svg


def test_largest_confusions() -> None:
    counts = np.array([[8, 2, 0], [1, 5, 4], [0, 0, 9]])
    rows = largest_confusions(counts, ["a", "b", "c"])
    assert [(row["actual"], row["predicted"], row["count"], row["share"]) for row in rows] == [
        ("b", "c", 4, 0.4),
        ("a", "b", 2, 0.2),
        ("b", "a", 1, 0.1),
    ]


def test_confusion_rows_name_the_classes() -> None:
    rows = confusion_rows(np.array([0, 1, 1]), [0, 0, 1], ["cat", "dog"])
    assert rows == [
        {"actual": "cat", "predicted": "cat"},
        {"actual": "cat", "predicted": "dog"},
        {"actual": "dog", "predicted": "dog"},
    ]
    with pytest.raises(ValueError, match="got label 2, expected a class index from 0 to 1"):
        confusion_rows([0], [2], ["cat", "dog"])
    with pytest.raises(ValueError, match="got 1 predictions for 2 labels"):
        confusion_rows([0], [1, 1], ["cat", "dog"])


def test_reliability_rows_keep_the_order_and_the_kind() -> None:
    raw = [{"confidence": 0.5, "accuracy": 0.4, "count": 5}, {"confidence": 0.9, "accuracy": 0.8, "count": 10}]
    rows = reliability_rows(raw, [{"confidence": 0.7, "accuracy": 0.7, "count": 15}])
    assert [row["kind"] for row in rows] == ["raw", "raw", "calibrated"]
    assert rows[1] == {"confidence": 0.9, "accuracy": 0.8, "count": 10, "kind": "raw"}


def test_figures_leave_the_users_matplotlib_alone(content: dict[str, Any]) -> None:
    import matplotlib

    svg = figures.confusion_figure(content["confusion"], CLASSES)
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path"}):
        assert figures.confusion_figure(content["confusion"], CLASSES) == svg
    assert dict(matplotlib.rcParams) == before


def test_the_page_is_written_atomically(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "reports" / "index.html"
    content = content | WITHOUT_CURVES
    write_page(path, **content)
    page = render_page(**content)
    assert path.read_text(encoding="utf-8") == page
    with pytest.raises(ValueError, match="expected K x K for 10 classes"):
        write_page(path, **content | {"confusion": np.zeros((3, 3), dtype=int)})
    assert path.read_text(encoding="utf-8") == page and [file.name for file in path.parent.iterdir()] == ["index.html"]
