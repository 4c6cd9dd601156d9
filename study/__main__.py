"""Run what is missing of the study, and collect the results: see docs/experiments.md."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from pipelines.lineage import ROOT
from pipelines.stage import BOUND_VARIABLE, deferred_interrupt, run_stage
from pipelines.tracking.runs import open_experiment
from study.arms import ARMS
from study.results import collect
from study.tasks import EXPERIMENT, TASKS
from study.workspace import why_skipped


def main() -> None:
    """Run the tasks, a process each, and collect."""
    options = parse()
    runnable = []
    for name in options.tasks:
        if reason := why_skipped(TASKS[name]):
            print(f"{name}  skipped: {reason}", flush=True)
        else:
            runnable.append(name)
    open_experiment(EXPERIMENT)  # by one process: two that create the store at once would meet
    try:
        failed = run_workers(runnable, [",".join(options.arms), options.stage], jobs=options.jobs)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; `make study` goes on with what is missing") from None
    finally:
        print(f"{len(collect())} rows -> study/results.parquet", flush=True)
    if failed:
        raise ChildProcessError(f"{', '.join(failed)} failed: see above, and study/work/TASK/log.txt")
    if options.stage == "final":
        from study.comparisons import update_comparisons  # slow to import

        update_comparisons()


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__)
    parser.add_argument(
        "--tasks", type=lambda text: names(text, TASKS), default=list(TASKS), help="such as tiny,digits"
    )
    parser.add_argument(
        "--arms", type=lambda text: names(text, ARMS), default=list(ARMS), help="such as neighbors,inner"
    )
    parser.add_argument("--stage", choices=("tune", "final"), default="final", help="the last one to run")
    parser.add_argument("--jobs", type=int, default=2, help="tasks at a time, each in a process with one thread")
    return parser.parse_args()


def names(text: str, known: Mapping[str, object]) -> list[str]:
    """Return names between commas.

    Raises:
        argparse.ArgumentTypeError: One of them is unknown.
    """
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in known]:
        raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, expected some of {', '.join(known)}")
    return chosen


def run_workers(tasks: Sequence[str], arguments: list[str], *, jobs: int) -> list[str]:
    """Run a process per task, `jobs` at a time; return the tasks whose process failed.

    Raises:
        KeyboardInterrupt: After all processes have kept where they are, and ended.
    """
    waiting, running, failed = list(tasks), dict[str, subprocess.Popen[bytes]](), list[str]()
    with deferred_interrupt() as is_interrupted:
        while (waiting or running) and not is_interrupted():
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                running[task] = start_worker(task, arguments)
            time.sleep(0.2)
            ended = [task for task, process in running.items() if process.poll() is not None]
            failed += [task for task in ended if running.pop(task).returncode]
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def start_worker(task: str, arguments: list[str]) -> "subprocess.Popen[bytes]":
    """Start the process of a task, with one thread: as many as processes would be slower for models this small."""
    command = [sys.executable, "-m", "study.worker", task, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", BOUND_VARIABLE: str(os.getpid())}
    return subprocess.Popen(command, cwd=ROOT, env=environment)


if __name__ == "__main__":
    run_stage(main)
