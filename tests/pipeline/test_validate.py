"""The validate stage: each fault provoked alone, on manifests like those of the prepare stage."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from pipelines.manifest import COLUMNS, add_twins, count_classes
from pipelines.validate import build_report, check_neighbors, format_table, main, validate

if TYPE_CHECKING:
    from pipelines.expectations import ExpectationResult

# Great Expectations imports modules that Python deprecates. It is imported where it is used, as collecting the tests
# should not take seconds.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["cat", "dog"]
COPIES = 2  # images of each class in each split


def make_manifest() -> pd.DataFrame:
    """Twelve good images: t0 to t3 in train, v0 to v3 in val, e0 to e3 in test. Even ones are cats, odd ones dogs."""
    ids = [f"{letter}{k}" for letter in "tve" for k in range(len(CLASSES) * COPIES)]
    rows = {
        "id": ids,
        "split": [{"t": "train", "v": "val", "e": "test"}[image_id[0]] for image_id in ids],
        "label": [int(image_id[1]) % 2 for image_id in ids],
        "width": 8,
        "height": 8,
        "mode": "L",
        "bytes": 100,
        "sha256": [f"{k:064x}" for k in range(len(ids))],
        "perceptual_hash": "0123456789abcdef",
        "decode_error": "",
        **{name: 0.25 for name, kind in COLUMNS.items() if kind == "float32"},
    }
    return pd.DataFrame(rows).astype({name: kind for name, kind in COLUMNS.items() if kind != "str"})


def with_values(image_ids: list[str], **values: object) -> pd.DataFrame:
    manifest = make_manifest()
    for column, value in values.items():
        manifest.loc[manifest["id"].isin(image_ids), column] = value
    return manifest


def with_broken(image_ids: list[str], error: str = "truncated") -> pd.DataFrame:
    """Images as the prepare stage records them when they cannot be decoded."""
    unknown = {name: float("nan") for name, kind in COLUMNS.items() if kind == "float32"}
    return with_values(image_ids, decode_error=error, width=0, height=0, mode="", perceptual_hash="", **unknown)


def write_prepared(directory: Path, manifest: pd.DataFrame) -> Path:
    directory.mkdir(parents=True)
    manifest.to_parquet(directory / "manifest.parquet")
    (directory / "dataset.json").write_text(json.dumps({"classes": CLASSES}), encoding="utf-8")
    return directory


def failures(manifest: pd.DataFrame, docs: Path, **options: float) -> "list[ExpectationResult]":
    from pipelines.expectations import validate_manifest

    results = validate_manifest(manifest, CLASSES, docs_directory=docs, **options)
    return [result for result in results if not result.success]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Prepared data with a leak and a copy, and the reports on it."""
    manifest = with_values(["t0", "e0", "v0", "v2"], sha256="same")
    manifest.loc[manifest["id"].isin(["v0", "v2"]), "sha256"] = "twice"
    root = tmp_path_factory.mktemp("faulty")
    prepared = write_prepared(root / "prepared", manifest)
    (root / "reports/data_docs").mkdir(parents=True)
    (root / "reports/data_docs/stale.html").write_text("left by an earlier run")
    assert not validate(prepared, root / "reports")
    return prepared, root / "reports"


# What each fault is planted in, and the only rows of which its expectation may complain: the id and the observed value.
PLANTED: dict[str, tuple[str, list[tuple[str, object]]]] = {
    "id": ("critical", [("c-t0", "c-t0"), ("c-t0", "c-t0")]),
    "split": ("critical", [("b-t3", "dev")]),
    "label": ("critical", [("a-t1", 2), ("a-v3", -1)]),
    "decode_error": ("critical", [("d-e1", "truncated")]),
    "width": ("critical", [("e-e1", 0)]),
    "height": ("critical", [("f-e2", 0)]),
    "same_image_in_other_split": ("critical", [("g-t0", "g-e2"), ("g-e2", "g-t0")]),
    "same_image_with_other_label": ("critical", [("h-t0", "h-t1"), ("h-t1", "h-t0")]),
    "copy_of": ("warning", [("h-t1", "h-t0"), ("i-v2", "i-v0")]),  # one with two labels is there twice as well
    "largest_std": ("warning", [("j-v1", 0.0)]),
    "images": ("critical", []),
    "times_rarer": ("warning", []),
}


