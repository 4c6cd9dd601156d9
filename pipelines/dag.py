"""The stages of dvc.yaml as DVC sees them, and one of them run as a process of its own.

DVC is the only cache: what is stale is its decision, and `dvc repro` of that one stage is how it is renewed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pipelines.processes import bound_to_us, end_tree
from pipelines.stage import BOUND_VARIABLE, OUTAGE

Outcome = Literal["ran", "cached", "restored", "failed", "outage", "timed out", "cancelled"]

# DVC's remarks on what to do with dvc.lock, which is done by the flow
CHATTER = (
    "To track the changes",
    "\tgit add",
    "To enable auto staging",
    "\tdvc config core.autostage",
    "Use `dvc push`",
)

END_SECONDS = 20.0  # Prefect gives a cancelled run 30 before it kills it

_running: set[subprocess.Popen[str]] = set()
_changed = threading.Condition()
_is_ending = threading.Event()


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml.

    Attributes:
        name: As DVC addresses it, such as `finetune@grpo_rm`.
        upstream: The stages whose outputs it reads.
        needs_gpu: `meta: {gpu: true}`.
        time_limit: Seconds it may run, of `meta: {time_limit: MINUTES}`; None where there is no limit.
    """

    name: str
    upstream: tuple[str, ...]
    needs_gpu: bool = False
    time_limit: float | None = None


@dataclass(frozen=True)
class Result:
    """What became of a stage.

    Attributes:
        outcome: DVC ran it, found it unchanged (`cached`), or took its outputs from the cache (`restored`). An `outage`
            is a failure of a server the stage needs, which may pass; `cancelled` was ended from outside.
        message: One line for a person; for a failed stage what it said last.
    """

    outcome: Outcome
    message: str


def read_dag(root: Path) -> list[Stage]:
    """Return the stages in an order in which they can run.

    Raises:
        ValueError: dvc.yaml cannot be read.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    try:
        with Repo(root) as repo:
            graph = repo.index.graph  # edges point from a stage to what it reads
            order = nx.lexicographical_topological_sort(graph.reverse(copy=True), key=lambda stage: stage.addressing)
            return [
                Stage(
                    stage.name,
                    tuple(sorted(read.name for read in graph.successors(stage) if isinstance(read, PipelineStage))),
                    needs_gpu=bool((stage.meta or {}).get("gpu")),
                    time_limit=60.0 * minutes if (minutes := (stage.meta or {}).get("time_limit")) else None,
                )
                for stage in order
                if isinstance(stage, PipelineStage)
            ]
    except DvcException as error:
        raise ValueError(f"DVC cannot read {root / 'dvc.yaml'}: {error}. `dvc status` shows where") from error


def stale_stages(root: Path) -> set[str]:
    """Return the stages that DVC would not skip, as long as nothing above them changes."""
    from dvc.repo import Repo

    with Repo(root, _wait_for_lock=True) as repo:
        return {address.rpartition(":")[2] for address in repo.status()}  # from another directory: "PATH/dvc.yaml:NAME"


def with_descendants(stages: Sequence[Stage], names: set[str]) -> set[str]:
    """Return those of `stages` that are named, and those that read, directly or not, from one that is."""
    found: set[str] = set()
    for stage in stages:
        if stage.name in names or found.intersection(stage.upstream):
            found.add(stage.name)
    return found


def select(stages: Sequence[Stage], names: Sequence[str]) -> set[str]:
    """Return the stages with these names; `finetune` is every `finetune@...`.

    Raises:
        ValueError: There is no such stage.
    """
    selected: set[str] = set()
    for name in names:
        found = {stage.name for stage in stages if name in (stage.name, stage.name.partition("@")[0])}
        if not found:
            known = [stage.name for stage in stages]
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise ValueError(f"dvc.yaml has no stage {name!r}; {hint}")
        selected |= found
    return selected


def needed_for(stages: Sequence[Stage], targets: set[str]) -> list[Stage]:
    """Return the targets and everything above them, in the order of `stages`."""
    needed = set(targets)
    for stage in reversed(stages):
        if stage.name in needed:
            needed.update(stage.upstream)
    return [stage for stage in stages if stage.name in needed]


def reproduce(
    stage: Stage, root: Path, *, force: bool, environment: dict[str, str], on_line: Callable[[str], None]
) -> Result:
    """Run `dvc repro` of one stage, and wait until it and all its processes have ended.

    Args:
        stage: Which.
        root: The clone.
        force: Run it even if nothing changed.
        environment: Added to that of this process.
        on_line: Receives each line of output as it is printed.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage.name]
    command += ["--force"] * force
    process = _start(command, root, environment)
    if process is None:
        return Result("cancelled", f"{stage.name} was not started: the run is being ended")
    try:
        with process, _time_limit(process, stage.time_limit) as has_expired:
            lines = _read(process, on_line)
    finally:
        with _changed:
            _running.discard(process)
            _changed.notify_all()
    if has_expired.is_set():
        assert stage.time_limit is not None
        return Result("timed out", f"{stage.name} was ended after {stage.time_limit / 60:g} minutes (meta.time_limit)")
    return _classify(stage.name, process.returncode, lines)


