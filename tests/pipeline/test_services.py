"""What `make` says and starts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline

BECOME_A_WORKER = """
import os, sys
from pathlib import Path
from pipelines.services import claim
claim(Path(sys.argv[1]))
os.execvp("sh", ["sh", "-c", "echo ready; exec sleep 60"])
"""


def start(lock: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BECOME_A_WORKER, str(lock)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_clone_has_one_worker(tmp_path):
    lock = tmp_path / ".dvc/tmp/worker.lock"
    with start(lock) as first:
        assert first.stdout.readline() == "ready\n"
        _, refused = start(lock).communicate()
        assert f"has a worker already, process {first.pid}: let it work, or end it first" in refused
        first.kill()
    with start(lock) as next_one:
        assert next_one.stdout.readline() == "ready\n"
        assert lock.read_text() == str(next_one.pid)
        next_one.kill()


@pytest.mark.parametrize(("is_there", "said"), [(False, "setting up .venv (once; some GB)"), (True, "updating .venv")])
def test_make_says_what_it_does_to_the_environment(tmp_path, is_there, said):
    shutil.copyfile(Path(__file__).parents[2] / "Makefile", tmp_path / "Makefile")
    (tmp_path / ".venv").mkdir()
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    if is_there:
        (tmp_path / ".venv/.ready").touch()
    command = ["make", "--dry-run", "--assume-new=requirements.lock", "setup"]
    assert said in subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
