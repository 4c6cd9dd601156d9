"""What the validate stage says: the table, the report, the Data Docs with their pictures, and its exit code."""

import base64
import html
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from image_sets import encode, made, noise, prepare_made
from manifests import ROOT, limits, make_rows, with_values, write_prepared
from PIL import Image

from pipelines.validate import check_neighbors, main, validate
from pipelines.validation.report import build_report, format_table
from pipelines.validation.thumbnails import SIDE, read_thumbnails

if TYPE_CHECKING:
    from pipelines.validation.result import ExpectationResult

pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning")
HOSTILE = "cat/<script>alert(1)</script> &$id\n2.png"


@pytest.fixture(autouse=True, scope="module")
def outside_of_any_repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Real prepared data with blank, broken and copied images and the reports on it."""
    root = tmp_path_factory.mktemp("faulty")
    files = {
        f"{name}/{k}.png": encode(noise(10 * k + len(name), (40, 60, 3))) for name in ("a", "cat") for k in range(9)
    }
    files |= {"cat/blank.png": encode(np.full((200, 100), 255, np.uint8)), HOSTILE: files["cat/1.png"]}
    files |= {"a/broken.png": b"no image", "a/copy.png": files["a/1.png"], "cat/1 again.png": files["cat/1.png"]}
    splits = [{"2": "val", "3": "test", "y": "test"}.get(name[-5], "train") for name in sorted(files)]
    source = replace(made(files), splits=splits)
    prepare_made(source, root / "prepared")
    assert not validate(root / "prepared", root / "reports", limits())
    return root / "prepared", root / "reports"


@pytest.fixture(scope="module")
def page(faulty: tuple[Path, Path]) -> str:
    return (faulty[1] / "data_docs/index.html").read_text(encoding="utf-8")


def pictures(page: str) -> list[Image.Image]:
    encoded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


def words(page: str) -> list[str]:
    """What a person reads: of each row of the table a line."""
    text = re.sub(r"<(style|title)>.*?</\1>|<table\s+id=[^>]*content-2[^>]*>.*?</table>", "", page, flags=re.DOTALL)
    rows = (re.sub(r"<[^>]*>", " ", row) for row in re.findall(r"<tr>.*?</tr>", text, flags=re.DOTALL))
    return [" ".join(html.unescape(row).split()) for row in rows]


def test_the_data_docs_show_each_image_that_failed(page: str) -> None:
    shown = pictures(page)
    # the blank one, and each with the other one: a copy, and five that are in two splits
    assert sorted(picture.size for picture in shown) == [(SIDE // 2, SIDE)] + [(SIDE, 53)] * 2 * 6
    blank = min(shown, key=lambda picture: picture.size)
    assert np.asarray(blank).min() == 255
    assert len(re.findall(r"<div[^>]*>\s*no image\s*</div>", page)) == 1  # in place of the broken one
    assert "a/broken.png" in page


def test_the_data_docs_say_how_severe_it_is_and_how_to_fix_it(page: str, faulty: tuple[Path, Path]) -> None:
    expectations = json.loads((faulty[1] / "validation.json").read_text(encoding="utf-8"))["expectations"]
    order = sorted(expectations, key=lambda entry: (entry["success"], entry["severity"]))
    starts = [
        f"✔ {entry['severity']} {entry['description']} where it fails: {entry['fix']}"
        if entry["success"]
        else f"✘ {entry['severity']} {entry['description']} fix: {entry['fix']}"
        for entry in order
    ]

    rows = [row for row in words(page) if row.startswith(("✔", "✘"))]

    assert [row[: len(start)] for row, start in zip(rows, starts, strict=True)] == starts
    assert rows[0].endswith(" 1 of 23 (4.35 %)")  # one image cannot be decoded
    assert rows[-1].endswith(" 0 of 6")  # in six classes and splits


def test_the_data_docs_need_no_network(page: str) -> None:
    assert not re.findall(r"https?://|<script|<link|@import", page)
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}


def test_names_of_files_are_text_in_the_data_docs(page: str) -> None:
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;$id" in page


def test_the_data_docs_hold_nothing_of_an_earlier_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_prepared(tmp_path / "good", make_rows())
    (tmp_path / "reports/data_docs").mkdir(parents=True)
    (tmp_path / "reports/data_docs/stale.html").write_text("left by an earlier run")
    for _ in range(2):
        assert validate(tmp_path / "good", tmp_path / "reports", limits())
    assert [path.name for path in (tmp_path / "reports/data_docs").iterdir()] == ["index.html"]
    assert not caplog.records  # an error in rendering is logged, and no more


def test_the_report_is_the_same_bytes_wherever_it_is_written(
    faulty: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared, reports = faulty

    assert validate(prepared, tmp_path, limits(), report_only=True)  # goes on, and reports all the same

    report = (reports / "validation.json").read_bytes()
    assert (tmp_path / "validation.json").read_bytes() == report
    assert str(prepared.parent).encode() not in report
    found = json.loads(report)
    assert (found["success"], found["previous_data"]) == (False, None)
    failed = {entry["column"]: entry for entry in found["expectations"] if not entry["success"]}
    assert {name: entry["severity"] for name, entry in failed.items()} == {
        "decode_error": "critical", "same_image_in_other_split": "critical", "copy_of": "warning",
        "largest_std": "warning",
    }  # fmt: skip
    assert found["statistics"] == {
        "rows": 23, "evaluated": len(found["expectations"]), "failed_critical": 2, "failed_warning": 2,
    }  # fmt: skip
    assert failed["copy_of"]["samples"] == [{"id": "cat/1.png", "value": "cat/1 again.png"}]
    output = capsys.readouterr().out
    assert "alert(1)</script> &$id\\n2.png" in output
    assert "&$id\n" not in output
    assert "Not compared with earlier data (drift, classes, splits_kept): git has no history here (" in output


DATASET = {"name": "shapes", "source": "folder:data/raw/shapes"}
RESULT = {
    "table": "images",
    "name": "expect_named_values_to_be_null",
    "column": "copy_of",
    "description": "no image is there twice",
    "fix": "delete one",
    "severity": "warning",
    "success": False,
    "element_count": 120,
    "unexpected_count": 1,
    "observed": "",
    "samples": [("b.png", "a.png")],
}


def result(**changes: object) -> "ExpectationResult":
    from pipelines.validation.result import ExpectationResult

    return ExpectationResult(**{**RESULT, **changes})


def test_the_table_names_what_failed_where_and_how_to_fix_it() -> None:
    results = [result(), result(success=True, description="all fine"), result(severity="critical", unexpected_count=12)]

    table = format_table(results, DATASET, num_rows=120)

    assert (
        table.splitlines()[0] == "Validated 120 images of shapes (folder:data/raw/shapes): 2 of 3 expectations failed."
    )
    assert re.search(
        r"critical +12 of 120 +10 %  no image is there twice\n +b.png: copy_of = a.png\n +10 of 12, all of them", table
    )
    assert re.search(
        r"warning +1 of 120 +0\.833 %  no image is there twice\n +b.png: copy_of = a.png\n +fix: delete", table
    )
    assert table.index("critical") < table.index("warning ")
    assert "all fine" not in table


def test_the_table_stays_on_its_lines_and_obeys_no_file_name() -> None:
    samples = [(f"t{k}\n\x1b[2J", "broken\n\tdata-stream-" + "x" * 400) for k in range(100)]

    table = format_table([result(samples=samples, unexpected_count=1007)], DATASET, num_rows=2000)

    assert "t9\\n\\x1b[2J: copy_of = broken\\n\\tdata-stream-xxx" in table
    assert "t10" not in table
    assert "10 of 1,007, 100 of them in validation.json" in table
    assert "\x1b" not in table
    assert max(map(len, table.splitlines())) < 170


def test_a_percentage_is_told_of_images_alone() -> None:
    distance = result(table="channel_drift", observed="PSI of x 0.3, at most 0.2", unexpected_count=0, samples=[])
    shares = result(observed="PSI of class 3, at most 1", unexpected_count=0, samples=[("cat", "2 % before, 9 % now")])
    left_out = result(table="left_out", unexpected_count=30, element_count=30, samples=[("a.txt", "no image")])

    table = " ".join(format_table([distance, shares, left_out], DATASET, num_rows=9).split())

    assert table.count("%") == 2  # of the class's shares
    assert "warning no image is there twice PSI of x 0.3, at most 0.2 fix:" in table
    assert "warning no image is there twice PSI of class 3, at most 1 cat: 2 % before, 9 % now fix:" in table
    assert (
        "warning 30 no image is there twice a.txt: copy_of = no image 10 of 30, all of them in validation.json fix:"
        in table
    )


def test_a_warning_alone_is_a_success() -> None:
    report = build_report([result()], num_rows=12, previous_data="abc.dir")

    assert report["success"] is True
    assert report["statistics"] == {"rows": 12, "evaluated": 1, "failed_critical": 0, "failed_warning": 1}
    assert report["previous_data"] == "abc.dir"
    assert report["expectations"] == [
        {**RESULT, "unexpected_percent": 0.8333, "samples": [{"id": "b.png", "value": "a.png"}]}
    ]


def test_thumbnails_of_images_that_are_not_there_are_left_out(faulty: tuple[Path, Path], tmp_path: Path) -> None:
    found = read_thumbnails(faulty[0], ["a/1.png", "a/broken.png", "unknown", "a/1.png"])

    assert list(found) == ["a/1.png"]
    assert read_thumbnails(faulty[0], []) == {}
    assert read_thumbnails(tmp_path, ["a/1.png"]) == {}


@pytest.mark.parametrize("name", ["manifest.parquet", "dataset.json", "left_out.parquet"])
def test_missing_data_says_which_stage_writes_it(name: str, tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "prepared", make_rows())
    (prepared / name).unlink()

    with pytest.raises(FileNotFoundError, match=rf"{name} not found.*run `dvc repro prepare` first"):
        validate(prepared, tmp_path / "reports", limits())


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with params.yaml and prepared data that has a leak."""
    write_prepared(tmp_path / "data/prepared", with_values(["t0", "e2"], sha256="same"))
    params = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("source: digits ", "source: folder:pets ")
    (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    return tmp_path


def test_the_command_stops_the_pipeline(workspace: Path) -> None:
    command = [sys.executable, "-m", "pipelines.validate"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=120)

    assert done.returncode == 1
    assert "t0: same_image_in_other_split = e2" in done.stdout
    assert "Details: reports/data_docs/index.html" in done.stdout
    assert done.stderr.startswith("error: the data failed critical expectations")
    assert len(done.stderr.splitlines()) == 1
    assert json.loads((workspace / "reports/validation.json").read_text())["success"] is False


def test_report_only_tells_and_goes_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
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


def test_data_of_another_source_are_not_validated(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["validate", "--report-only"])
    with pytest.raises(ValueError, match=r"was made from folder:pets, but data\.source is digits: run `dvc repro prep"):
        main()


def test_what_was_validated_and_what_holds_is_one_line() -> None:
    (line,) = format_table([result(success=True)], {"name": "digits", "source": "digits"}, num_rows=9).splitlines()
    assert line == "Validated 9 images of digits: all 1 expectations hold."
