"""Processes that do not outlive who started them."""

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

GRACE_SECONDS = 60.0  # for a training to write its checkpoint, after it was told to stop
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
