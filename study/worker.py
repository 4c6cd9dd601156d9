"""The trials of one task that are missing, one after the other in one process: `python -m study.worker TASK ...`.

What a training prints goes to log.txt in the workspace; a line per trial goes to standard output.
"""

import contextlib
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.stage import run_stage
from study.arms import Arm
from study.protocol import (
    COST_METRICS,
    EMBEDDING_CRITERIA,
    FINAL_SEEDS,
    TUNING_SEEDS,
    Row,
    Trial,
    choose_rate,
    final_trials,
    find_rows,
    head_criterion,
    tuning_trials,
)
from study.results import restore
from study.tasks import TASKS, Task
from study.workspace import locked, open_workspace, trial_file


def main() -> None:
    """Run what the command line names: a task, arms with commas between them, and the last stage."""
    name, arms, stage = sys.argv[1:]
    try:
        task = TASKS[name]
        for arm in sorted(set(arms.split(",")) - set(task.arms)):
            print(
                f"{name}  {arm}  skipped: it is for tasks {'without' if task.has_costs else 'with'} costs", flush=True
            )
        work(task, [task.arms[arm] for arm in arms.split(",") if arm in task.arms], has_final=stage == "final")
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{name}: {interrupt or 'interrupted'}") from interrupt


def work(task: Task, arms: Sequence[Arm], *, has_final: bool) -> None:
    """Run the missing trials: of all arms those that choose a rate, then those that are reported."""
    from study.workspace import WORK

    with locked(WORK / task.name / "worker.lock"):
        with logged(WORK / task.name / "log.txt"):
            folder = open_workspace(task)
        restore(task)
        with contextlib.chdir(folder):
            tuning = {arm.name: tuning_trials(task, arm) for arm in arms}
            finals = len(FINAL_SEEDS) * len(arms) if has_final else 0
            progress = Progress(task, total=len(task.rates) * len(TUNING_SEEDS) * len(arms) + finals)
            for arm in arms:
                progress.run(tuning[arm.name])
            for arm in arms if has_final else ():
                progress.run(chosen_trials(task, arm, tuning[arm.name]))


def chosen_trials(task: Task, arm: Arm, tuning: Sequence[Trial]) -> list[Trial]:
    """Return the final trials of an arm; none, with a message, where no rate can be trained with."""
    rate = choose_rate(find_rows(tuning), task)
    if rate is None:
        print(f"{task.name}  {arm.name}  left out: with every rate a training diverged", flush=True)
        return []
    return final_trials(task, arm, rate)


class Progress:
    """Runs trials and says how far it is.

    Args:
        task: Of all of them.
        total: How many there are; those that are found count as done.
    """

    def __init__(self, task: Task, *, total: int) -> None:
        self.task, self.total = task, total
        self.done = self.run_here = 0
        self.started = time.monotonic()

    def run(self, trials: Sequence[Trial]) -> None:
        """Run those that are missing."""
        for trial in trials:
            self.done += 1
            if not trial_file(trial.task.name, trial.key).is_file():
                from study.trial import run_trial  # slow to import

                with logged(Path("log.txt")):
                    row = run_trial(trial)
                gc.collect()
                self.run_here += 1
                print(self.line(trial, row), flush=True)

    def line(self, trial: Trial, row: Row) -> str:
        """Return what is said of a finished trial."""
        seconds = (time.monotonic() - self.started) / self.run_here
        left = f"about {seconds * (self.total - self.done) / 60:.0f} min left"
        names = COST_METRICS if trial.task.has_costs else (head_criterion(trial.task), *EMBEDDING_CRITERIA)
        values = "  ".join(f"{name.partition('_t')[0]} {row.get(f'val/{name}', float('nan')):.4f}" for name in names)
        what = f"{trial.stage:5}  {trial.arm.name:14} lr {trial.rate:g}  seed {trial.config.seed}"
        return f"{self.task.name:10} {what}  {values}  {row['seconds']:.1f} s  {self.done} of {self.total}, {left}"


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send what is printed to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


if __name__ == "__main__":
    run_stage(main)
