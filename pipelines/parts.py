"""The finished rows of a run that is not finished: what a run that ends early leaves to the next one."""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

MAX_ROWS, MAX_SECONDS = 8192, 15.0  # a part is written when it has as many rows, or after that time
LOCK, PLAN = "lock", "plan.json"


class Parts:
    """A directory with a Parquet file for each part, called by the number of its first row. Close it.

    Attributes:
        directory: Where they are.
        done: How many rows there are.

    Raises:
        FileExistsError: The directory holds rows of another plan.
        ValueError: Another process works in it.
    """

    def __init__(self, directory: Path, plan: dict[str, Any]) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = (directory / LOCK).open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise ValueError(
                f"another process is working in {directory}: wait for it, or name another --out"
            ) from error
        self._agree(plan)
        self.done = self._count()
        self._waiting: list[pa.Table] = []
        self._written = time.monotonic()

    def add(self, rows: pa.Table) -> None:
        """Append rows. They are on disk after `flush`, or some seconds."""
        self._waiting.append(rows)
        self.done += len(rows)
        if sum(map(len, self._waiting)) >= MAX_ROWS or time.monotonic() - self._written > MAX_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            path = self.directory / f"{self.done - len(table):012d}.parquet"
            pq.write_table(table, path.with_suffix(".writing"), compression="none")
            path.with_suffix(".writing").replace(path)
        self._waiting, self._written = [], time.monotonic()

    def tables(self) -> Iterator[pa.Table]:
        """Go through the rows that are on disk, part by part."""
        for path in self._paths():
            yield pq.read_table(path)

    def close(self) -> None:
        """Let another process work here."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def remove(self) -> None:
        """Remove the directory: the rows are elsewhere now."""
        self.close()
        shutil.rmtree(self.directory)

    def _paths(self) -> list[Path]:
        return sorted(self.directory.glob("*.parquet"))

    def _agree(self, plan: dict[str, Any]) -> None:
        path = self.directory / PLAN
        if not path.is_file():
            path.with_suffix(".writing").write_text(json.dumps(plan, indent=2), encoding="utf-8")
            path.with_suffix(".writing").replace(path)
        former = json.loads(path.read_text(encoding="utf-8"))
        others = [name for name in plan if former.get(name) != plan[name]]
        if others:
            self.close()
            raise FileExistsError(
                f"{self.directory} holds the unfinished work of an earlier run with other {', '.join(others)}: go on "
                "with what that run was given, or delete the directory, or name another --out"
            )

    def _count(self) -> int:
        """Return how many rows there are, up to a gap or a part that a crash of the machine has damaged."""
        rows, is_good = 0, True
        for path in self._paths():
            try:
                is_good = is_good and int(path.stem) == rows
                rows += pq.read_metadata(path).num_rows if is_good else 0
            except (ValueError, OSError):  # ArrowInvalid is a ValueError
                is_good = False
            if not is_good:
                path.unlink()
        return rows
