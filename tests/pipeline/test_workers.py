"""Work in several processes: in order, with errors as they were, and without waiting for a process that is gone."""

import faulthandler
import itertools
import logging
import os
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
from image_sets import encode, made, noise, pets, prepare_made, tree

from pipelines.preparation.workers import LostProcessError, count_processors, map_in_processes, mark


def end(number: int) -> None:
    faulthandler.disable()  # pytest's, which would tell of it
    os.kill(os.getpid(), number)


def test_results_come_in_order():
    def work(number):
        time.sleep(0.02 if number % 7 == 0 else 0)
        return number, os.getpid()

    results = list(map_in_processes(work, range(60)))
    assert [number for number, _ in results] == list(range(60))
    assert os.getpid() not in {process for _, process in results}
    assert len({process for _, process in results}) <= count_processors()


def test_nothing_to_do():
    assert list(map_in_processes(print, [])) == []


def test_few_tasks_are_ahead():
    """So that an endless list of tasks, or a slow reader of the results, takes no memory."""
    taken = itertools.count()
    results = map_in_processes(lambda number: number, (next(taken) for _ in itertools.count()))
    for _ in range(10):
        next(results)
    results.close()
    assert next(taken) < 10 + 5 * count_processors()


def test_errors_are_as_they_were():
    def work(number):
        if number == 3:
            raise OSError(28, "No space left on device", "file")
        return number

    with pytest.raises(OSError, match="No space left") as caught:
        list(map_in_processes(work, range(1000)))
    assert (caught.value.errno, caught.value.filename) == (28, "file")


def test_the_others_stop_soon_after_an_error():
    def work(number):
        if number == 0:
            raise ValueError("first")
        for step in range(1000):
            mark(step)
            time.sleep(0.01)

    begin = time.monotonic()
    with pytest.raises(ValueError, match="first"):
        list(map_in_processes(work, range(8)))
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_lost_process_is_told_with_its_place(number):
    def work(task):
        mark(task)
        if task == 17:
            end(number)
        return task

    results = []
    with pytest.raises(LostProcessError) as caught:
        results.extend(map_in_processes(work, range(1000)))
    assert 17 in caught.value.places and len(caught.value.places) <= count_processors()


def test_a_process_is_lost_while_results_wait():
    """When the next task is sent, the processes are known to be gone."""

    def work(number):
        mark(number)
        if number == 2:
            end(signal.SIGKILL)
        return number

    results = map_in_processes(work, range(100))
    next(results)
    time.sleep(0.5)
    with pytest.raises(LostProcessError) as caught:
        list(results)
    assert 2 in caught.value.places


def test_warnings_and_logs_stay_silent(capfd):
    def work(_):
        warnings.warn("of a file", stacklevel=1)
        logging.getLogger("PIL.TiffImagePlugin").error("of a file")
        print("shown", file=sys.stderr, flush=True)

    list(map_in_processes(work, range(3)))
    assert capfd.readouterr().err == "shown\n" * 3


def test_prepare_names_the_file_that_a_process_was_at(tmp_path):
    prepare_made(made(pets()), tmp_path / "prepared")
    before = tree(tmp_path / "prepared")
    files = pets() | {"cat/evil.png": lambda: end(signal.SIGSEGV)}
    with pytest.raises(
        ValueError, match=r"crashed or was killed, at one of: .*'cat/evil\.png'.*If it was killed because"
    ):
        prepare_made(made(files), tmp_path / "prepared")
    assert tree(tmp_path / "prepared") == before


def test_memory_does_not_grow_with_the_images(tmp_path):
    """120 images of 3 MB each, in less than they have together."""
    resource = pytest.importorskip("resource")

    def read(seed):
        return encode(noise(seed, (20, 20, 3)).repeat(50, axis=0).repeat(50, axis=1), "BMP")

    files = {f"{name}/{index}.bmp": partial(read, index + ord(name)) for name in "aß" for index in range(60)}
    process = os.fork()
    if not process:
        code = 1
        try:
            limit = 300 * 2**20 + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            prepare_made(made(files), tmp_path / "prepared")
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert sum(path.stat().st_size for path in (tmp_path / "prepared").rglob("*.parquet")) > 300 * 2**20
