"""A stage as several processes: they end together, with one message and one exit code."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipelines.launch import _explain

ROOT = Path(__file__).parents[2]

# Rank 1 does what the command line says, rank 0 waits for it in vain.
STAGE = """
import os, signal, sys, time
from pipelines.launch import launch_processes
from pipelines.stage import deferred_interrupt, run_stage

def main():
    launch_processes("stage", *sys.argv[1:])
    with deferred_interrupt() as should_stop:
        print("ready", flush=True)
        if os.environ.get("RANK") == "1":
            exec(sys.argv[1])
        while not should_stop():
            time.sleep(0.05)
        raise KeyboardInterrupt(f"rank {os.environ['RANK']} stops")

if __name__ == "__main__":
    run_stage(main)
"""


# A lock of C, which goes on waiting when a signal arrives: Python's handler is not called.
WAIT_OUTSIDE = "import ctypes; c = ctypes.CDLL(None); m = ctypes.create_string_buffer(64);"
WAIT_OUTSIDE += "c.pthread_mutex_lock(m); c.pthread_mutex_lock(m)"


@pytest.fixture
def start(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE)

    def start(body: str, processes: str = "2") -> subprocess.Popen[str]:
        environment = {"GRPO_RM_PROCESSES": processes, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        return subprocess.Popen(
            [sys.executable, "-m", "stage", body],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def result_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise ValueError('got 1, expected 2')", 1, "error: got 1, expected 2\n"),
        ("raise ConnectionError('no answer')", os.EX_TEMPFAIL, "error: no answer\n"),
        ("os._exit(7)", 7, "error: process 1 of 2 (counted from 0) ended with exit code 7\n"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            1,
            "error: process 1 of 2 (counted from 0) was ended by SIGKILL; the kernel does that where memory runs out\n",
        ),
    ],
)
def test_the_process_that_fails_has_the_word(start, body, code, message):
    returncode, _, errors = result_of(start(body))
    assert (returncode, errors) == (code, message)


def test_a_bug_shows_its_traceback_once(start):
    code, _, errors = result_of(start("1 / 0"))
    assert code == 1
    assert errors.startswith("Traceback")
    assert errors.count("ZeroDivisionError") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_all_and_the_first_says_what_became_of_it(start, number, code):
    process = start("pass")
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(number)
    began = time.monotonic()
    assert result_of(process) == (code, "", "rank 0 stops\n")
    assert time.monotonic() - began < 10


def test_a_process_that_waits_outside_of_python_does_not_hold_the_others_up(start):
    """As one does that waits for another at a collective operation."""
    process = start("print('waits', flush=True); " + WAIT_OUTSIDE)
    assert sorted(process.stdout.readline() for _ in range(3)) == ["ready\n", "ready\n", "waits\n"]
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert result_of(process) == (143, "", "rank 0 stops\n")
    assert time.monotonic() - began < 10


def test_no_process_outlives_who_launched_it(start):
    process = start("pass")
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    process.kill()
    assert psutil.wait_procs(ranks, timeout=10)[1] == []
    assert result_of(process)[0] == -signal.SIGKILL


@dataclass
class Failure:
    exitcode: int


@pytest.mark.parametrize(
    ("codes", "words", "start", "code"),
    [
        ({0: 1, 1: -9}, {0: "Traceback: connection closed"}, "error: process 1 of 2 (counted from 0) was ended by", 1),
        ({0: 143, 1: 1}, {1: "error: bad", 0: "interrupted"}, "error: bad", 1),
        ({0: -15, 1: 75}, {1: "error: no answer"}, "error: no answer", 75),
        ({0: 1, 1: 1}, {1: "error: first", 0: "error: second"}, "error: first", 1),
        ({0: 143, 1: 143}, {0: "interrupted at step 3", 1: "interrupted"}, "interrupted at step 3", 143),
    ],
)
def test_the_cause_is_told_from_what_it_caused(codes, words, start, code):
    message, exit_code = _explain({rank: Failure(code) for rank, code in codes.items()}, words, 2)
    assert message.startswith(start)
    assert exit_code == code


@pytest.mark.parametrize("processes", ["two", "0", "-1", "1.5"])
def test_what_is_no_number_of_processes(start, processes):
    expected = f"error: GRPO_RM_PROCESSES is {processes!r}, expected a number of processes, such as 2\n"
    assert result_of(start("pass", processes)) == (1, "", expected)