def make_faulty_manifest() -> pd.DataFrame:
    """Ten sets of the twelve images, each with faults of its own: the rows of PLANTED."""
    sets = {
        "a": with_values(["t1"], label=2),
        "b": with_values(["t3"], split="dev"),
        "c": with_values(["t1"], id="t0"),
        "d": with_broken(["e1"]),
        "e": with_values(["e1"], width=0),
        "f": with_values(["e2"], height=0),
        "g": with_values(["t0", "e2"], sha256="same"),
        "h": with_values(["t0", "t1"], sha256="same"),
        "i": with_values(["v0", "v2"], sha256="same"),
        "j": with_values(["v1"], std_r=0, std_g=0, std_b=0),
    }
    sets["a"].loc[sets["a"]["id"] == "v3", "label"] = -1
    for name, rows in sets.items():
        rows["id"] = name + "-" + rows["id"]
        rows["sha256"] = name + rows["sha256"]
    return pd.concat(sets.values(), ignore_index=True)


@pytest.fixture(scope="module")
def results_by_column(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, ExpectationResult]":
    from pipelines.expectations import validate_manifest

    docs = tmp_path_factory.mktemp("docs")
    results = validate_manifest(make_faulty_manifest(), CLASSES, docs_directory=docs)
    return {result.column: result for result in results if result.table != "schema"}


def test_good_data_passes_every_expectation_and_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = write_prepared(tmp_path / "prepared", make_manifest())

    assert validate(prepared, tmp_path / "reports")

    report = json.loads((tmp_path / "reports/validation.json").read_text())
    evaluated = report["statistics"].pop("evaluated")
    assert report["success"] is True
    assert report["statistics"] == {"rows": 12, "failed_critical": 0, "failed_warning": 0}
    assert len(report["expectations"]) == evaluated
    assert {entry["column"] for entry in report["expectations"]} >= set(COLUMNS)
    output = capsys.readouterr()
    assert f"Validated 12 images: all {evaluated} expectations hold." in output.out
    assert output.err == ""


@pytest.mark.parametrize("column", PLANTED)
def test_each_expectation_names_the_images_with_its_fault_and_no_others(
    column: str, results_by_column: "dict[str, ExpectationResult]"
) -> None:
    severity, samples = PLANTED[column]

    result = results_by_column[column]

    assert result.severity == severity
    assert result.samples == samples
    assert result.unexpected_count == len(samples)
    assert result.success == (not samples)


def test_every_expectation_of_images_and_classes_is_provoked_and_in_its_place(
    results_by_column: "dict[str, ExpectationResult]",
) -> None:
    assert list(results_by_column) == list(PLANTED)


def test_a_missing_id_is_critical(tmp_path: Path) -> None:
    (failed,) = failures(with_values(["t1"], id=None), tmp_path)

    assert (failed.table, failed.column, failed.severity, failed.unexpected_count) == ("schema", "id", "critical", 1)


def test_an_imbalance_is_a_warning_that_names_the_rare_class(tmp_path: Path) -> None:
    manifest = make_manifest().query("id != 't3'")  # two cats, one dog

    (failed,) = failures(manifest, tmp_path, max_imbalance=1.5)

    assert (failed.column, failed.severity) == ("times_rarer", "warning")
    assert failed.samples == [("train/dog", 2.0)]


@pytest.mark.parametrize(("column", "observed"), [("label", "float64"), ("sha256", "missing")])
def test_a_wrong_schema_is_reported_alone(column: str, observed: str, tmp_path: Path) -> None:
    manifest = make_manifest()
    manifest = manifest.drop(columns=column) if observed == "missing" else manifest.astype({column: observed})

    (failed,) = results = failures(manifest, tmp_path)

    assert (failed.table, failed.column, failed.severity) == ("schema", column, "critical")
    assert failed.samples == [("every row", observed)]
    assert failed.unexpected_count == failed.element_count == 12
    table = format_table(results, num_rows=12)
    assert f"every row: {column} = {observed}" in table
    assert "more" not in table


