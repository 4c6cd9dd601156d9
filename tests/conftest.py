"""A copy of the repository in which the pipeline has run once, for real."""

import fcntl
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

REPOSITORY = Path(__file__).parents[1]


class Workspace:
    """A checkout with its own DVC cache and MLflow store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )

    def succeed(self, *command: str, **environment: str) -> str:
        done = self.run(*command, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def fail(self, *command: str, **environment: str) -> str:
        """Return the one error message of a command that has to fail without a traceback."""
        done = self.run(*command, **environment)
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr, done.stderr
        errors = re.findall(r"^error: .*(?:\n {2}.*)*", done.stderr, re.MULTILINE)
        assert len(errors) == 1, done.stderr
        return errors[0]

    def set(self, **values: object) -> None:
        """Set parameters: finetune__epochs=3 is `finetune.epochs: 3`."""
        text = (self.root / "params.yaml").read_text()
        for name, value in values.items():
            block, _, key = name.partition("__")
            pattern = rf"(?ms)^({block}:.*?\n  {key}: )[^#\n]*?( *(?:#[^\n]*)?)$"
            text, count = re.subn(pattern, rf"\g<1>{value}\g<2>", text, count=1)
            assert count == 1, name
        (self.root / "params.yaml").write_text(text)

    def restore(self) -> None:
        """Go back to the state of the last commit, results included."""
        self.succeed("git", "checkout", "--quiet", ".")
        self.succeed("git", "clean", "-fdq")
        self.succeed("git", "clean", "-fdxq", "data/raw")  # ignored by git, watched by DVC
        self.succeed("dvc", "checkout", "--quiet", "--force")
        for name in ("state.pt", "run.json"):  # of a training that a test has ended
            for left in self.root.glob(f"checkpoints/**/{name}"):
                left.unlink()

    def restore_store(self) -> None:
        """Go back to the MLflow store as it was. It stays the same file: mlflow may have it open in this process."""
        shutil.rmtree(self.root / "mlruns/pending", ignore_errors=True)
        with (
            closing(sqlite3.connect(self.root.parent / "mlflow.db")) as original,
            closing(sqlite3.connect(self.root / "mlruns/mlflow.db")) as store,
        ):
            original.backup(store)


def copy_repository(root: Path) -> Workspace:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in listed:
        if (REPOSITORY / name).is_file() and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, root / name)
    workspace = Workspace(root)
    workspace.succeed("git", "init", "--quiet", "--initial-branch=main")
    workspace.succeed("git", "config", "user.name", "test")
    workspace.succeed("git", "config", "user.email", "test@example.com")
    return workspace


def commit(workspace: Workspace, message: str) -> None:
    workspace.succeed("git", "add", "--all")
    workspace.succeed("git", "commit", "--quiet", "--message", message)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The pipeline has run, with fewer epochs than by default, and dvc.lock is committed.

    Tests run in several processes: the first one that needs it runs the pipeline, and each has a copy.
    """
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    original = shared / "finished"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not original.exists():
            run_pipeline(shared / "running")
            (shared / "running").rename(original)  # whole or not at all
    root = tmp_path_factory.mktemp("repository") / "clone"
    shutil.copytree(original, root, symlinks=True)
    workspace = Workspace(root)
    workspace.succeed("python", "-m", "pipelines.tracking.store")  # MLflow's paths are of the original still
    shutil.copyfile(root / "mlruns/mlflow.db", root.parent / "mlflow.db")  # to go back to
    return workspace


def run_pipeline(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)  # of a process that failed
    workspace = copy_repository(root)
    workspace.set(pretrain__epochs=5, finetune__epochs=3)
    # after so few epochs the arms differ by a few of the 364 test images, more than the default margin allows for
    text = (root / "params.yaml").read_text()
    assert text.count("{accuracy: -0.02}") == 2
    (root / "params.yaml").write_text(text.replace("{accuracy: -0.02}", "{accuracy: -0.05}"))
    commit(workspace, "as cloned")
    workspace.succeed("dvc", "repro")
    commit(workspace, "dvc.lock")


@pytest.fixture
def workspace(finished: Workspace) -> Iterator[Workspace]:
    """The same, to change at will: afterwards parameters and results are restored."""
    yield finished
    finished.restore()
    finished.restore_store()


# Tests run in two processes, file by file in this order: the longest first, which runs the pipeline; beside it what
# needs no pipeline. Files that share a server stay together.
ORDER = (
    "service/test_flow",
    "service/test_work_pools",
    "unit/",
    "study/",
    "serving/",
    "service/test_webhook",
    "service/",
    "pipeline/",
)
TOGETHER = (("test_flow", "test_work_pools"), ("test_webhook", "test_registry_server", "test_tracking_server"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(REPOSITORY / "tests").as_posix()
        return next(index for index, start in enumerate(ORDER) if path.startswith(start))

    items.sort(key=rank)


class ByServer(LoadFileScheduling):
    """Gives a process a whole file, or the files that share a server."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((group[0] for group in TOGETHER if Path(file).stem in group), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    return ByServer(config, log)
