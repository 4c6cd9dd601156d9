"""When a process dies: a run that lost its worker goes on, and a clone that lost its run is put in order."""

import os
from contextlib import suppress
from typing import Any
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed, Scheduled
from rich.console import Console

from pipelines import clone
from pipelines.lineage import ROOT
from pipelines.processes import wait_for_stages

MAX_STARTS = 3  # of a run whose process dies


def outlive_worker() -> None:
    """Let a run end well when the worker that reads its output dies: rich would end it at the broken pipe."""
    setattr(Console, "on_broken_pipe", lambda _: None)  # noqa: B010 (mypy refuses the assignment)


def recover() -> None:
    """In a clone that is ours: undo what a run that died has left, and mark that run as crashed."""
    died = _died_here()
    if died is None:
        return
    if died != runtime.flow_run.id:  # it is this very run where it was started again
        with get_client(sync_client=True) as client, suppress(ObjectNotFound):
            state = client.read_flow_run(UUID(died)).state
            if state and not state.is_final():
                client.set_flow_run_state(UUID(died), Crashed(message="its process is gone"), force=True)
    _go_back()


def restart_dead_run() -> None:
    """Have a run that died in this clone start again, as a worker does when it comes back: three times at most.

    Raises:
        ConnectionError: Prefect does not answer.
    """
    if not clone.is_free(ROOT):
        return  # the run has outlived its worker
    with clone.hold(ROOT, "a worker that starts", on_wait=print):
        died = _died_here()
        if died is None:
            return
        try:
            with get_client(sync_client=True) as client, suppress(ObjectNotFound):
                run = client.read_flow_run(UUID(died))
                if run.state and not run.state.is_final():
                    client.set_flow_run_state(run.id, _state_after_death(run), force=True)
        except httpx.HTTPError as error:
            raise ConnectionError(
                f"Prefect does not answer at {os.environ.get('PREFECT_API_URL')}: {error}. Start it"
            ) from error
        _go_back()


def _state_after_death(run: FlowRun) -> State[Any]:
    if run.state and run.state.is_cancelling():
        return Cancelled(message="its process is gone")
    if run.deployment_id is None or run.run_count >= MAX_STARTS:
        return Crashed(message=f"its process is gone, after {run.run_count} start(s)")
    return Scheduled(message="its process died: it starts again")


def _died_here() -> str | None:
    """Return the id of a run that died in the clone and left its snapshot, or None."""
    owner = clone.Snapshot(ROOT).left_by()
    if owner is None:
        return None
    print(f"{owner} died in {ROOT}: going back to how it was before", flush=True)
    return owner.rpartition("(")[2].rstrip(")")


def _go_back() -> None:
    wait_for_stages(ROOT)
    clone.Snapshot(ROOT).restore()
