"""Tables against their expectations, and the Data Docs on the outcome."""

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.data_context import EphemeralDataContext
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.expectations.expectation import Expectation

from grpo_rm.config import Expectations
from pipelines.validation.class_counts import class_changes, class_table, find_renamed
from pipelines.validation.drift import channel_table, label_table
from pipelines.validation.expectations import comparisons, suites
from pipelines.validation.expectations.page import render_page
from pipelines.validation.expectations.samples import OTHER_IMAGE, OTHER_LABEL, Shown, shown
from pipelines.validation.manifest import image_table, schema_table
from pipelines.validation.previous_data import PreviousData
from pipelines.validation.report import MAX_NAMED, MAX_SAMPLES, make_title
from pipelines.validation.result import ExpectationResult

# The rows themselves, a few of them: the list of all indices that a fuller format makes takes minutes for a million.
RESULT_FORMAT = {
    "result_format": "BASIC",
    "include_unexpected_rows": True,
    "partial_unexpected_count": MAX_SAMPLES,
    "return_unexpected_index_query": False,
}
Table = tuple[str, pd.DataFrame, list[Expectation]]  # name, rows, what is expected of them


def validate_manifest(
    manifest: pa.Table,
    dataset: Mapping[str, Any],
    limits: Expectations,
    *,
    left_out: pa.Table,
    previous: PreviousData | None,
    docs_directory: Path,
    read_thumbnails: Callable[[Sequence[str]], Mapping[str, str]],
    comparison: str = "",
) -> list[ExpectationResult]:
    """Check the prepared data against all expectations and write the Data Docs.

    Args:
        manifest: One row per image found, as the prepare stage writes it.
        dataset: `dataset.json`.
        limits: `data.expectations`.
        left_out: Files of the source that are none of its images: `id`, `reason`.
        previous: The version of the data to compare with, or None.
        docs_directory: Where the Data Docs go (index.html, with everything in it); what was there is deleted.
        read_thumbnails: Gives pictures (data: URIs) of images by their ids, of those that it has.
        comparison: What they were compared with, in words.

    Returns:
        One result per expectation, table by table; only those of `schema` if one of these fails.
    """
    context = _open_context()
    is_segmentation = dataset["task"] == "segmentation"
    schema = schema_table(manifest, is_segmentation=is_segmentation)
    outcomes = {"schema": _run_suite(context, "schema", schema, suites.schema_expectations())}
    if all(outcome.success for outcome in outcomes["schema"]):
        for name, *table in _tables(manifest, dataset, limits, left_out, previous):
            outcomes[name] = _run_suite(context, name, *table)
    results = [_to_result(table, outcome.to_json_dict()) for table, found in outcomes.items() for outcome in found]
    labels = {} if is_segmentation else _labels(manifest, dataset["classes"], _images(results, MAX_SAMPLES))
    names = _images(results, MAX_NAMED)
    pictures = read_thumbnails(names)
    shown.set({name: Shown(pictures.get(name, ""), labels.get(name, "")) for name in names})
    shutil.rmtree(docs_directory, ignore_errors=True)
    docs_directory.mkdir(parents=True)
    title = make_title(results, dataset, num_rows=len(manifest))
    page = render_page(itertools.chain(*outcomes.values()), title=title, comparison=comparison)
    (docs_directory / "index.html").write_text(page, encoding="utf-8")
    return [_with_labels(result, labels) for result in results]


def _images(results: list[ExpectationResult], max_samples: int) -> list[str]:
    """The ids of the images in the samples, and of the images that these were found to be like."""
    found = [
        (result, sample) for result in results if result.table == "images" for sample in result.samples[:max_samples]
    ]
    others = [value for result, (_, value) in found if result.column in OTHER_IMAGE]
    return [*(name for _, (name, _) in found), *others]


def _labels(manifest: pa.Table, classes: Sequence[str], ids: list[str]) -> dict[str, str]:
    """The names of the classes of some images."""
    if not ids:
        return {}
    rows = manifest.select(["id", "label"]).filter(pc.is_in(manifest["id"], pa.array(ids, pa.string())))
    pairs = zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True)
    return {name: classes[label] if 0 <= label < len(classes) else str(label) for name, label in pairs}


