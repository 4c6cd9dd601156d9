"""A task per stage of dvc.yaml. DVC decides what it has to do; its state says what that was."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed

from grpo_rm.progress import epoch_of
from pipelines import dag
from pipelines.dag import Stage
from pipelines.lineage import ROOT

GPU = "gpu"  # the concurrency limit that stages with `meta: {gpu: true}` hold
GPU_LEASE_SECONDS = 60  # after which the slot of a machine that is gone is free again
PROGRESS_SECONDS = 2.0  # between two updates of a progress artifact
OUTAGE_DELAYS = [30.0, 120.0, 600.0]  # seconds until what a network or a server failed is tried again


def run_stages(
    stages: Sequence[Stage], *, forced: set[str], stale: set[str], environment: dict[str, str]
) -> dict[str, list[str]]:
    """Run the stages, each after those it reads from.

    Args:
        stages: In the order of `dag.read_dag`.
        forced: Names of those to run even if nothing changed.
        stale: Names of those that DVC has to look at.
        environment: For the processes of the stages.

    Returns:
        The names by outcome: ran, cached, restored.

    Raises:
        ValueError: Some failed. Those that do not read from them have run.
    """
    if any(stage.needs_gpu and stage.name in stale for stage in stages):
        ensure_gpu_limit()
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage in stages:
        futures[stage.name] = run_stage.submit(
            stage,
            is_stale=stage.name in stale,
            force=stage.name in forced,
            environment=environment,
            return_state=False,
            wait_for=[futures[name] for name in stage.upstream if name in futures],
        )
    outcomes: dict[str, list[str]] = {}
    reasons = []
    for name, future in futures.items():
        future.wait()
        state = future.state
        outcomes.setdefault(str(state.name).lower(), []).append(name)
        if not (state.is_completed() or state.name == "NotReady"):  # of NotReady, what it waits for is the reason
            reasons.append(str(state.message))
    if reasons:
        raise ValueError("; ".join(reasons))
    return outcomes


def _is_outage(task: object, run: object, state: State[Any]) -> bool:  # noqa: ARG001 (Prefect calls it so)
    return state.name == "Outage"


@task(
    task_run_name="{stage.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(OUTAGE_DELAYS),
    retry_delay_seconds=OUTAGE_DELAYS,
    retry_condition_fn=_is_outage,
)
def run_stage(stage: Stage, *, is_stale: bool, force: bool, environment: dict[str, str]) -> State[Any]:
    """Bring a stage up to date."""
    if not is_stale:
        return Completed(name="Cached", message=f"{stage.name} did not change")
    with gpu_slot(stage):
        result = dag.reproduce(stage, ROOT, force=force, environment=environment, on_line=LogLines(stage.name))
    if result.outcome in ("ran", "cached", "restored"):
        return Completed(name=result.outcome.capitalize(), message=result.message)
    if result.outcome == "cancelled":
        return Cancelled(message=result.message)
    name = {"outage": "Outage", "timed out": "TimedOut"}.get(result.outcome, "Failed")
    return Failed(name=name, message=result.message)


@contextmanager
def gpu_slot(stage: Stage) -> Iterator[None]:
    """Hold the GPU for a stage that needs it."""
    if not stage.needs_gpu:
        yield
        return
    # no error when the lease cannot be renewed: a server that is away must not end a training that runs
    with concurrency(GPU, strict=True, lease_duration=GPU_LEASE_SECONDS, raise_on_lease_renewal_failure=False):
        yield


def ensure_gpu_limit() -> None:
    """Create the concurrency limit with one slot where there is none; a person may give it more."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))


class LogLines:
    """Writes the lines of a stage to the log of its task, and its epochs to a progress artifact."""

    def __init__(self, stage: str) -> None:
        self.stage, self.logger = stage, get_run_logger()
        self._is_shown = True
        self._artifact: UUID | None = None
        self._updated = 0.0

    def __call__(self, line: str) -> None:
        self.logger.info(line)
        epoch = epoch_of(line)
        if epoch and self._is_shown:
            try:
                self._show(*epoch)
            except Exception as error:  # a server that is away must not end a training that runs
                self._is_shown = False
                self.logger.warning("progress is not shown any more: %s", error)

    def _show(self, epoch: int, epochs: int) -> None:
        percent = 100.0 * epoch / epochs
        if self._artifact is None:
            key = re.sub(r"[^a-z0-9]+", "-", self.stage.lower())  # all that Prefect allows
            description = f"Epochs of {self.stage}, {epochs} in all"
            self._artifact = cast(UUID, create_progress_artifact(percent, key=key, description=description))
        elif epoch == epochs or time.monotonic() - self._updated > PROGRESS_SECONDS:
            update_progress_artifact(self._artifact, percent)
        else:
            return
        self._updated = time.monotonic()
