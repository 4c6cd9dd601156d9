"""All rows in one tidy table, study/results.parquet: a row per trial, metrics as columns."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.lineage import ROOT
from study.protocol import Row, finished_trials
from study.tasks import STUDIED, Task
from study.workspace import is_open, trial_file, write_rows

RESULTS = ROOT / "study/results.parquet"


def collect() -> list[Row]:
    """Write the rows of all planned trials that have been run, and return them.

    Tasks that have no workspace on this machine keep the rows that the table had; the others are written anew, so what
    is not planned any more disappears.
    """
    here = [task for task in STUDIED if is_open(task)]
    replaced = {name for task in here for name in (task.name, task.shifted)}
    kept = [row for row in read_results() if row["task"] not in replaced]
    rows = kept + [row for task in here for arm in task.arms.values() for row in finished_trials(task, arm)]
    if rows:
        write_table(rows, RESULTS)
    return rows


def restore(task: Task) -> None:
    """Write the file of each trial that the table has and this machine has not: it is not run again.

    Its answers are gone, so a comparison with it is made only where it is known already.
    """
    of_trial: dict[str, list[Row]] = {}
    for row in read_results():
        if row["task"] in (task.name, task.shifted):
            of_trial.setdefault(row["key"], []).append(row)
    for key, rows in of_trial.items():
        if not trial_file(task.name, key).is_file():
            write_rows(task.name, key, rows)


def read_results() -> list[Row]:
    """Return the rows of the table; none where there is none. A row lacks what is empty."""
    return read_table(RESULTS) if RESULTS.is_file() else []


def write_table(rows: Sequence[Row], path: Any) -> None:
    """Write rows; a column that not all of them have is empty where it is missing."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), path, compression="zstd")


def read_table(path: Any) -> list[Row]:
    """Return the rows of a table, each without what is empty."""
    return [
        {name: value for name, value in row.items() if value is not None} for row in pq.read_table(path).to_pylist()
    ]