def test_some_broken_images_are_tolerated_where_the_parameters_say_so(tmp_path: Path) -> None:
    manifest = with_broken(["t0", "e1"], error="truncated")
    manifest.loc[manifest["id"].isin(["t0", "e1"]), "sha256"] = (
        "empty file"  # alike, but no leak: nothing is trained on
    )

    assert failures(manifest, tmp_path, min_decodable=10 / 12) == []
    assert [failed.column for failed in failures(manifest, tmp_path, min_decodable=0.9)] == ["decode_error"]


def test_a_class_needs_a_decodable_image_in_every_split(tmp_path: Path) -> None:
    manifest = with_broken(["e3"]).query("id not in ['v0', 'v2', 'e1']")

    (failed,) = failures(manifest, tmp_path, min_decodable=0.5)

    assert (failed.column, failed.severity) == ("images", "critical")
    assert failed.samples == [("val/cat", 0), ("test/dog", 0)]


def test_an_empty_manifest_fails_for_every_class_and_split(tmp_path: Path) -> None:
    (failed,) = failures(make_manifest().iloc[:0], tmp_path)

    assert (failed.column, failed.unexpected_count) == ("images", 6)


def test_twins_agree_with_a_search_of_all_pairs() -> None:
    manifest = pd.concat([make_manifest()] * 3, ignore_index=True)
    manifest["id"] = [f"i{k}" for k in range(len(manifest))]
    manifest["sha256"] = [str(k * k % 11) for k in range(len(manifest))]
    manifest.loc[::7, "decode_error"] = "truncated"
    rows = [row for row in manifest.to_dict("records") if row["decode_error"] == ""]

    for found in add_twins(manifest).to_dict("records"):
        same = [row for row in rows if row["sha256"] == found["sha256"] and found["decode_error"] == ""]
        earlier = [row["id"] for row in same if row["split"] == found["split"]]
        expected = {
            "copy_of": next(iter(earlier), None),
            "same_image_in_other_split": next((row["id"] for row in same if row["split"] != found["split"]), None),
            "same_image_with_other_label": next((row["id"] for row in same if row["label"] != found["label"]), None),
        }
        if expected["copy_of"] == found["id"]:
            expected["copy_of"] = None
        assert {name: None if pd.isna(found[name]) else found[name] for name in expected} == expected


def test_counts_of_classes_by_hand() -> None:
    counts = count_classes(make_manifest().query("id not in ['t3', 'v0', 'v2']"), CLASSES).set_index("id")

    assert counts["images"].to_dict() == {
        "train/cat": 2, "train/dog": 1, "val/cat": 0, "val/dog": 2, "test/cat": 2, "test/dog": 2,
    }  # fmt: skip
    assert counts["times_rarer"].dropna().to_dict() == {"train/cat": 1.0, "train/dog": 2.0}


def test_the_table_names_what_failed_where_and_how_to_fix_it(
    results_by_column: "dict[str, ExpectationResult]",
) -> None:
    table = format_table(list(results_by_column.values()), num_rows=120)

    assert "Validated 120 images: 10 of 12 expectations failed." in table
    assert re.search(r"critical +2 of 120 +1\.67 %  no image is in two splits", table)
    assert "g-t0: same_image_in_other_split = g-e2" in table
    assert re.search(r"warning +1 of 120 +0\.833 %  no image is of one constant color", table)
    assert "j-v1: largest_std = 0.0" in table
    assert table.rindex("critical  ") < table.index("warning  ")
    assert table.count("fix: ") == 10
    assert "imbalance" not in table


def test_the_table_stays_short_and_narrow(results_by_column: "dict[str, ExpectationResult]") -> None:
    samples = [(f"t{k}", "broken\ndata-stream-" + "x" * 400) for k in range(5)]
    result = replace(results_by_column["decode_error"], samples=samples, unexpected_count=1007)

    table = format_table([result], num_rows=2000)

    assert "t4: decode_error = broken data-stream-xxx" in table
    assert "and 1,002 more" in table
    assert max(map(len, table.splitlines())) < 150


