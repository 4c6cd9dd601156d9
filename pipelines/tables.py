"""Small tables as CSV files, the form that DVC plots."""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows; a column that not all of them have is empty where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path, *, texts: Collection[str] = ()) -> list[dict[str, Any]]:
    """Read a table of numbers, such as a learning curve; a row lacks what is empty.

    Args:
        path: Of the file.
        texts: Columns that are no numbers.
    """
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: value if name in texts else float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
