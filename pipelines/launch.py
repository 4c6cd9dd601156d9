"""A training stage as several processes of this machine: torchrun starts them, they end together, with one message."""

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pipelines.stage import BOUND_VARIABLE, INTERRUPTED, WORDS_VARIABLE

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

PROCESSES_VARIABLE = "GRPO_RM_PROCESSES"
TOLD_TO_END = {code for number in (signal.SIGTERM, signal.SIGINT) for code in (-number, 128 + number)}  # exit codes


def launch_processes(module: str, *arguments: str) -> None:
    """Run a stage as $GRPO_RM_PROCESSES processes, and leave with their exit code.

    It returns where one process is asked for, and in the processes that were launched. How many there are is about
    where a stage runs, not about what it does: so it is in the environment and not in params.yaml.

    Args:
        module: Of the stage.
        arguments: Of its command line.

    Raises:
        ValueError: The variable holds no number of processes, or more than there are GPUs.
    """
    count = _number_of_processes()
    if count > 1 and "LOCAL_RANK" not in os.environ:
        _check_gpus(count)
        with tempfile.TemporaryDirectory() as words:
            _launch(count, [module, *arguments], Path(words))


def _number_of_processes() -> int:
    text = os.environ.get(PROCESSES_VARIABLE) or "1"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{PROCESSES_VARIABLE} is {text!r}, expected a number of processes, such as 2")
    return int(text)


def _check_gpus(count: int) -> None:
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < count:
        raise ValueError(f"{PROCESSES_VARIABLE} is {count}, expected at most {gpus}: each process has a GPU of its own")


def _launch(count: int, command: list[str], words: Path) -> NoReturn:
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    logging.disable()  # what failed is ours to say
    _prepare_environment(count, words)
    try:
        elastic_launch(_launch_config(count), sys.executable)("-m", *command)
    except SignalException as interrupt:
        print(_read_words(words).get(0, INTERRUPTED), file=sys.stderr)
        sys.exit(128 + interrupt.sigval)
    except ChildFailedError as error:
        message, code = _explain(error.failures, _read_words(words), count)
        print(message, file=sys.stderr)
        sys.exit(code)
    sys.exit(0)


def _prepare_environment(count: int, words: Path) -> None:
    """Say to the processes where their last words go, whom not to outlive, and what their part of the machine is."""
    os.environ[WORDS_VARIABLE] = str(words)
    os.environ[BOUND_VARIABLE] = str(os.getpid())
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they are on this machine, whatever its name resolves to
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))


def _launch_config(count: int) -> "LaunchConfig":
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )


def _read_words(words: Path) -> dict[int, str]:
    """Return the last words by rank, in the order in which they were written."""
    files = sorted(words.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    return {int(file.name): file.read_text(encoding="utf-8") for file in files}


def _explain(failures: "Mapping[int, ProcessFailure]", words: Mapping[int, str], count: int) -> tuple[str, int]:
    """Return what to say of processes that failed, and the exit code: what came first is the cause of the rest.

    A process that was killed leaves no words, but those that miss it do. The rest is told to end by torchrun.
    """
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    causes = {rank: code for rank, code in codes.items() if code not in TOLD_TO_END} or codes
    for rank, code in causes.items():
        if code < 0 and code not in TOLD_TO_END:
            name = signal.Signals(-code).name
            hint = "; the kernel does that where memory runs out" if name == "SIGKILL" else ""
            return f"error: process {rank} of {count} (counted from 0) was ended by {name}{hint}", 1
    first = next((rank for rank in words if rank in causes), min(causes))
    code = causes[first]
    return words.get(first, f"error: process {first} of {count} (counted from 0) ended with exit code {code}"), code
