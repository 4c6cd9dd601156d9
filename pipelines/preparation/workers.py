"""Work on many images in all processors: in order, in bounded memory, and not waiting for a process that is gone."""

import ctypes
import gc
import logging
import mmap
import multiprocessing
import os
import signal
import struct
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

Task = TypeVar("Task")
Result = TypeVar("Result")

IN_FLIGHT = 4  # tasks per process: none waits, and few results are kept
NOWHERE = -1
SLOT = struct.Struct("q")


class LostProcessError(Exception):
    """A process ended in the middle of its work: it crashed, or was killed, as by the kernel when memory runs out.

    Attributes:
        places: What the processes last said by `mark`; one of them is what the process was at.
    """

    def __init__(self, places: list[int]) -> None:
        super().__init__(places)
        self.places = places


class _Board:
    """Memory that all processes share: a flag that says stop, and the place where each process is."""

    def __init__(self, processes: int) -> None:
        self._memory = mmap.mmap(-1, SLOT.size * (processes + 1))
        self._slots = multiprocessing.get_context("fork").Value("q", 0)
        self._slot, self._count = 0, processes
        for slot in range(1, processes + 1):
            SLOT.pack_into(self._memory, slot * SLOT.size, NOWHERE)

    def take_slot(self) -> None:
        with self._slots.get_lock():
            self._slots.value += 1
            self._slot = self._slots.value

    def mark(self, place: int) -> None:
        SLOT.pack_into(self._memory, self._slot * SLOT.size, place)
        if self._memory[0]:
            raise InterruptedError("another process failed, or the stage was interrupted")

    def stop(self) -> None:
        self._memory[0] = 1

    def places(self) -> list[int]:
        (_, *places) = struct.unpack_from(f"{self._count + 1}q", self._memory)
        return [place for place in places if place != NOWHERE]


_board: _Board | None = None
_work: Callable[[Any], Any] | None = None


def count_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mark(place: int) -> None:
    """Say, in `work`, which image comes next: should it end the process, it is known which one it was."""
    if _board is not None:
        _board.mark(place)


def map_in_processes(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Yield work(task) of each task, in their order.

    The processes are forked here, so `work` may hold anything; tasks and results are sent to and fro.

    Raises:
        LostProcessError: A process ended in the middle of its work.
    """
    processes, remaining = count_processors(), iter(tasks)
    board = _Board(processes)
    gc.freeze()  # what is shared with the forked processes stays shared
    executor = ProcessPoolExecutor(
        processes, multiprocessing.get_context("fork"), initializer=_start, initargs=(work, board, os.getpid())
    )
    try:
        futures = deque(executor.submit(_call, task) for task in islice(remaining, IN_FLIGHT * processes))
        while futures:
            yield futures.popleft().result()
            futures.extend(executor.submit(_call, task) for task in islice(remaining, 1))
    except BrokenProcessPool:  # of a result, or of a further task after results that were there already
        raise LostProcessError(board.places()) from None
    finally:
        board.stop()
        executor.shutdown(cancel_futures=True)
        gc.unfreeze()


def _start(work: Callable[[Any], Any], board: _Board, parent: int) -> None:
    global _board, _work
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before
            os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent's to say how a stage ends
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # of files, each of which is described by its row
    logging.disable()
    threadpool_limits(1)
    board.take_slot()
    _board, _work = board, work


def _call(task: Any) -> Any:
    assert _work is not None
    result = _work(task)
    mark(NOWHERE)
    return result
