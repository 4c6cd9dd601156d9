"""Runs: opened, resumed, found, and the parents of others. What stages use of this package is here.

A tracking server that does not answer stops a stage before its work begins.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from grpo_rm.config import Tracking
from pipelines.lineage import git_tags
from pipelines.tracking.dataset import VALIDATION, log_dataset
from pipelines.tracking.journal import Journal, open_journal
from pipelines.tracking.recording import Run
from pipelines.tracking.store import (
    LOCAL_UI,
    check_tracking,
    has_store,
    open_experiment,
    reason,
    server_address,
    store_name,
    use_tracking_store,
)
from pipelines.tracking.upload import has_run, send, send_kept_artifacts, upload_pending

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "LOCAL_UI",
    "Run",
    "check_tracking",
    "end_parent_run",
    "find_run",
    "flatten",
    "has_store",
    "open_experiment",
    "open_parent_run",
    "reason",
    "run_url",
    "start_run",
    "store_name",
    "upload_pending",
    "use_tracking_store",
    "version_url",
]

PARENT_RUN_VARIABLE = "GRPO_RM_PARENT_RUN_ID"

_parents: dict[str, Journal] = {}  # of the parent runs that this process has opened and not ended


@contextlib.contextmanager
def start_run(
    stage: str, tracking: Tracking, parameters: Mapping[str, Any], *, context: str, resume: str | None = None
) -> Iterator[Run]:
    """Open an MLflow run for a stage, with its parameters, the prepared data and what validation found, system metrics.

    Args:
        stage: The DVC stage, which is also the name of the run.
        tracking: Experiment and interval of the system metrics.
        parameters: Nested mapping; logged flat, with dots.
        context: What the data are used for: "training" or "evaluation".
        resume: Id of an interrupted run that goes on. Where the store has it no longer, there is a new run.

    Raises:
        ConnectionError: The tracking store cannot be used.
    """
    with _refusal():
        client = use_tracking_store()
        resumed = _reopen(client, resume, stage) if resume else None
        upload_pending()
        if resumed:
            journal, last_steps = resumed
        else:
            journal, last_steps = _create_run(client, stage, tracking, {"dvc.stage": stage, **_parent_tags()}), {}
            with _failed_if_refused(client, journal):
                _log_parameters(client, journal.run_id, parameters)
                log_dataset(client, journal.run_id, context)
    run = Run(client, journal, last_steps, system_metrics_interval=tracking.system_metrics_interval)
    if VALIDATION.is_file():
        run.log_artifacts(VALIDATION, folder="data")
    try:
        yield run
    except BaseException as error:
        run.close("KILLED" if _is_interruption(error) else "FAILED")
        raise
    run.close("FINISHED")


def open_parent_run(name: str, tracking: Tracking, tags: Mapping[str, str], parameters: Mapping[str, Any]) -> str:
    """Open a run for others to be children of, and return its id.

    The same process ends it with `end_parent_run`; if that dies before, the next contact ends the run as KILLED.
    Stages become children through the environment variable GRPO_RM_PARENT_RUN_ID.

    Raises:
        ConnectionError: The tracking store cannot be used.
    """
    with _refusal():
        client = use_tracking_store()
        upload_pending()
        journal = _create_run(client, name, tracking, tags)
        with _failed_if_refused(client, journal):
            _log_parameters(client, journal.run_id, parameters)
    _parents[journal.run_id] = journal
    return journal.run_id


def end_parent_run(run_id: str, status: str) -> None:
    """End a parent run with FINISHED, FAILED or KILLED; where the store is lost, leave that to the next contact."""
    journal = _parents.pop(run_id, None) or open_journal(run_id)
    try:
        use_tracking_store().set_terminated(run_id, status)
    except Exception as error:
        print(f"warning: the end of run {run_id} is not in MLflow yet: {reason(error)}", file=sys.stderr, flush=True)
        if journal.store is None:
            journal.begin(store_name(), run_id)
        journal.finish(status)
        journal.release()
    else:
        journal.remove()


def run_url(run_id: str) -> str:
    """Return the address of a run in the UI of the tracking server, or where `make ui` shows the local store.

    Raises:
        ConnectionError: The server does not answer, or has no such run.
    """
    address = server_address() or LOCAL_UI
    with _refusal():
        experiment = use_tracking_store().get_run(run_id).info.experiment_id
    return f"{address}/#/experiments/{experiment}/runs/{run_id}"


def version_url(name: str, version: str) -> str:
    """Return the address of a version of a registered model, as `run_url` does."""
    return f"{server_address() or LOCAL_UI}/#/models/{name}/versions/{version}"


def find_run(tag: str, value: str, experiment: str) -> str | None:
    """Return the id of the newest finished run with a tag, or None."""
    query = f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'"
    runs = use_tracking_store().search_runs([open_experiment(experiment)], query, max_results=1)
    return str(runs[0].info.run_id) if runs else None


def flatten(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        key = f"{prefix}{name}"
        flat |= flatten(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return flat


def _create_run(client: "MlflowClient", name: str, tracking: Tracking, tags: Mapping[str, str]) -> Journal:
    """Create a run, tagged with the commit too, and its journal."""
    from mlflow.tracking.context.registry import resolve_tags

    resolved = resolve_tags({**git_tags(), **tags})
    run_id = client.create_run(open_experiment(tracking.experiment), tags=resolved, run_name=name).info.run_id
    journal = open_journal(run_id)
    journal.begin(store_name(), name)
    return journal


@contextlib.contextmanager
def _failed_if_refused(client: "MlflowClient", journal: Journal) -> Iterator[None]:
    """End a new run as FAILED where the store refuses to describe it."""
    try:
        yield
    except Exception:
        journal.finish("FAILED")
        with contextlib.suppress(Exception):  # the store may be gone by now
            client.set_terminated(journal.run_id, "FAILED")
            journal.remove()
        journal.release()
        raise


def _reopen(client: "MlflowClient", run_id: str, stage: str) -> tuple[Journal, dict[str, int]] | None:
    """Send what the interrupted process had not sent, and take its run up; None where the store has no such run.

    Returns:
        The journal, and the last step of every metric.
    """
    if not has_run(client, run_id):
        return None
    journal = open_journal(run_id)
    try:
        if journal.store is None:
            journal.begin(store_name(), stage)
        send(client, journal)
        send_kept_artifacts(client, journal)
        journal.reopen()
        client.update_run(run_id, status="RUNNING")
        for key, value in _parent_tags().items():  # another flow may have taken it up
            client.set_tag(run_id, key, value)
        # MlflowClient shows the last value of a metric, and its step only here
        metrics = client.get_run(run_id).data._metric_objs
    except BaseException:
        journal.release()
        raise
    return journal, {metric.key: metric.step for metric in metrics}


def _parent_tags() -> dict[str, str]:
    parent = os.environ.get(PARENT_RUN_VARIABLE)
    return {"mlflow.parentRunId": parent} if parent else {}


def _log_parameters(client: "MlflowClient", run_id: str, parameters: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in flatten(parameters).items()])


def _is_interruption(error: BaseException) -> bool:
    return not isinstance(error, Exception) or getattr(error, "is_interruption", False)


@contextlib.contextmanager
def _refusal() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ConnectionError(f"the tracking store {store_name()} refuses a run: {reason(error)}") from error
