"""The flow `pipeline`: what `dvc repro` does, on a schedule, watched, all or nothing."""

import json
import textwrap
from collections.abc import Callable, Iterator
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
from pipelines.flow.failures import fail_in_words, run_here
from pipelines.flow.origin import name_commit
from pipelines.flow.recovery import outlive_worker, recover
from pipelines.flow.stages import OUTAGE_DELAYS, run_stages
from pipelines.lineage import ROOT
from pipelines.promote import describe
from pipelines.promote import promote as promote_version
from pipelines.tracking.aliases import CHAMPION, PROMOTED, aliases_of
from pipelines.tracking.registry import tags_of
from pipelines.tracking.runs import PARENT_RUN_VARIABLE, end_parent_run, flatten, open_parent_run, run_url

THREADS = cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=8))
SUBJECT_LENGTH = 72  # characters, of a commit


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
        params: Parameters to set in params.yaml, by dotted name, {"finetune.epochs": 2}, or nested,
            {"finetune": {"epochs": 2}}. They are committed with the result; where the run fails, params.yaml is as
            before.
        force: Stages to run even if nothing changed.
        target: Stop after this stage. Default: all stages.
        promote: Make the new version champion if it passed the gate.
        pull: First take the newest commits of the upstream branch, and their data from the DVC remote.
        push: At the end send data to the DVC remote and the commit upstream, where there are such.
    """
    outlive_worker()
    fail_in_words()
    logger = get_run_logger()
    me = f"flow run {runtime.flow_run.name} ({runtime.flow_run.id})"
    try:
        with clone.hold(ROOT, me, on_wait=lambda owner: logger.info("waiting for %s, which works in %s", owner, ROOT)):
            recover()
            if pull:
                pull_changes()
            edited = clone.uncommitted(ROOT)
            with (
                parent_run(me, params or {}) as open_parent,  # ended last: its server may take its time
                clone.all_or_nothing(ROOT, me, on_failure=dag.end_running) as snapshot,
            ):
                snapshot.override(params or {})
                outcomes = run_stale_stages(force or [], target, open_parent)
                message, commit = describe_outcomes(outcomes), None
                if edited:  # said every time: it goes on until a person acts
                    message += f"; dvc.lock is NOT committed, because these files are not: {', '.join(edited)}"
                elif commit := clone.commit(ROOT, commit_message(message, params or {}, me)):
                    message += f"; committed {commit[:9]}"
            if promote and "register" in outcomes.get("ran", []):
                promote_candidate(me)
            if push:
                push_changes()
            if commit and "register" in outcomes.get("ran", []):
                name_commit_of_version(commit, return_state=True)  # else it names the one before it
        return Completed(message=message)
    except (ValueError, OSError) as error:  # its message says what to do; a traceback would only hide it
        return Failed(message=str(error))


def run_stale_stages(force: list[str], target: str | None, open_parent: Callable[[], str]) -> dict[str, list[str]]:
    """Run the stages that need it, and show what came out.

    Args:
        force: Stages to run even if nothing changed.
        target: The last stage; None for all.
        open_parent: Opens the MLflow run that theirs are children of.

    Returns:
        The names of the stages by outcome.

    Raises:
        ValueError: There is no such stage, or a stage failed.
    """
    stages = dag.read_dag(ROOT)
    forced = dag.select(stages, force)
    stages = dag.needed_for(stages, dag.select(stages, [target])) if target else stages
    if unneeded := forced - {stage.name for stage in stages}:
        raise ValueError(f"force names {', '.join(sorted(unneeded))}, which target {target} does not need: drop one")
    stale = dag.with_descendants(stages, dag.stale_stages(ROOT) | forced)
    if not stale:
        return run_stages(stages, forced=forced, stale=stale, environment={})
    run_id = open_parent()
    try:
        outcomes = run_stages(stages, forced=forced, stale=stale, environment={PARENT_RUN_VARIABLE: run_id})
    except ValueError:
        show_failed_validation()
        raise
    show_results()
    with suppress(ConnectionError):  # a server that is away now is no reason to go back
        create_link_artifact(run_url(run_id), link_text="MLflow run", key="mlflow-run")
    return outcomes


def describe_outcomes(outcomes: dict[str, list[str]]) -> str:
    """Return what happened in words."""
    if set(outcomes) == {"cached"}:
        return f"nothing changed: {len(outcomes['cached'])} stages are as they were"
    return "; ".join(f"{outcome}: {', '.join(names)}" for outcome, names in sorted(outcomes.items(), reverse=True))


def commit_message(outcome: str, params: dict[str, Any], me: str) -> str:
    """Return what git says of a run: the parameters it was given, in short and in full, and what came out."""
    if not params:
        return f"Pipeline {outcome}\n\nStarted by {me}"
    values = {name: json.dumps(value) for name, value in flatten(params).items()}
    names = textwrap.shorten(", ".join(values), SUBJECT_LENGTH - len("Pipeline with "), placeholder=" ...")
    listed = "\n".join(f"{name}: {value}" for name, value in values.items())
    return f"Pipeline with {names}\n\nPipeline {outcome}\n\n{listed}\n\nStarted by {me}"


def is_outage(task: object, run: object, state: State[Any]) -> bool:  # noqa: ARG001 (Prefect calls it so)
    """Whether what a task raised may pass: that of a disk, a network or a server, and no mistake of a person."""
    return isinstance(state.data, OSError)


RETRIED: dict[str, Any] = {"retries": 3, "retry_delay_seconds": OUTAGE_DELAYS, "retry_condition_fn": is_outage}


@contextmanager
def parent_run(me: str, params: dict[str, Any]) -> Iterator[Callable[[], str]]:
    """Yield what opens the MLflow run that the stages' runs are children of; end it, if it was opened."""
    opened: list[str] = []

    def open_parent() -> str:
        opened.append(open_tracking_run(me, params))
        return opened[0]

    status = "KILLED"
    try:
        yield open_parent
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        for run_id in opened:
            end_parent_run(run_id, status)


