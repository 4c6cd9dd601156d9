"""Write `reports/index.html`: one page that needs no network and says whether GRPO-RM helped, and why."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.reporting import figures
from pipelines.reporting.class_bars import class_panels
from pipelines.reporting.embedding_map import SIDE, Point, class_colors
from pipelines.reporting.examples import Example
from pipelines.reporting.metric_table import Verdict, compare_metrics, in_order, metric_of, metric_table, natural
from pipelines.reporting.neighbors import Neighborhood
from pipelines.reporting.robustness_plots import robustness_panels
from pipelines.reporting.segmentations import DenseContent
from pipelines.reporting.svg import SVG_NAMESPACE

TEMPLATE = "page.html.j2"
MAX_CLASS_ROWS = 30
MAX_CONFUSIONS = 8
WORDS = ("better", "worse", "no difference shown")  # of `describe`
MAX_VERDICTS = 6
DENSE_VERDICTS = ("miou", "boundary_f1", "pixel_accuracy", "nll")
NAMED_VERDICTS = ("accuracy", "knn", "linear_probe_top1", "nll")


def write_page(path: Path | str, **content: Any) -> None:
    """Write the page atomically: an interrupted run leaves the earlier page as it was.

    Args:
        path: usually `reports/index.html`; its folder is made.
        content: the arguments of `render_page`.
    """
    path = Path(path)
    html = render_page(**content)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(html, encoding="utf-8", newline="\n")
    partial.replace(path)


def render_page(
    *,
    evaluation: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    dataset: Mapping[str, Any],
    reliability: Mapping[str, Sequence[Mapping[str, Any]]],
    confusion: np.ndarray,
    lineage: Mapping[str, str],
    robustness: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    mistakes: Sequence[Example] = (),
    confused: Mapping[tuple[str, str], Sequence[Example]] | None = None,
    embedding_map: Mapping[str, Sequence[Point]] | None = None,
    neighborhoods: Sequence[Neighborhood] = (),
    validation: Mapping[str, Any] | None = None,
    registration: Mapping[str, Any] | None = None,
    links: Mapping[str, str] | None = None,
    dense: DenseContent | None = None,
) -> str:
    """Return the page as HTML; the same arguments give the same text.

    Args:
        evaluation: the content of `reports/evaluation.json`: `models`, `validation` and `comparison`.
        histories: model name to the rows of its learning curve; GRPO statistics are shown where they are.
        dataset: the content of `data/prepared/dataset.json`.
        reliability: model name to the rows of `pipelines.dvc_plots.reliability_rows`.
        confusion: (K, K) counts of the GRPO-RM model, actual classes down, in the order of `dataset["classes"]`; of
            images, or of pixels in segmentation.
        lineage: what the page was made from, in the order to be shown: commit, data hash, versions, hardware, seed...
        robustness: model name to the rows of `grpo_rm.evaluation.robustness.robustness_rows`; None: not measured.
        mistakes: images that the GRPO-RM model got wrong, the worst first.
        confused: images of the largest confusions, by actual and predicted class.
        embedding_map: model name to the points of `map_points`.
        neighborhoods: test images with their nearest training images, by model.
        validation: the content of `reports/validation.json`; None: the page says that the data were not validated.
        registration: the content of `reports/registration.json`; None: the page says nothing of a gate.
        links: addresses in MLflow, of the runs by stage and of the registered version.
        dense: what segmentation alone has; None: the page is of classification.

    Raises:
        ValueError: the confusion matrix does not fit the classes.
    """
    classes, registration = dataset["classes"], registration or {}
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(
            f"got a confusion matrix of shape {confusion.shape}, expected K x K for {len(classes)} classes"
        )
    champion = registration.get("champion")
    models = evaluation["models"] | ({"champion": champion["metrics"]} if champion else {})
    declared = registration.get("comparison", {}).get("control", {})
    verdicts = compare_metrics(evaluation.get("comparison", {}) | declared)
    arms = {name: rows for name, rows in reliability.items() if name != "pretrain"}
    context = {
        "dataset": dataset,
        "set_sizes": {f"Test set {name}": each["images"] for name, each in evaluation.get("extra_sets", {}).items()},
        "registration": registration,
        "declared": declared,
        "num_compared": len(verdicts),
        "models": {name: figures.MODEL_NAMES.get(name, name) for name in in_order(models)},
        "groups": metric_table(models, verdicts, evaluation.get("validation")),
        "learning": figures.learning_panels(histories),
        "statistics": figures.statistics_panels(histories),
        "reliability": figures.reliability_panels(arms, models),
        "robustness": robustness_panels(robustness or {}),
        "confusion_svg": figures.confusion_figure(confusion, classes, in_percent=bool(dense)),
        "confusions": largest_confusions(confusion, classes, by_share=bool(dense)),
        "confused": confused or {},
        "mistakes": mistakes,
        "embedding_map": embedding_map or {},
        "neighborhoods": neighborhoods,
        "dense": dense,
        "class_panels": class_panels(dense.class_rows if dense else {}),
        "validation": validation,
        "failed": failed_expectations(validation or {}),
        "map_side": SIDE,
        "colors": class_colors(len(classes)),
        "classes": classes,
        "num_classes": len(classes),
        "num_errors": int(confusion.sum() - np.trace(confusion)),
        "num_images": int(confusion.sum()),
        "counts": class_counts(dataset, dense.num_images if dense else None),
        "lineage": lineage,
        "links": links or {},
        "commit": next((c for c in [lineage.get("commit", "")] if re.fullmatch(r"[0-9a-f]{7,64}", c)), None),
    }
    return str(_template().render(context | headline(evaluation, verdicts, declared)))


def headline(
    evaluation: Mapping[str, Any], verdicts: Mapping[str, Verdict], declared: Collection[str]
) -> dict[str, Any]:
    """Return what the top of the page says: the verdict in one sentence, what else was found, and by which means.

    Args:
        evaluation: the content of `reports/evaluation.json`.
        verdicts: of the arms, by metric.
        declared: the metrics that the gate compares.
    """
    comparison, seed_spread = evaluation.get("comparison", {}), evaluation.get("seed_spread", {})
    over_pretrained = compare_metrics(evaluation.get("over_pretrained", {}))
    main = _main_metrics(verdicts, declared)
    return {
        "sentence": group_by_word([verdicts[key] for key in main]),
        "verdicts": [verdicts[key] for key in main],
        "others": group_by_word([verdict for key, verdict in verdicts.items() if key not in main], WORDS[:2]),
        "num_none": sum(verdict.word == WORDS[2] for verdict in verdicts.values()),
        "before": group_by_word([over_pretrained[key] for key in main if key in over_pretrained]),
        "interval": next((value for value in comparison.values() if "confidence" in value), None),
        "mcnemar": comparison.get("mcnemar"),
        "spread": seed_texts(seed_spread),
        "num_seeds": max((value["num_seeds"] for value in seed_spread.values()), default=0),
    }


def group_by_word(verdicts: Sequence[Verdict], words: Sequence[str] = WORDS) -> list[tuple[str, list[Verdict]]]:
    """Group verdicts: better first, then worse, then no difference shown; empty groups left out."""
    groups = [(word, [verdict for verdict in verdicts if verdict.word == word]) for word in words]
    return [(word, members) for word, members in groups if members]


def largest_confusions(counts: np.ndarray, classes: Sequence[str], *, by_share: bool = False) -> list[dict[str, Any]]:
    """Return the largest off-diagonal cells of a confusion matrix (K, K), the largest first, ties in class order.

    They are the largest by their count, or by their share of the actual class.
    """
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    sizes = errors / np.maximum(counts.sum(axis=1, keepdims=True), 1) if by_share else errors
    order = np.argsort(-sizes, axis=None, kind="stable")[:MAX_CONFUSIONS]
    cells = [divmod(int(flat), len(classes)) for flat in order if errors.flat[flat] > 0]
    return [
        {
            "actual": classes[a],
            "predicted": classes[p],
            "count": int(errors[a, p]),
            "share": errors[a, p] / counts[a].sum(),
        }
        for a, p in cells
    ]


def failed_expectations(validation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what the data failed, critical expectations first, each in the order of `validation.json`."""
    failed = [expectation for expectation in validation.get("expectations", ()) if not expectation["success"]]
    return sorted(failed, key=lambda expectation: expectation["severity"] != "critical")


