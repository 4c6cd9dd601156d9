"""How a stage ends: quietly, with one message, or with a traceback where the fault is ours."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"import atexit\nfrom pipelines.stage import run_stage\ndef main():\n    {body}\nrun_stage(main)"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_success_loses_no_output():
    done = run("atexit.register(print, 'last'); print('x' * 100_000)")
    assert done.returncode == 0
    assert done.stdout == "x" * 100_000 + "\nlast\n"


@pytest.mark.parametrize(
    "body", ["raise ValueError('got 1, expected 2')", "raise FloatingPointError('got 1, expected 2')"]
)
def test_what_we_raise_is_one_message(body):
    done = run(body)
    assert (done.returncode, done.stderr) == (1, "error: got 1, expected 2\n")


def test_a_missing_file_is_one_message():
    done = run("open('missing.json')")
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 2] No such file or directory: 'missing.json'\n"


@pytest.mark.parametrize("body", ["import json; json.loads('{')", "1 / 0", "import statistics; statistics.mean([])"])
def test_what_a_library_raises_keeps_its_traceback(body):
    done = run(body)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_debug_shows_every_traceback():
    assert "Traceback" in run("raise ValueError('bad')", GRPO_RM_DEBUG="1").stderr


def test_an_interrupt_says_what_to_do():
    done = run("raise KeyboardInterrupt")
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted; `dvc repro` runs this stage again")


KILL = "import os, signal, time; os.kill(os.getpid(), signal.{})"
INTERRUPTED = "interrupted; `dvc repro` runs this stage again, `dvc checkout` brings back the earlier result\n"


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_a_stage_at_once(name, code):
    done = run(KILL.format(name) + "; time.sleep(60)")
    assert (done.returncode, done.stderr) == (code, INTERRUPTED)


def test_an_error_on_the_way_down_is_not_shown():
    """Libraries turn an interrupt into errors of their own."""
    body = f"""
    try:
        {KILL.format("SIGTERM")}; time.sleep(60)
    except KeyboardInterrupt:
        raise RuntimeError("a worker died")"""
    done = run(body)
    assert (done.returncode, done.stderr) == (143, INTERRUPTED)


def test_a_swallowed_interrupt_ends_a_stage_soon():
    body = f"""
    import pipelines.stage
    pipelines.stage.GRACE_SECONDS = 1
    try:
        {KILL.format("SIGTERM")}; time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(60)"""
    done = run(body)
    assert (done.returncode, done.stderr) == (143, INTERRUPTED)


DEFERRED = """
    import pipelines.stage
    from pipelines.stage import deferred_interrupt
    with deferred_interrupt() as should_stop:
        print(should_stop())
        {kill}
        print(should_stop(), flush=True)
        {then}
    print("not reached")"""


def test_a_deferred_interrupt_comes_after_the_block():
    done = run(DEFERRED.format(kill=KILL.format("SIGTERM"), then="pass"))
    assert (done.returncode, done.stdout, done.stderr) == (143, "False\nTrue\n", INTERRUPTED)


def test_a_signal_to_the_group_and_to_the_process_is_one():
    done = run(DEFERRED.format(kill=KILL.format("SIGTERM"), then=f"{KILL.format('SIGTERM')}; print('went on')"))
    assert (done.returncode, done.stdout, done.stderr) == (143, "False\nTrue\nwent on\n", INTERRUPTED)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_the_second_signal_ends_at_once(name, code):
    start = time.monotonic()
    later = f"pipelines.stage.SAME_SECONDS = 0; {KILL.format(name)}; time.sleep(60)"
    done = run(DEFERRED.format(kill=KILL.format("SIGTERM"), then=later))
    assert time.monotonic() - start < 30
    assert (done.returncode, done.stdout, done.stderr) == (code, "False\nTrue\n", "")


def test_help_does_not_run_a_stage(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.prepare", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m pipelines.prepare [-h]\n\nStage prepare: ")
