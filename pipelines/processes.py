"""Processes that do not outlive who started them."""

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.stage import BOUND_VARIABLE

GRACE_SECONDS = 60.0  # for a training to write its state, after it was told to stop
SETPRIV = Path("/usr/bin/setpriv")  # of util-linux


def bound_to_us(command: Sequence[str]) -> list[str]:
    """Return the command such that it is told to end when the thread that starts it is gone, killed or not."""
    return [str(SETPRIV), "--pdeathsig", "TERM", "--", *command] if SETPRIV.exists() else list(command)


def end_tree(process: subprocess.Popen[str], *, grace: float = GRACE_SECONDS) -> None:
    """Tell a process and its descendants to end, wait, and kill those that do not."""
    import psutil

    try:
        descendants = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    process.terminate()
    for each in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.terminate()
    _, alive = psutil.wait_procs(descendants, timeout=grace)
    for each in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.kill()  # nothing happens where it has ended


def wait_for_stages(root: Path, *, seconds: float = GRACE_SECONDS) -> None:
    """Wait until no stage of a flow works in a clone: those of a run that was killed end soon after it.

    Raises:
        TimeoutError: Some go on.
    """
    deadline = time.monotonic() + seconds
    while pids := _stages_in(root):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {pids} of an earlier run work in {root} still: end them")
        time.sleep(0.2)


def _stages_in(root: Path) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if BOUND_VARIABLE in process.environ() and process.cwd() == str(root):
                found.append(process.pid)
    return found