def class_counts(dataset: Mapping[str, Any], num_images: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Lay out the images per split and class; of many classes the rarest in the first split are listed.

    Args:
        dataset: the content of `dataset.json`.
        num_images: by split; None: each image is of one class, so they are the sum over the classes.
    """
    splits, classes = list(dataset["counts"]), dataset["classes"]
    rows = [(name, [dataset["counts"][split].get(name, 0) for split in splits]) for name in classes]
    totals = [num_images[split] if num_images else sum(row[1][i] for row in rows) for i, split in enumerate(splits)]
    first = sorted(row[1][0] for row in rows)
    listed = rows if len(rows) <= MAX_CLASS_ROWS else sorted(rows, key=lambda row: row[1][0])[:MAX_CLASS_ROWS]
    spread = {"least": first[0], "median": float(np.median(first)), "most": first[-1]}
    return {"splits": splits, "rows": listed, "totals": totals, "spread": spread, "num_hidden": len(rows) - len(listed)}


def seed_texts(spread: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return by metric what the table says of the difference over training seeds."""
    texts = {}
    for key, value in spread.items():
        scale, unit, digits = (100, " points", 2) if metric_of(key).is_share else (1, "", 4)
        texts[key] = f"sd of seeds {scale * value['standard_deviation']:.{digits}f}{unit}"
    return texts


def _main_metrics(verdicts: Mapping[str, Verdict], declared: Collection[str]) -> list[str]:
    """The metrics of the headline: what the gate compares, then those usual of the task; of several k-NN the one with
    most neighbors.
    """
    named = DENSE_VERDICTS if "miou" in verdicts else NAMED_VERDICTS
    largest_knn = max((key for key in verdicts if key.startswith("knn_")), key=natural, default="")
    keys = [*declared, *(largest_knn if key == "knn" else key for key in named)]
    return [key for key in dict.fromkeys(keys) if key in verdicts][:MAX_VERDICTS]


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    loader = FileSystemLoader(Path(__file__).parent)
    # autoescape: class names and file names are the user's, and a page is opened in a browser.
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = lambda text: Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))
    # Only SVG of our own passes unescaped; its text was escaped when it was written.
    environment.filters["inline_svg"] = lambda svg: Markup(svg.replace(f' xmlns="{SVG_NAMESPACE}"', ""))
    return environment.get_template(TEMPLATE)
