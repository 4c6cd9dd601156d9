"""What is expected of the prepared data, checked by Great Expectations. The only module that imports it.

Three tables are validated, each with its own suite and its own page in the Data Docs:

- `schema`: the manifest as it was read. If this fails, the other two are not looked at: they need these columns;
- `images`: the manifest, plus columns that say which other image has the same bytes;
- `classes`: one row per split and class, with its number of decodable images.

Everything is built from code at each run, in a context that lives in memory: no file can drift from this one.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.data_context import EphemeralDataContext
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.expectations.row_conditions import Column

from pipelines.manifest import COLUMNS, add_twins, count_classes
from pipelines.sources import SPLITS

CRITICAL, WARNING = FailureSeverity.CRITICAL, FailureSeverity.WARNING
MAX_SAMPLES = 5
# COMPLETE, because only then do the Data Docs name the images beside the values.
RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "unexpected_index_column_names": ["id"],
    "return_unexpected_index_query": False,
}


@dataclass(frozen=True)
class ExpectationResult:
    """The outcome of one expectation on one table.

    Attributes:
        table: `schema`, `images` or `classes`.
        name: Great Expectations' name of the expectation.
        column: The column it looks at.
        description: What is expected, in words.
        fix: What to do where it fails, in words.
        severity: `critical` (stops the pipeline) or `warning`.
        success: Whether it holds. It may hold with unexpected rows, where a share of them is tolerated.
        element_count: Rows looked at.
        unexpected_count: Rows that are not as expected.
        samples: Up to five unexpected rows: the `id` and the observed value of `column`. Just one, with "every row" for
            its id, where the column as a whole is not as expected.
    """

    table: str
    name: str
    column: str
    description: str
    fix: str
    severity: str
    success: bool
    element_count: int
    unexpected_count: int
    samples: list[tuple[str, Any]]

    @property
    def unexpected_percent(self) -> float:
        """Unexpected rows in percent of the rows looked at; 0 where there are none to look at."""
        return round(100.0 * self.unexpected_count / self.element_count, 4) if self.element_count else 0.0


def schema_expectations(present: list[str]) -> list[Expectation]:
    """Every column of the manifest's contract, with its type and, for text, a value in every row.

    Args:
        present: The columns that the manifest has. An absent one gets an expectation that is sure to fail,
            as Great Expectations cannot look up the type of a column that is not there.
    """
    fix = "the manifest was not written by this version of the prepare stage: run `dvc repro --force prepare`."
    expected: list[Expectation] = []
    for column, kind in COLUMNS.items():
        words: dict[str, Any] = {"column": column, "severity": CRITICAL, "notes": fix}
        there = f"the manifest has a column `{column}` of type {kind}"
        if column not in present:
            expected.append(gxe.ExpectColumnToExist(**words, description=there))
            continue
        expected.append(gxe.ExpectColumnValuesToBeOfType(**words, type_=kind, description=there))
        if kind == "str":
            expected.append(gxe.ExpectColumnValuesToNotBeNull(**words, description=f"`{column}` is never null"))
    return expected


def image_expectations(num_classes: int, *, min_decodable: float) -> list[Expectation]:
    """What is expected of each image, by the columns of the manifest and of `manifest.add_twins`."""
    decodable = Column("decode_error") == ""
    return [
        gxe.ExpectColumnValuesToBeUnique(
            column="id",
            severity=CRITICAL,
            description="every image has an id of its own",
            notes="two images share a name: rename one of them in the source.",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="split",
            value_set=list(SPLITS),
            severity=CRITICAL,
            description="every image is in the split train, val or test",
            notes="rename the split, or move its images into train, val or test.",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="label",
            min_value=0,
            max_value=num_classes - 1,
            severity=CRITICAL,
            description=f"every label is the index of one of the {num_classes} classes, 0 to {num_classes - 1}",
            notes="correct the labels in the source (-1 is a label that names no class).",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="decode_error",
            value_set=[""],
            mostly=min_decodable,
            severity=CRITICAL,
            description=f"of all images, {100 * min_decodable:g} % or more can be decoded",
            notes="replace or delete the broken files in the source, or lower data.min_decodable.",
        ),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=side,
                min_value=1,
                row_condition=decodable,
                severity=CRITICAL,
                description=f"every image that can be decoded has a {side} of at least one pixel",
                notes="replace or delete the empty images in the source.",
            )
            for side in ("width", "height")
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="same_image_in_other_split",
            severity=CRITICAL,
            description="no image is in two splits: a test image that was trained on proves nothing",
            notes="keep each image in one split only: delete its copies from the others (as a rule from train).",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="same_image_with_other_label",
            severity=CRITICAL,
            description="no image has two labels",
            notes="decide which label is right and delete the copies that have the other one.",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="copy_of",
            severity=WARNING,
            description="no image is there twice in a split",
            notes="delete the copies, unless these images are meant to count more than once.",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="largest_std",
            min_value=0,
            strict_min=True,
            severity=WARNING,
            description="no image is of one constant color",
            notes="look at these images; delete them from the source if they are blank by mistake.",
        ),
    ]


def class_expectations(*, max_imbalance: float) -> list[Expectation]:
    """What is expected of each class in each split, by the columns of `manifest.count_classes`."""
    return [
        gxe.ExpectColumnValuesToBeBetween(
            column="images",
            min_value=1,
            severity=CRITICAL,
            description="every class has at least one decodable image in every split",
            notes="add images of the class (three or more, so that each split gets one), or remove the class.",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="times_rarer",
            max_value=max_imbalance,
            severity=WARNING,
            description=f"in train, the largest class has at most {max_imbalance:g} times the images of any other",
            notes="add images of the rare classes, and read the macro F1 rather than the accuracy.",
        ),
    ]


def validate_manifest(
    manifest: pd.DataFrame,
    classes: list[str],
    *,
    docs_directory: Path,
    min_decodable: float = 1.0,
    max_imbalance: float = 100.0,
) -> list[ExpectationResult]:
    """Check the manifest against all expectations and write the Data Docs.

    Args:
        manifest: One row per image found, as the prepare stage writes it.
        classes: The names of the classes; label k is `classes[k]`.
        docs_directory: Where the Data Docs go (index.html); what was there is deleted.
        min_decodable: Share of the images, in [0, 1], that must be decodable.
        max_imbalance: Images of the largest class over those of the smallest one in train, above which to warn.

    Returns:
        One result per expectation, column by column; only those of `schema` if one of these fails.
    """
    context = _open_context(docs_directory)
    # Text as Python objects, so that the type of every value is looked at, whatever pandas' own text type is.
    manifest = manifest.astype({c: object for c in manifest if COLUMNS.get(c) == "str"}).reset_index(drop=True)
    results = _run_suite(context, "schema", manifest, schema_expectations(list(manifest)))
    if all(result.success for result in results):
        images = image_expectations(len(classes), min_decodable=min_decodable)
        results += _run_suite(context, "images", add_twins(manifest), images)
        counts = class_expectations(max_imbalance=max_imbalance)
        results += _run_suite(context, "classes", count_classes(manifest, classes), counts)
    context.build_data_docs()
    return results


def _open_context(docs_directory: Path) -> EphemeralDataContext:
    """A context in memory, without progress bars, whose one Data Docs site is the given directory, now empty."""
    shutil.rmtree(docs_directory, ignore_errors=True)
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(docs_directory.resolve()),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        data_docs_sites={"data_docs": site},
        progress_bars=ProgressBarsConfig(globally=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _run_suite(
    context: EphemeralDataContext, table: str, rows: pd.DataFrame, expectations: list[Expectation]
) -> list[ExpectationResult]:
    """Validate one table; the results are in the order of the columns as the expectations name them first."""
    source = context.data_sources.add_pandas(table)
    batch = source.add_dataframe_asset("manifest").add_batch_definition_whole_dataframe("all_rows")
    suite = context.suites.add(gx.ExpectationSuite(name=table, expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=table, data=batch, suite=suite))
    validation = definition.run(batch_parameters={"dataframe": rows}, result_format=RESULT_FORMAT)
    return [_to_result(table, len(rows), outcome.to_json_dict()) for outcome in validation.results]


def _to_result(table: str, num_rows: int, outcome: dict[str, Any]) -> ExpectationResult:
    """Translate one outcome; an expectation on a whole column counts every row, or none."""
    config, found, success = outcome["expectation_config"], outcome["result"], outcome["success"]
    if outcome["exception_info"].get("raised_exception") is not False:
        raise RuntimeError(f"Great Expectations could not evaluate {config}: {outcome['exception_info']}")
    column = config["kwargs"]["column"]
    if "unexpected_count" in found:
        samples = [(str(row["id"]), row[column]) for row in found["partial_unexpected_index_list"]]
    else:
        samples = [] if success else [("every row", found.get("observed_value", "missing"))]
    return ExpectationResult(
        table=table,
        name=config["type"],
        column=column,
        description=config["description"],
        fix=config["notes"],
        severity=config["severity"],
        success=success,
        element_count=found.get("element_count", num_rows),
        unexpected_count=found.get("unexpected_count", 0 if success else num_rows),
        samples=samples[:MAX_SAMPLES],
    )
