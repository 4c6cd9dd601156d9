"""Images listed in a CSV file with the columns image and label, and where there are any, split and group."""

import csv
import difflib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.file_tree import is_inside, is_regular, read_file
from pipelines.sources.source import SPLITS, LeftOut, Source, make_source

REQUIRED, OPTIONAL = ("image", "label"), ("split", "group")
COLUMNS = (*REQUIRED, *OPTIONAL)


@dataclass(frozen=True)
class _Rows:
    paths: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def open_csv(path: Path) -> Source:
    """Open a CSV file, in UTF-8, with the paths of images relative to its folder.

    A file that is missing counts as an image that cannot be read, so that it is named. An image that is listed again
    has the id PATH#2, so that two labels for one image come to light.

    Raises:
        FileNotFoundError: No row is an image.
        ValueError: A column or a value is missing, or not what is expected; with its line.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file, expected a CSV file with the columns {', '.join(REQUIRED)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows, has_groups = _read_rows(path, file)
    except UnicodeDecodeError as error:
        line = _first_broken_line(path)
        raise ValueError(f"{path}, line {line}: this is no UTF-8 text ({error.reason}); save it as UTF-8") from error
    if not rows.ids:
        left = f"; {len(rows.left_out):,} are left out, the first: {rows.left_out[0].reason}" if rows.left_out else ""
        raise FileNotFoundError(f"{path} lists no images{left}")
    classes = _sort_classes(set(rows.labels))
    indices = {name: index for index, name in enumerate(classes)}
    home = os.path.realpath(path.parent)
    return make_source(
        path.stem,
        classes,
        rows.ids,
        labels=np.fromiter((indices[label] for label in rows.labels), np.int64, len(rows.ids)),
        splits=rows.splits,
        groups=rows.groups if has_groups else None,
        read=lambda k: _read_inside(home, rows.paths[k]),
        left_out=rows.left_out,
    )


def _read_rows(path: Path, lines: Iterator[str]) -> tuple[_Rows, bool]:
    """Return the rows, and whether they have groups."""
    reader = csv.reader(lines, strict=True)
    header = [name.strip() for name in next(_lines(path, reader), [])]
    _check_header(path, header)
    places = {name: header.index(name) for name in COLUMNS if name in header}
    rows, seen = _Rows(), Counter[str]()
    for cells in _lines(path, reader):
        if not any(map(str.strip, cells)):
            continue  # an empty line, such as the last one
        if len(cells) != len(header):
            got = f"{len(cells)} values, expected {len(header)}: {', '.join(header)}; quote what has a comma"
            raise ValueError(f"{path}, line {reader.line_num}: {got}")
        values = {name: cells[place].strip() for name, place in places.items()}
        _check_values(f"{path}, line {reader.line_num}", values)
        _add(rows, values, seen, line=reader.line_num)
    return rows, "group" in places


def _lines(path: Path, reader: Any) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        expected = "expected rows with commas, and quotes in pairs"
        raise ValueError(f"{path}, line {reader.line_num}: this is no CSV: {error}; {expected}") from error


def _first_broken_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return number  # cut within a character


def _check_header(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise ValueError(
            f"{path} has no column {' and no '.join(missing)}; its first line has {', '.join(header) or 'nothing'}, "
            f"expected {', '.join(REQUIRED)} and, where there are any, {', '.join(OPTIONAL)}, with commas between"
        )
    for name in header:
        if name in COLUMNS:
            if header.count(name) > 1:
                raise ValueError(f"{path} has the column {name} twice, expected it once")
        elif near := difflib.get_close_matches(name.lower(), set(COLUMNS) - set(header), n=1, cutoff=0.8):
            raise ValueError(f"{path} has a column {name!r}; did you mean {near[0]!r}? Rename it, or remove it")


def _check_values(place: str, values: dict[str, str]) -> None:
    for name in REQUIRED:
        if not values[name]:
            raise ValueError(f"{place}: there is no {name}, expected one in each row")
    if values.get("split", SPLITS[0]) not in SPLITS:
        raise ValueError(
            f"{place}: the split is {values['split']!r}, expected {', '.join(SPLITS)} in each row. Rename it, or "
            "remove the column: splits are made then"
        )


def _add(rows: _Rows, values: dict[str, str], seen: Counter[str], *, line: int) -> None:
    path = posixpath.normpath(values["image"])
    if path.startswith(("/", "../")) or path in ("..", ".") or "\0" in path:
        reason = f"line {line}: a path that is absolute or leaves the folder of the CSV file: copy the file into it"
        rows.left_out.append(LeftOut(values["image"], reason))
        return
    seen[path] += 1
    rows.paths.append(path)
    rows.ids.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    rows.labels.append(values["label"])
    rows.splits.append(next((split for split in SPLITS if split == values.get("split")), None))
    rows.groups.append(values.get("group", ""))


def _sort_classes(labels: set[str]) -> list[str]:
    """Sort names; numbers by their value."""
    are_numbers = all(re.fullmatch(r"-?\d{1,18}", label, re.ASCII) for label in labels)
    return sorted(labels, key=lambda label: (int(label), label)) if are_numbers else sorted(labels)


def _read_inside(home: str, path: str) -> bytes:
    real = os.path.realpath(f"{home}/{path}")
    if not is_inside(real, home):
        raise OSError("it is a link out of the folder of the CSV file: copy the file")
    if not is_regular(real):
        raise OSError("it is no file")
    return read_file(real)
