"""From journals to MLflow: every point, tag and artifact once.

A point that is sent again after a crash is the same point: MLflow's SQL store ignores one whose key, time, step and
value it has. Artifacts sent again replace themselves.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.tracking.journal import Journal, lock_journal, pending_journals
from pipelines.tracking.store import check_tracking, reason, store_name, use_tracking_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000  # the most points that MLflow takes at once
ARTIFACT_BYTES_PER_SECOND = 1_000_000  # the slowest upload that is waited for
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


def upload_pending() -> None:
    """Send what earlier runs could not send to this tracking store, and end those whose process died as KILLED.

    Costs nothing where nothing waits. Runs that are alive are left alone. Raises nothing: what cannot be sent now is
    sent on the next contact.
    """
    for path in pending_journals():
        journal = lock_journal(path)
        if journal is None:
            continue
        with journal:
            if journal.store is None:
                journal.remove()  # its process died before it had written anything
            if journal.store != store_name():
                continue
            try:
                check_tracking()
                _complete(use_tracking_store(), journal)
            except Exception as error:  # whatever the store raises: the stage that called has work of its own
                _warn(f"run {journal.run_id} still waits in {path.parent}: {reason(error)}")
                if isinstance(error, ConnectionError):
                    return


def send(client: "MlflowClient", journal: Journal) -> None:
    """Send the metrics and tags of a journal that were not sent yet."""
    from mlflow.entities import Metric, RunTag

    while batch := journal.unsent(BATCH):
        for start in range(0, len(batch.points), BATCH):
            client.log_batch(journal.run_id, [Metric(*point) for point in batch.points[start : start + BATCH]])
        if batch.tags:
            client.log_batch(journal.run_id, tags=[RunTag(key, value) for key, value in batch.tags.items()])
        journal.mark_sent(batch)


def send_artifacts(client: "MlflowClient", run_id: str, path: Path, folder: str | None = None) -> None:
    """Send a file, or what is in a directory, to a folder of the run."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    with _patience(sum(file.stat().st_size for file in files)):
        (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), folder)


def send_kept_artifacts(client: "MlflowClient", journal: Journal) -> None:
    """Send the artifacts that were kept beside the journal when the run ended."""
    if journal.end and journal.artifacts.is_dir():  # without an end, they may be incomplete
        send_artifacts(client, journal.run_id, journal.artifacts)


def has_run(client: "MlflowClient", run_id: str) -> bool:
    """Whether the store has the run, and nobody has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _complete(client: "MlflowClient", journal: Journal) -> None:
    """Send the rest of a run whose process is gone, end the run, and remove the journal."""
    if not has_run(client, journal.run_id):
        _warn(f"{store_name()} has no run {journal.run_id} ({journal.name}) any more; what it had not sent is dropped")
    else:
        send(client, journal)
        send_kept_artifacts(client, journal)
        if journal.end:
            client.set_terminated(journal.run_id, *journal.end)
        elif client.get_run(journal.run_id).info.status == "RUNNING":
            client.set_terminated(journal.run_id, "KILLED", journal.last_time)
        print(f"tracking: run {journal.run_id} ({journal.name}) is complete now", file=sys.stderr, flush=True)
    journal.remove()


@contextlib.contextmanager
def _patience(size: int) -> Iterator[None]:
    """Wait longer for the answer to a large upload: the server stores a file before it answers."""
    usual = os.environ[TIMEOUT]
    os.environ[TIMEOUT] = str(int(usual) + size // ARTIFACT_BYTES_PER_SECOND)
    try:
        yield
    finally:
        os.environ[TIMEOUT] = usual


def _warn(message: str) -> None:
    print(f"warning: tracking: {message}", file=sys.stderr, flush=True)