def _read(process: subprocess.Popen[str], on_line: Callable[[str], None]) -> list[str]:
    """Return what it prints, until the last of its processes has closed it; end them where `on_line` raises."""
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            if line.strip() and not line.startswith(CHATTER):
                lines.append(line.rstrip())
                on_line(lines[-1])
    except BaseException:
        end_tree(process)
        raise
    return lines


def _start(command: Sequence[str], root: Path, environment: dict[str, str]) -> subprocess.Popen[str] | None:
    with _changed:
        if _is_ending.is_set():
            return None
        # no session of its own: whoever ends our process group (a cancelled flow) ends the stage with it
        process = subprocess.Popen(
            bound_to_us(command),
            cwd=root,
            env={**os.environ, **_surroundings(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        _running.add(process)
        return process


def _classify(name: str, returncode: int, lines: Sequence[str]) -> Result:
    if returncode < 0:
        return Result("cancelled", f"{name} was ended by {signal.Signals(-returncode).name}")
    if returncode:
        errors = [index for index, line in enumerate(lines) if line.startswith("error: ")]
        last = lines[-1] if lines else f"exit code {returncode}"
        message = "\n".join(_with_indented(lines, errors[-1])) if errors else last
        is_outage = any(line.endswith(f"exited with {OUTAGE}") for line in lines)
        outcome: Outcome = "outage" if is_outage else "failed"
        return Result(outcome, f"{name}: {message.removeprefix('error: ').removeprefix('ERROR: ')}")
    if any(line.startswith("Running stage") for line in lines):
        return Result("ran", f"{name} ran")
    if any("is cached - skipping run" in line for line in lines):
        return Result("restored", f"{name}: the outputs of an earlier run were restored from the cache")
    return Result("cached", f"{name} did not change")


def _with_indented(lines: Sequence[str], start: int) -> list[str]:
    end = start + 1
    while end < len(lines) and lines[end].startswith("  "):
        end += 1
    return list(lines[start:end])


def _surroundings() -> dict[str, str]:
    """Return what a stage finds in its environment. The commands of dvc.yaml say `python`: this one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"PATH": path, "PYTHONUNBUFFERED": "1", BOUND_VARIABLE: str(os.getpid())}


@contextlib.contextmanager
def _time_limit(process: subprocess.Popen[str], seconds: float | None) -> Iterator[threading.Event]:
    has_expired = threading.Event()

    def expire() -> None:
        has_expired.set()
        end_tree(process)

    timer = threading.Timer(seconds or 0, expire)
    if seconds:
        timer.start()
    try:
        yield has_expired
    finally:
        timer.cancel()


def end_running() -> None:
    """End the stages this process has started, wait until all their processes are gone, and start no other.

    Raises:
        TimeoutError: Some are not gone after 20 seconds.
    """
    _is_ending.set()
    with _changed:
        processes = tuple(_running)
    for process in processes:
        end_tree(process, grace=END_SECONDS)
    with _changed:
        if not _changed.wait_for(lambda: not _running, timeout=END_SECONDS):
            raise TimeoutError(f"stages do not end within {END_SECONDS:g} seconds")