def test_no_more_than_five_samples_are_kept(tmp_path: Path) -> None:
    ids = make_manifest()["id"].tolist()[:7]

    (failed,) = failures(with_values(ids, std_r=0, std_g=0, std_b=0), tmp_path)

    assert [sample_id for sample_id, _ in failed.samples] == ids[:5]
    assert failed.unexpected_count == 7


def test_the_report_is_the_same_bytes_wherever_it_is_written(faulty: tuple[Path, Path], tmp_path: Path) -> None:
    prepared, reports = faulty

    assert validate(prepared, tmp_path, report_only=True)  # goes on, and reports all the same

    report = (reports / "validation.json").read_bytes()
    assert (tmp_path / "validation.json").read_bytes() == report
    assert str(tmp_path.parent).encode() not in report
    assert json.loads(report)["success"] is False
    assert json.loads(report)["statistics"] == {
        "rows": 12, "evaluated": 34, "failed_critical": 1, "failed_warning": 1,
    }  # fmt: skip


def test_a_warning_alone_is_a_success(results_by_column: "dict[str, ExpectationResult]") -> None:
    report = build_report([results_by_column["copy_of"]], num_rows=12)

    assert report["success"] is True
    assert report["statistics"] == {"rows": 12, "evaluated": 1, "failed_critical": 0, "failed_warning": 1}


def test_the_data_docs_show_the_failures_and_nothing_of_an_earlier_run(faulty: tuple[Path, Path]) -> None:
    docs = faulty[1] / "data_docs"

    assert not (docs / "stale.html").exists()
    assert (docs / "index.html").is_file()
    pages = {page.name: page.read_text(encoding="utf-8") for page in docs.glob("validations/**/*.html")}
    assert sorted(pages) == ["classes-manifest.html", "images-manifest.html", "schema-manifest.html"]
    assert "no image is in two splits" in pages["images-manifest.html"]
    assert "2 unexpected values found" in pages["images-manifest.html"]
    assert "Failed" in pages["images-manifest.html"]
    assert "every class has at least one decodable image" in pages["classes-manifest.html"]


@pytest.mark.parametrize("name", ["manifest.parquet", "dataset.json"])
def test_missing_data_says_which_stage_writes_it(name: str, tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "prepared", make_manifest())
    (prepared / name).unlink()

    with pytest.raises(FileNotFoundError, match=rf"{name} not found.*run `dvc repro prepare` first"):
        validate(prepared, tmp_path / "reports")


def run_in(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def faulty_workspace(tmp_path: Path) -> Path:
    write_prepared(tmp_path / "data/prepared", with_values(["t0", "e2"], sha256="same"))
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return tmp_path


def test_the_command_stops_the_pipeline(faulty_workspace: Path) -> None:
    result = run_in(faulty_workspace, "-m", "pipelines.validate")

    assert result.returncode == 1
    assert "t0: same_image_in_other_split = e2" in result.stdout
    assert "Details: reports/data_docs/index.html" in result.stdout
    assert result.stderr.startswith("error: the data failed critical expectations")
    assert len(result.stderr.splitlines()) == 1
    assert json.loads((faulty_workspace / "reports/validation.json").read_text())["success"] is False


def test_report_only_tells_and_goes_on(
    faulty_workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(faulty_workspace)
    monkeypatch.setattr(sys, "argv", ["validate", "--report-only"])

    main()

    output = capsys.readouterr()
    assert "t0: same_image_in_other_split = e2" in output.out
    assert output.err == ""


def test_more_neighbors_than_training_images_are_refused_before_training(tmp_path: Path) -> None:
    counts = {"train": {"a": 4, "b": 3}, "val": {"a": 9}, "test": {"a": 9}}
    (tmp_path / "dataset.json").write_text(json.dumps({"counts": counts}), encoding="utf-8")
    check_neighbors(tmp_path, [1, 7])
    with pytest.raises(ValueError, match=r"evaluate.knn_k is \[10, 20\], expected at most 7"):
        check_neighbors(tmp_path, [10, 20])


def test_importing_the_stage_does_not_load_great_expectations(tmp_path: Path) -> None:
    code = "import sys, pipelines.validate; print(sorted({'great_expectations', 'pandas', 'torch'} & set(sys.modules)))"

    result = run_in(tmp_path, "-c", code)

    assert result.stdout.strip() == "[]", result.stderr
