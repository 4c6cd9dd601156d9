"""Processes that do not outlive who started them."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stage import BOUND_VARIABLE

if TYPE_CHECKING:
    import psutil

GRACE_SECONDS = 60.0  # for a training to write its state, after it was told to stop
SETPRIV = Path("/usr/bin/setpriv")  # of util-linux


def bound_to_us(command: Sequence[str]) -> list[str]:
    """Return the command such that it is told to end when the thread that starts it is gone, killed or not."""
    return [str(SETPRIV), "--pdeathsig", "TERM", "--", *command] if SETPRIV.exists() else list(command)


def end_tree(process: subprocess.Popen[str], *, grace: float = GRACE_SECONDS) -> None:
    """Tell a process and its descendants to end, wait, and kill those that do not."""
    import psutil

    try:
        tree = _suspend_tree(psutil.Process(process.pid))
    except psutil.NoSuchProcess:
        return
    for end in (psutil.Process.terminate, psutil.Process.resume):  # the signal waits for them to be resumed
        _for_each(tree, end)
    _, alive = psutil.wait_procs(tree[1:], timeout=grace)
    _for_each(alive, psutil.Process.kill)
    process.kill()  # nothing happens where it has ended


def _suspend_tree(root: "psutil.Process") -> list["psutil.Process"]:
    """Suspend a process and all its descendants, so that none can start another while they are being counted."""
    tree: list[psutil.Process] = []
    found = [root]
    while found:
        _for_each(found, type(root).suspend)
        tree += found
        found = [each for each in root.children(recursive=True) if each not in tree]
    return tree


def _for_each(processes: "Sequence[psutil.Process]", action: "Callable[[psutil.Process], None]") -> None:
    import psutil

    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            action(each)


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