@task(task_run_name="open the MLflow run", cache_policy=NO_CACHE, **RETRIED)
def open_tracking_run(me: str, params: dict[str, Any]) -> str:
    """Open the parent run; return its id."""
    tags = {
        "started.by": me,
        "prefect.flow_run": str(runtime.flow_run.id),
        "prefect.url": runtime.flow_run.ui_url or "",
    }
    return open_parent_run("pipeline", load_config(ROOT / "params.yaml").tracking, tags, params)


@task(task_run_name="pull", cache_policy=NO_CACHE, **RETRIED)
def pull_changes() -> None:
    """Take commits and data from where they are shared."""
    clone.pull(ROOT)


@task(task_run_name="push", cache_policy=NO_CACHE, **RETRIED)
def push_changes() -> None:
    """Send data and commits to where they are shared."""
    clone.push(ROOT)


@task(task_run_name="name the commit", cache_policy=NO_CACHE, **RETRIED)
def name_commit_of_version(commit: str) -> None:
    """Have the version just registered name the commit that has its parameters and dvc.lock."""
    registration = read_report("registration")
    assert registration is not None
    name_commit(registration["name"], registration["version"], commit)


@task(task_run_name="promote", cache_policy=NO_CACHE)
def promote_candidate(me: str) -> State[Any]:
    """Make the version just registered champion, if its gate passed and nobody took it down before."""
    registration = read_report("registration")
    assert registration is not None
    if not registration["gate"]["has_passed"]:
        return Completed(name="Skipped", message="nothing is promoted, because the gate failed")
    name, version = registration["name"], registration["version"]
    if PROMOTED in tags_of(name, version) and CHAMPION not in aliases_of(name, version):
        return Completed(name="Skipped", message=f"version {version} is not promoted, because a person took it down")
    return Completed(message=describe(promote_version(version, name=name, by=me)))


if __name__ == "__main__":
    run_here(pipeline)
