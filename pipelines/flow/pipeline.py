"""The flow `pipeline`: what `dvc repro` does, on a schedule, watched, all or nothing."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from grpo_rm.config import load_config
from pipelines import clone, dag
from pipelines.flow.artifacts import read_report, show_failed_validation, show_results
from pipelines.flow.recovery import outlive_worker, recover
from pipelines.flow.stages import OUTAGE_DELAYS, run_stages
from pipelines.lineage import ROOT
from pipelines.promote import describe
from pipelines.promote import promote as promote_version
from pipelines.tracking.runs import PARENT_RUN_VARIABLE, end_parent_run, open_parent_run, run_url

THREADS = cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=8))


@flow(name="pipeline", task_runner=THREADS, persist_result=False)
def pipeline(
    params: dict[str, Any] | None = None,
    force: list[str] | None = None,
    target: str | None = None,
    promote: bool = False,
    pull: bool = False,
    push: bool = False,
) -> State[Any]:
    """Rebuild what changed, all or nothing, and commit dvc.lock.

    Args:
        params: Parameters to set in params.yaml, by dotted name: {"finetune.epochs": 2}. They are committed with the
            result; when the run fails, params.yaml is as before.
        force: Stages to run even if nothing changed.
        target: Stop after this stage. Default: all stages.
        promote: Make the new version champion if it passed the gate.
        pull: First take the newest commits of the upstream branch, and their data from the DVC remote.
        push: At the end send data to the DVC remote and the commit upstream, where there are such.
    """
    outlive_worker()
    logger = get_run_logger()
    me = f"flow run {runtime.flow_run.name} ({runtime.flow_run.id})"
    try:
        with clone.hold(ROOT, me, on_wait=lambda owner: logger.info("waiting for %s, which works in %s", owner, ROOT)):
            recover()
            if pull:
                pull_changes()
            with clone.all_or_nothing(ROOT, me, on_failure=dag.end_running):
                message = rebuild(me, params or {}, force or [], target)
            if promote:
                promote_candidate(me)
            if push:
                push_changes()
        return Completed(message=message)
    except (ValueError, OSError) as error:  # its message says what to do; a traceback would only hide it
        return Failed(message=str(error))


def rebuild(me: str, params: dict[str, Any], force: list[str], target: str | None) -> str:
    """Run the stages, show and commit what came out.

    Returns:
        What happened, in words.

    Raises:
        ValueError: A parameter or a stage does not exist, or a stage failed.
        OSError: A server does not answer, or git could not commit.
    """
    edited = clone.uncommitted(ROOT)
    clone.override(ROOT, params)
    stages = dag.read_dag(ROOT)
    forced = dag.select(stages, force)
    stages = dag.needed_for(stages, dag.select(stages, [target])) if target else stages
    stale = dag.with_descendants(stages, dag.stale_stages(ROOT) | forced)
    if not stale:
        run_stages(stages, forced=forced, stale=stale, environment={})
        return f"nothing changed: {len(stages)} stages are as they were"
    with parent_run(me, params) as run_id:
        try:
            outcomes = run_stages(stages, forced=forced, stale=stale, environment={PARENT_RUN_VARIABLE: run_id})
        except ValueError:
            show_failed_validation()
            raise
        show_results()
        with suppress(ConnectionError):  # a server that is away now is no reason to go back
            create_link_artifact(run_url(run_id), link_text="MLflow run", key="mlflow-run")
    message = "; ".join(f"{outcome}: {', '.join(names)}" for outcome, names in sorted(outcomes.items(), reverse=True))
    if edited:
        get_run_logger().warning("dvc.lock is not committed, because these files are not: %s", ", ".join(edited))
        return message
    commit = clone.commit(ROOT, f"Pipeline {message}\n\nStarted by {me}\nMLflow run {run_id}")
    return f"{message}; committed {commit[:9]}" if commit else message


@contextmanager
def parent_run(me: str, params: dict[str, Any]) -> Iterator[str]:
    """Open the MLflow run that the stages' runs are children of."""
    run_id = open_tracking_run(me, params)
    status = "KILLED"
    try:
        yield run_id
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        end_parent_run(run_id, status)


@task(task_run_name="open the MLflow run", cache_policy=NO_CACHE, retries=3, retry_delay_seconds=OUTAGE_DELAYS)
def open_tracking_run(me: str, params: dict[str, Any]) -> str:
    """Open the parent run; return its id."""
    tags = {
        "started.by": me,
        "prefect.flow_run": str(runtime.flow_run.id),
        "prefect.url": runtime.flow_run.ui_url or "",
    }
    return open_parent_run("pipeline", load_config(ROOT / "params.yaml").tracking, tags, params)


@task(task_run_name="pull", cache_policy=NO_CACHE, retries=3, retry_delay_seconds=OUTAGE_DELAYS)
def pull_changes() -> None:
    """Take commits and data from where they are shared."""
    clone.pull(ROOT)


@task(task_run_name="push", cache_policy=NO_CACHE, retries=3, retry_delay_seconds=OUTAGE_DELAYS)
def push_changes() -> None:
    """Send data and commits to where they are shared."""
    clone.push(ROOT)


@task(task_run_name="promote", cache_policy=NO_CACHE)
def promote_candidate(me: str) -> State[Any]:
    """Make the version of the last registration champion if its gate passed."""
    registration = read_report("registration")
    if not registration or not registration["gate"]["has_passed"]:
        return Completed(name="Skipped", message="nothing is promoted, because the gate failed")
    promotion = promote_version(registration["version"], name=registration["name"], by=me)
    return Completed(message=describe(promotion))


if __name__ == "__main__":
    pipeline()
