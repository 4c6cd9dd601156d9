"""The costs of confusions, from a CSV file that a person fills in (ours)."""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from grpo_rm.rewards import nearest


def read_cost_matrix(path: Path, classes: Sequence[str]) -> Tensor:
    """Read what it costs to predict one class where another is true.

    The first line names the predicted classes; its first cell may hold anything. Each other line has the true class in
    its first cell and then the costs. Rows and columns may be in any order, but all have to be there.

    Args:
        path: CSV with commas, UTF-8, with or without a byte order mark.
        classes: The names of the K outputs, in their order.

    Returns:
        (K, K) float32 costs, a row per true class, a column per predicted one, in the order of `classes`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no such table. The message says where it is not.
    """
    header, rows = _read(path)
    columns = header[1:]
    _check_names(path, "column", columns, classes)
    _check_names(path, "row", [cells[0] for _, cells in rows], classes)
    index_of = {name: index for index, name in enumerate(classes)}
    costs = torch.empty(len(classes), len(classes))
    for line, (true, *cells) in rows:
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}, line {line}: {len(cells)} costs in the row of {true!r}, expected {len(columns)}, one a column"
            )
        row = [0.0] * len(classes)
        for name, cell in zip(columns, cells, strict=True):
            row[index_of[name]] = _number(cell, f"{path}, line {line}: the cost of {name!r} where {true!r} is true")
        costs[index_of[true]] = torch.tensor(row)
    return costs


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and the other lines with their numbers, without empty ones."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else f"not found in {Path.cwd()}"
        raise FileNotFoundError(f"cost matrix {path} {found}, expected a CSV file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8: {error}") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines or len(lines[0][1]) < 2:
        raise ValueError(f"{path} has no header, expected a first line like: true,cat,dog (with commas)")
    return lines[0][1], lines[1:]


def _check_names(path: Path, kind: str, names: Sequence[str], classes: Sequence[str]) -> None:
    known = set(classes)
    for index, name in enumerate(names):
        if name not in known:
            raise ValueError(f"{path}: {kind} {index + 1} is of {name!r}, which is no class; {nearest(name, classes)}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: {twice!r} has more than one {kind}, expected one for each class")
    missing = [name for name in classes if name not in set(names)]
    if missing:
        listed = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise ValueError(f"{path}: {len(missing)} of {len(classes)} classes have no {kind}: {listed}")


def _number(cell: str, what: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        raise ValueError(f"{what} is {cell!r}, expected a number") from None
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{what} is {cell}, expected a finite number")
    return number
