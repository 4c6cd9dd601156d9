"""What a run records, on disk until MLflow has it: one journal per run, written as the run goes.

A journal has a JSON object per line: a header, metrics, tags, how far they were sent, the end of the run. Who holds its
lock may touch it: the training as long as it lives (death releases a flock), then whoever sends the rest.
"""

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from pipelines.tracking.store import mlruns

Point = tuple[str, float, int, int]  # key, value, milliseconds since 1970, step


class Batch(NamedTuple):
    """Points and tags that were not sent yet, and the offset in the journal where they end."""

    points: list[Point]
    tags: dict[str, str]
    end: int


class Journal:
    """One journal, locked. `release` leaves it to others, `remove` deletes it with the artifacts kept beside it.

    Attributes:
        run_id: Of the MLflow run.
        artifacts: Directory of the artifacts that were not sent.
        store: Name of the tracking store, without a password; None as long as there is no header.
        name: Of the run.
        end: Status and time (milliseconds since 1970) with which the run ended, or None.
        last_time: When the last metrics were recorded, in milliseconds since 1970.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self.run_id, self.artifacts = path.stem, path.with_suffix("")
        self.store: str | None = None
        self.name = ""
        self.end: tuple[str, int] | None = None
        self.last_time = 0
        self._sent = 0
        self._writing = threading.Lock()
        if not _ends_with_newline(path):
            _write(descriptor, b"\n")  # a crash cut the last line off
        for _, event in self._events(0):
            self._learn(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def begin(self, store: str, name: str) -> None:
        """Write the header."""
        self._append({"store": store, "name": name, "time": now()})

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics of a step."""
        self._append({"step": step, "time": now(), "metrics": {key: float(value) for key, value in metrics.items()}})

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Write tags of the run."""
        self._append({"tags": dict(tags)})

    def finish(self, status: str) -> None:
        """Write how the run ended."""
        self._append({"end": [status, now()]})

    def reopen(self) -> None:
        """Take back that the run ended."""
        self._append({"end": None})

    def keep_artifacts(self, artifacts: Sequence[tuple[Path, str | None]]) -> None:
        """Copy files, and what is in directories, into their folders: the outputs may change before they are sent."""
        for source, folder in artifacts:
            target = self.artifacts / (folder or "")
            target.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)

    def unsent(self, size: int) -> Batch | None:
        """Return the next events that were not sent, up to `size` points or one more event, or None."""
        batch = Batch([], {}, self._sent)
        for offset, event in self._events(self._sent):
            batch = batch._replace(end=offset)
            batch.points.extend(
                (key, value, event["time"], event["step"]) for key, value in event.get("metrics", {}).items()
            )
            batch.tags.update(event.get("tags", {}))
            if len(batch.points) >= size:
                break
        return batch if batch.points or batch.tags else None

    def mark_sent(self, batch: Batch) -> None:
        """Remember that a batch was sent."""
        self._append({"sent": batch.end})

    def release(self) -> None:
        """Give the lock up; the journal stays for the next contact."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def remove(self) -> None:
        """Delete the journal, last, and its artifacts."""
        shutil.rmtree(self.artifacts, ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self.release()

    def _append(self, event: dict[str, Any]) -> None:
        line = json.dumps(event, separators=(",", ":")) + "\n"
        with self._writing:
            _write(self._descriptor, line.encode())
            self._learn(event)

    def _learn(self, event: dict[str, Any]) -> None:
        self.store, self.name = event.get("store", self.store), event.get("name", self.name)
        self.last_time = event.get("time", self.last_time)
        self._sent = event.get("sent", self._sent)
        if "end" in event:
            self.end = tuple(event["end"]) if event["end"] else None

    def _events(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield events from an offset on, each with the offset where it ends."""
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                start += len(line)
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # cut off by a crash
                yield start, event


def pending_journals() -> list[Path]:
    """Return the journals of all runs, those of live trainings among them."""
    return sorted((mlruns() / "pending").glob("*.jsonl"))


def open_journal(run_id: str, *, patience: float = 60.0) -> Journal:
    """Lock the journal of a run, which is created where there is none.

    Raises:
        ConnectionError: Another process holds it for longer than `patience` seconds.
    """
    path = mlruns() / "pending" / f"{run_id}.jsonl"
    path.parent.mkdir(exist_ok=True)
    deadline = time.monotonic() + patience
    while (journal := lock_journal(path, flags=os.O_CREAT)) is None:
        if time.monotonic() > deadline:
            raise ConnectionError(f"run {run_id} is open in another process, which holds {path}; end that first")
        time.sleep(0.1)
    return journal


def lock_journal(path: Path, *, flags: int = 0) -> Journal | None:
    """Lock a journal, or return None where it is gone or another process holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | flags, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):  # else who had the lock removed the file
            return Journal(path, descriptor)
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read() in (b"", b"\n")


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return int(time.time() * 1000)
