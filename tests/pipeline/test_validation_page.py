"""The Data Docs on names that would turn or break the text, and on tables that are cut."""

from pathlib import Path

import pandas as pd
import pytest
from manifests import limits, make_rows, with_values, write_prepared

from pipelines.validate import validate

pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def outside_of_any_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def odd_page(directory: Path, **changes: object) -> str:
    """The page on images and classes with names that would turn or break the text."""
    rows = with_values(["t1"], with_values(["t0"], id="t0\n\x1b[2J\u202egnp.cod"), group="a\u202eb")
    rows = with_values(["v0"], rows, group="a\u202eb")
    rows = with_values(["t2", "t3"], rows, near_duplicate_of="t0\n\x1b[2J\u202egnp.cod")
    rows = with_values(["t2", "e0"], rows, sha256="same")
    write_prepared(directory / "prepared", rows, **{"classes": ["c\u202eat", "<dog>"], **changes})
    validate(directory / "prepared", directory / "reports", limits())
    return (directory / "reports/data_docs/index.html").read_text(encoding="utf-8")


def test_names_neither_turn_nor_break_the_text_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = odd_page(tmp_path, name="pe\u202ets <b>", source="folder:a\nb")

    for text in (page, capsys.readouterr().out):
        assert "\x1b" not in text and "\u202e" not in text
        assert "Not compared with earlier data (drift, classes, splits_kept): git has no history here (" in text
    assert "t0\\n\\x1b[2J\\u202egnp.cod (c\\u202eat)" in page
    assert "a\\u202eb: train, val" in page
    assert "of pe\\u202ets &lt;b&gt; (folder:a\\nb): 3 of" in page


def test_the_page_says_where_a_table_is_cut(tmp_path: Path) -> None:
    rows = pd.concat([make_rows()] * 10, ignore_index=True)
    ids = [f"{k:03}" for k in range(len(rows))]
    rows = rows.assign(id=ids, sha256=ids, std_r=0.0, std_g=0.0, std_b=0.0)
    write_prepared(tmp_path / "prepared", rows)

    validate(tmp_path / "prepared", tmp_path / "reports", limits())

    page = (tmp_path / "reports/data_docs/index.html").read_text(encoding="utf-8")
    assert page.count("10 of 120, 100 of them in validation.json") == 1
    assert page.count("in validation.json") == 1
