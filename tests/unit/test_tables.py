"""Tables as CSV files: rows need not have the same columns, as a metric may be measured in some epochs only."""

from pipelines.tables import read_csv, write_csv


def test_rows_with_other_columns(tmp_path):
    rows = [{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "loss": 0.25, "knn": 0.75}, {"epoch": 3.0, "loss": 0.125}]
    write_csv(tmp_path / "deep" / "curve.csv", rows)
    assert (tmp_path / "deep" / "curve.csv").read_text().splitlines()[:3] == [
        "epoch,loss,knn",
        "1.0,0.5,",
        "2.0,0.25,0.75",
    ]
    assert read_csv(tmp_path / "deep" / "curve.csv") == rows