def _with_labels(result: ExpectationResult, labels: Mapping[str, str]) -> ExpectationResult:
    if result.column not in OTHER_LABEL:
        return result
    return dataclasses.replace(result, samples=[(name, f"{it} ({labels[it]})") for name, it in result.samples])


def _tables(
    manifest: pa.Table,
    dataset: Mapping[str, Any],
    limits: Expectations,
    left_out: pa.Table,
    previous: PreviousData | None,
) -> Iterator[Table]:
    """The tables one after the other: that of the images is large, and gone when the next one is made."""
    classes, is_segmentation = dataset["classes"], dataset["task"] == "segmentation"
    expected = suites.image_expectations(limits, num_classes=len(classes), is_segmentation=is_segmentation)
    if previous is None:
        yield "images", image_table(manifest), expected
    else:
        expected += comparisons.split_expectations(limits)
        yield "images", image_table(manifest, previous.manifest), expected
    yield "left_out", left_out.to_pandas(), suites.left_out_expectations(limits)
    yield "classes", class_table(manifest, classes), suites.class_expectations(limits)
    changes = _class_changes(manifest, dataset, limits.classes.names, previous)
    if changes is not None:
        yield "class_names", changes, comparisons.class_name_expectations(limits)
    if previous is not None:
        labels = label_table(previous.manifest, previous.classes, manifest, classes)
        yield "label_drift", labels, comparisons.label_drift_expectations(limits)
        channels = channel_table(previous.manifest, manifest)
        yield "channel_drift", channels, comparisons.channel_drift_expectations(limits)


def _class_changes(
    manifest: pa.Table, dataset: Mapping[str, Any], names: list[str] | None, previous: PreviousData | None
) -> pd.DataFrame | None:
    classes = dataset["classes"]
    if names is not None:
        return class_changes(classes, names, gone="not in the data", new="not named in the parameters")
    if previous is not None:
        changes = class_changes(classes, previous.classes, gone="vanished", new="appeared")
        if dataset["task"] == "segmentation":  # which images show a class says little about its name
            return changes
        renamed = find_renamed(previous.manifest, previous.classes, manifest, classes)
        words = {name: f": {old} is called {new} now?" for old, new in renamed.items() for name in (old, new)}
        told = [it and it + words.get(name, "") for name, it in zip(changes["id"], changes["change"], strict=True)]
        return changes.assign(change=pd.Series(told, dtype=object))
    return None


def _open_context() -> EphemeralDataContext:
    """A context in memory, without progress bars, and without the site that it would build."""
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        data_docs_sites={},
        progress_bars=ProgressBarsConfig(globally=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _run_suite(
    context: EphemeralDataContext, table: str, rows: pd.DataFrame, expectations: list[Expectation]
) -> list[ExpectationValidationResult]:
    """Validate one table; the results are in the order of the columns as the expectations name them first."""
    if not expectations:
        return []
    source = context.data_sources.add_pandas(table)
    batch = source.add_dataframe_asset("manifest").add_batch_definition_whole_dataframe("all_rows")
    suite = context.suites.add(gx.ExpectationSuite(name=table, expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=table, data=batch, suite=suite))
    validation = definition.run(batch_parameters={"dataframe": rows}, result_format=RESULT_FORMAT)
    return list(validation.results)


def _to_result(table: str, outcome: dict[str, Any]) -> ExpectationResult:
    config, found, success = outcome["expectation_config"], outcome["result"], outcome["success"]
    if outcome["exception_info"].get("raised_exception") is not False:
        raise RuntimeError(f"Great Expectations could not evaluate {config}: {outcome['exception_info']}")
    column = config["kwargs"]["column"]
    details = found.get("details", {})
    rows = found.get("unexpected_rows") or []
    changes = [] if success else details.get("changes", [])
    return ExpectationResult(
        table=table,
        name=config["type"],
        column=column,
        description=config["description"],
        fix=config["notes"],
        severity=config["severity"],
        success=success,
        element_count=found.get("element_count", 0),
        unexpected_count=found.get("unexpected_count", 0),
        observed=details.get("words", ""),
        samples=[*((row["id"], row[column]) for row in rows), *map(tuple, changes)][:MAX_SAMPLES],
    )
