"""How a stage ends: quietly, with one message, or with a traceback where the fault is ours."""

import os
import subprocess
import sys
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
