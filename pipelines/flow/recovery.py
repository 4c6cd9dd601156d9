"""When a process dies: a run that lost its worker goes on, and a clone that lost its run is put in order."""

from contextlib import suppress
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Scheduled
from rich.console import Console

from pipelines import clone
from pipelines.lineage import ROOT

MAX_STARTS = 3  # of a run whose process dies


def outlive_worker() -> None:
    """Let a run end well when the worker that reads its output dies: rich would end it at the broken pipe."""
    setattr(Console, "on_broken_pipe", lambda _: None)  # noqa: B010 (mypy refuses the assignment)


def recover() -> None:
    """Go back to how the clone was before a run that died in it, and mark that run as crashed."""
    died = _go_back()
    if died is None:
        return
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        state = client.read_flow_run(died).state
        if state and not state.is_final():
            client.set_flow_run_state(died, Crashed(message="its process is gone"), force=True)


def restart_dead_run() -> None:
    """Have a run that died in this clone start again, as a worker does when it comes back: three times at most."""
    if not clone.is_free(ROOT):
        return  # the run has outlived its worker
    died = _go_back()
    if died is None:
        return
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        run = client.read_flow_run(died)
        if run.deployment_id and run.state and not run.state.is_final() and run.run_count < MAX_STARTS:
            client.set_flow_run_state(died, Scheduled(message="its process died: starts again"), force=True)


def _go_back() -> UUID | None:
    """Undo what a run that died has left in the clone; return its id, or None where there is none."""
    snapshot = clone.Snapshot(ROOT)
    owner = snapshot.left_by()
    if owner is None:
        return None
    print(f"{owner} died in {ROOT}: going back to how it was before", flush=True)
    snapshot.restore()
    return UUID(owner.rpartition("(")[2].rstrip(")"))
