"""How a stage starts, and how it ends: done, failed or interrupted."""

import argparse
import atexit
import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

BOUND_VARIABLE = "GRPO_RM_BOUND"  # the process that a stage is not to outlive, where there is one
WORDS_VARIABLE = "GRPO_RM_WORDS"  # where one of several processes leaves its last words, for who started them to say
OUTAGE = os.EX_TEMPFAIL  # exit code of a stage whose server did not answer: later it may
OURS = ("grpo_rm", "pipelines", "serving", "__main__")
GRACE_SECONDS = 5
SAME_SECONDS = 3  # who ends a process often tells its group, and then each of its processes again: that is one request
INTERRUPTED = "interrupted; `dvc repro` runs this stage again, `dvc checkout` brings back the earlier result"


def end_with_parent() -> None:
    """Have the kernel send us SIGTERM when the parent process is gone, killed or not; Linux alone can do that."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if not Path(f"/proc/{os.environ[BOUND_VARIABLE]}").exists():  # it was gone before
            os._exit(128 + signal.SIGTERM)


class _Interrupt:
    """The handler of SIGTERM and SIGINT: the first interrupts the stage as Ctrl-C does, a later one ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_deferred = False
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal is not None:
            if time.monotonic() - self._since > SAME_SECONDS:
                os._exit(128 + number)
            return
        self.signal, self._since = number, time.monotonic()
        if not self.is_deferred:
            signal.alarm(GRACE_SECONDS)
            raise KeyboardInterrupt

    def insist(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """End the stage where a library swallowed the interrupt, as some do while they are imported."""
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(128 + (self.signal or signal.SIGINT))


_interrupt = _Interrupt()


def run_stage(main: Callable[[], None], *, description: str | None = None) -> None:
    """Run a stage, and leave with its exit code: 0, 1 for an error, 75 for a server that does not answer, 143 after
    SIGTERM, 130 after SIGINT.

    What a user can mend ends as one message, without a traceback; GRPO_RM_DEBUG=1 shows the traceback instead.

    Args:
        main: The stage.
        description: What `--help` says of a stage that takes no arguments.
    """
    if description is not None:
        parser = argparse.ArgumentParser(prog=f"python -m {_module_name()}", description=description)
        parser.parse_args()
    gc.set_threshold(50_000)  # importing torch and mlflow collects thousands of times otherwise: 1 s
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    if BOUND_VARIABLE in os.environ:
        end_with_parent()
    signal.signal(signal.SIGALRM, _interrupt.insist)
    if WORDS_VARIABLE in os.environ:
        _watch_main_thread()
    code = _exit_code(main)
    _interrupt.is_deferred = True  # nothing is left to interrupt

    # Tearing the interpreter down takes 1 to 2 s with torch and mlflow loaded. All files are written, so: leave.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).name


def _watch_main_thread() -> None:
    """End one of several processes soon after a signal that it does not see: it waits for another, outside of Python.

    That other one may be gone, and torchrun's patience is 30 s.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # what decodes images has signals of its own

    def watch() -> None:
        while True:
            (number,) = os.read(reader, 1)
            if number in (signal.SIGTERM, signal.SIGINT):
                time.sleep(GRACE_SECONDS)
                if _interrupt.signal is None:
                    os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()


def _exit_code(main: Callable[[], None]) -> int:
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        # once interrupted, any error is of that: an import that was cut short, a process that the same signal ended
        if isinstance(error, KeyboardInterrupt) or _interrupt.signal is not None:
            signal.alarm(0)
            _say((isinstance(error, KeyboardInterrupt) and str(error)) or INTERRUPTED)
            return 128 + (_interrupt.signal or signal.SIGINT)
        if os.environ.get("GRPO_RM_DEBUG") or not is_for_user(error):
            _say(traceback.format_exc().rstrip())
            return 1
        _say(f"error: {error}")
        return OUTAGE if isinstance(error, ConnectionError) else 1
    return 0


def _say(last_words: str) -> None:
    if WORDS_VARIABLE in os.environ:
        Path(os.environ[WORDS_VARIABLE], os.environ["RANK"]).write_text(last_words, encoding="utf-8")
    else:
        print(last_words, file=sys.stderr)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block the first SIGTERM or SIGINT is only told of, by the callable; it interrupts after the block."""
    _interrupt.is_deferred = True
    try:
        yield lambda: _interrupt.signal is not None
    finally:
        _interrupt.is_deferred = False
    if _interrupt.signal is not None:
        raise KeyboardInterrupt


def is_for_user(error: Exception) -> bool:
    """Whether an error speaks to the user: of the file system or the network, or raised by this project on purpose."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    is_ours = frame.f_globals["__name__"].partition(".")[0] in OURS
    return isinstance(error, OSError) or (type(error) in (ValueError, FloatingPointError) and is_ours)
