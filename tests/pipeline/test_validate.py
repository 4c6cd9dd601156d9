"""The validate stage: each fault provoked, in manifests like those of the prepare stage."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pytest
from manifests import (
    CLASSES,
    limits,
    make_mask_rows,
    make_rows,
    to_left_out,
    to_manifest,
    with_broken,
    with_values,
)

from grpo_rm.config import Expectations
from pipelines.validation.class_counts import class_changes, class_table

if TYPE_CHECKING:
    from pipelines.validation.result import ExpectationResult

# Great Expectations imports modules that Python deprecates. It is imported where it is used, as collecting the tests
# should not take seconds.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning")


def check(
    manifest: pa.Table, docs: Path, expected: Expectations, left_out: Mapping[str, str] | None = None, **fields: object
) -> "list[ExpectationResult]":
    from pipelines.validation.expectations.checks import validate_manifest

    task = "segmentation" if "mask_error" in manifest.column_names else "classification"
    return validate_manifest(
        manifest,
        {"task": task, "name": "pets", "source": "folder:pets", "classes": CLASSES, **fields},
        expected,
        left_out=to_left_out(left_out or {}),
        previous=None,
        docs_directory=docs,
        read_thumbnails=lambda _: {},
    )


def failures(rows: pd.DataFrame, docs: Path, **changes: Mapping[str, Any]) -> "dict[str, ExpectationResult]":
    return {result.column: result for result in check(to_manifest(rows), docs, limits(**changes)) if not result.success}


# The severity of each expectation in params.yaml, and the only rows of which it may complain: id and observed value.
PLANTED: dict[str, tuple[str, list[tuple[str, object]]]] = {
    "id": ("critical", [("c-t0", "c-t0"), ("c-t0", "c-t0")]),
    "split": ("critical", [("b-t3", "dev")]),
    "label": ("critical", [("a-t1", 2), ("a-v3", -1)]),
    "decode_error": ("critical", [("d-e1", "truncated")]),
    "other_format": ("warning", [("k-v2.jpg", "PNG")]),
    "same_image_in_other_split": ("critical", [("g-t0", "g-e2"), ("g-e2", "g-t0")]),
    "near_duplicate_in_other_split": ("warning", [("l-t0", "l-v2"), ("l-v2", "l-t0")]),
    "group_in_other_split": ("critical", [(f"m-{name}", "patient 1: train, val") for name in ("t0", "t2", "v0")]),
    "copy_of": ("warning", [("h-t1", "h-t0"), ("i-v2", "i-v0")]),  # one with two labels is there twice as well
    "same_image_with_other_label": ("critical", [("h-t0", "h-t1 (dog)"), ("h-t1", "h-t0 (cat)")]),
    "near_duplicate_with_other_label": ("warning", [("p-t2", "p-t3 (dog)"), ("p-t3", "p-t2 (cat)")]),
    "shorter_side": ("warning", [("e-e1", 7.0)]),
    "longer_side": ("warning", [("f-e2", 10001.0)]),
    "aspect_ratio": ("warning", [("n-e3", 6.25)]),
    "largest_std": ("warning", [("j-v1", 0.0)]),
    "reason": ("warning", [("notes.txt", "no image")]),
    "images": ("critical", []),
    "times_rarer": ("warning", []),
    "change": ("warning", [("dog", "not named in the parameters"), ("fox", "not in the data")]),
}


def make_faulty_rows() -> pd.DataFrame:
    """Sets of the twelve images, each with faults of its own: the rows of PLANTED."""
    sets = {
        "a": with_values(["v3"], with_values(["t1"], label=2), label=-1),
        "b": with_values(["t3"], split="dev"),
        "c": with_values(["t2"], id="t0"),
        "d": with_broken(["e1"], with_values(["e1", "t1"], sha256="same", near_duplicate_of="t1")),  # is no leak
        "e": with_values(["e1"], height=7),
        "f": with_values(["e2"], height=10_001, width=10_000),
        "g": with_values(["t0", "e2"], sha256="same"),
        "h": with_values(["t0", "t1"], sha256="same"),
        "i": with_values(["v0", "v2"], sha256="same"),
        "j": with_values(["v1"], std_r=0, std_g=0, std_b=0),
        "k": with_values(["v2"], with_values(["v1"], id="v1.PNG"), id="v2.jpg"),
        "l": with_values(["v2"], near_duplicate_of="l-t0"),
        "m": with_values(["t0", "t2", "v0"], group="patient 1"),
        "n": with_values(["e3"], width=50, height=8),
        "p": with_values(["t2"], with_values(["t3"], near_duplicate_of="p-t2"), group="of one split"),
        "o": with_values(["t0"], std_r=0, std_g=0),  # has a channel with contrast
    }
    sets["h"].loc[sets["h"]["id"] == "t1", "near_duplicate_of"] = "h-t0"
    sets["g"].loc[sets["g"]["id"] == "e2", "near_duplicate_of"] = "g-t0"  # a copy is told of as a copy alone
    for name, rows in sets.items():
        rows["id"] = name + "-" + rows["id"]
        rows["sha256"] = name + rows["sha256"]
    return pd.concat(sets.values(), ignore_index=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, ExpectationResult]":
    docs = tmp_path_factory.mktemp("docs")
    expected = limits(classes={"names": ["cat", "fox"]})
    found = check(to_manifest(make_faulty_rows()), docs, expected, {"notes.txt": "no image"})
    return {result.column: result for result in found if result.table != "schema"}


@pytest.mark.parametrize("column", PLANTED)
def test_each_expectation_names_the_images_with_its_fault_and_no_others(
    column: str, results: "dict[str, ExpectationResult]"
) -> None:
    severity, samples = PLANTED[column]

    result = results[column]

    assert result.severity == severity
    assert result.samples == samples
    assert result.unexpected_count == len(samples)
    assert result.success == (not samples)


def test_every_expectation_of_a_classification_is_provoked(results: "dict[str, ExpectationResult]") -> None:
    assert set(results) == set(PLANTED)


def test_good_data_meets_every_expectation(tmp_path: Path) -> None:
    assert failures(make_rows(), tmp_path, classes={"names": CLASSES}) == {}


def test_masks(tmp_path: Path) -> None:
    rows = with_values(["t0", "e1"], make_mask_rows(), mask_error="not as large as its image", void_share=float("nan"))
    rows = with_broken(["v1"], with_values(["v0"], rows, void_share=0.75))
    rows["mask_counts"] = [
        None if row.mask_error or row.decode_error else [9, 0] if row.split == "test" else row.mask_counts
        for row in rows.itertuples()
    ]

    failed = failures(rows, tmp_path, decodable={"min_share": 0.5}, void_share={"severity": "warning"})

    assert failed["mask_error"].severity == "critical"
    assert failed["mask_error"].samples == [("t0", "not as large as its image"), ("e1", "not as large as its image")]
    assert [(name, round(share, 3)) for name, share in failed["void_share"].samples] == [("v0", 0.75)]
    assert failed["images"].samples == [("test/dog", 0)]  # no test mask shows a dog
    assert len(failed) == 3


def test_what_is_ignored_is_not_looked_at_and_any_severity_can_be_chosen(tmp_path: Path) -> None:
    names = [name for name in Expectations.model_fields if name not in ("contrast", "copies")]
    rows = make_faulty_rows()
    ignored = {name: {"severity": "ignore"} for name in names}

    found = failures(rows, tmp_path, **ignored, contrast={"severity": "critical", "min_std": 0.3})

    assert {name: result.severity for name, result in found.items()} == {
        "id": "critical", "split": "critical", "label": "critical", "copy_of": "warning", "largest_std": "critical",
    }  # fmt: skip
    assert found["largest_std"].unexpected_count == len(rows) - 1  # the broken one has none


def test_limits_of_counts_and_imbalance(tmp_path: Path) -> None:
    rows = make_rows().query("id != 't3'")  # two cats, one dog

    failed = failures(rows, tmp_path, imbalance={"max_ratio": 1.5}, class_count={"min_images": 2})

    assert failed["times_rarer"].samples == [("train/dog", 2.0)]
    assert failed["images"].samples == [("train/dog", 1)]


def test_some_broken_images_are_tolerated_where_the_parameters_say_so(tmp_path: Path) -> None:
    rows = with_broken(["t0", "e1"], with_values(["t0", "e1"], sha256="empty file"))

    assert failures(rows, tmp_path, decodable={"min_share": 10 / 12}) == {}
    assert list(failures(rows, tmp_path, decodable={"min_share": 0.9})) == ["decode_error"]


def test_an_empty_manifest_fails_for_every_class_and_split(tmp_path: Path) -> None:
    failed = failures(make_rows().iloc[:0], tmp_path)

    assert {column: result.unexpected_count for column, result in failed.items()} == {"images": 6}


def test_a_wrong_schema_is_reported_alone(tmp_path: Path) -> None:
    manifest = to_manifest(with_values(["t1"], mode=None)).drop_columns(["sha256"])
    label = manifest["label"].cast(pa.float64())
    manifest = manifest.set_column(manifest.column_names.index("label"), "label", label)

    (result,) = check(manifest, tmp_path, limits())

    assert (result.table, result.severity, result.success) == ("schema", "critical", False)
    assert result.samples == [
        ("label", "float64, expected int64"),
        ("mode", "1 rows without a value"),
        ("sha256", "missing, expected str"),
    ]


def test_no_more_than_a_hundred_samples_are_kept(tmp_path: Path) -> None:
    ids = [f"{number:03d}" for number in range(120)]
    rows = pd.concat([make_rows()] * 10, ignore_index=True).assign(id=ids, split="train")

    failed = failures(with_values(ids[:107], rows, std_r=0, std_g=0, std_b=0), tmp_path)["largest_std"]

    assert [sample_id for sample_id, _ in failed.samples] == ids[:100]
    assert failed.unexpected_count == 107


def test_counts_of_classes_by_hand() -> None:
    rows = make_rows().query("id not in ['t3', 'v0', 'v2']")
    counts = class_table(to_manifest(rows), CLASSES).set_index("id")

    assert counts["images"].to_dict() == {
        "train/cat": 2, "train/dog": 1, "val/cat": 0, "val/dog": 2, "test/cat": 2, "test/dog": 2,
    }  # fmt: skip
    assert counts["times_rarer"].dropna().to_dict() == {"train/cat": 1.0, "train/dog": 2.0}


def test_changes_of_classes_by_hand() -> None:
    changes = class_changes(["cat", "dog"], ["dog", "fox"], gone="vanished", new="appeared")

    assert changes.to_dict("records") == [
        {"id": "cat", "change": "appeared"},
        {"id": "dog", "change": None},
        {"id": "fox", "change": "vanished"},
    ]


def test_importing_the_stage_does_not_load_great_expectations() -> None:
    code = "import sys, pipelines.validate; print(sorted({'great_expectations', 'torch'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "[]"
