"""A clone of the repository as the pipeline uses it unwatched: held by one run at a time, changed all or nothing."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

CHANGED = ("params.yaml", "dvc.lock")  # what a run changes of the files that git tracks
LOCK, SNAPSHOT = ".dvc/tmp/run.lock", ".dvc/tmp/run"
AUTHOR = {  # where git knows none
    "GIT_AUTHOR_NAME": "grpo-rm",
    "GIT_AUTHOR_EMAIL": "grpo-rm@localhost",
    "GIT_COMMITTER_NAME": "grpo-rm",
    "GIT_COMMITTER_EMAIL": "grpo-rm@localhost",
}


@contextlib.contextmanager
def hold(root: Path, owner: str, *, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the clone, or wait until whoever holds it has ended, killed or not.

    Args:
        root: The clone.
        owner: Who we are, for whoever waits for us.
        on_wait: Receives the owner we wait for, once.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        has_waited = False
        while not _has_locked(file.fileno()):
            if not has_waited:
                on_wait(path.read_text(encoding="utf-8").strip() or "another run")
            has_waited = True
            time.sleep(1)
        file.truncate(0)
        file.write(owner)
        file.flush()
        yield


def is_free(root: Path) -> bool:
    """Whether no run holds the clone."""
    if not (root / LOCK).is_file():
        return True
    with (root / LOCK).open("a+", encoding="utf-8") as file:
        return _has_locked(file.fileno())


def _has_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the kernel when its holder dies
    except BlockingIOError:
        return False
    return True


class Snapshot:
    """What to go back to when a run does not go well. It outlives the process that took it."""

    def __init__(self, root: Path) -> None:
        self.root, self.directory = root, root / SNAPSHOT

    def left_by(self) -> str | None:
        """Return the owner of a run that died in this clone and left its snapshot, or None."""
        owner = self.directory / "owner"
        return owner.read_text(encoding="utf-8") if owner.is_file() else None

    def take(self, owner: str) -> None:
        """Remember parameters and dvc.lock."""
        partial = self.directory.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / "owner").write_text(owner, encoding="utf-8")
        for name in CHANGED:
            if (self.root / name).is_file():
                shutil.copy2(self.root / name, partial / name)
        partial.rename(self.directory)

    def restore(self) -> None:
        """Go back: parameters, dvc.lock, and the outputs it names as far as the cache has them."""
        for name in CHANGED:
            if (self.directory / name).is_file():
                shutil.copy2(self.directory / name, self.root / name)
            else:
                (self.root / name).unlink(missing_ok=True)
        _dvc(self.root, "checkout", "--quiet", "--force", "--allow-missing")
        self.drop()

    def drop(self) -> None:
        """Forget it: the run went well."""
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def all_or_nothing(root: Path, owner: str, *, on_failure: Callable[[], None]) -> Iterator[None]:
    """Go back to how the clone was when the block is left by an exception, after calling `on_failure`."""
    snapshot = Snapshot(root)
    snapshot.take(owner)
    try:
        yield
    except BaseException:
        on_failure()
        snapshot.restore()
        raise
    snapshot.drop()


def override(root: Path, values: Mapping[str, Any]) -> None:
    """Set parameters in params.yaml, and keep its comments.

    Args:
        root: The clone.
        values: By their dotted names, such as {"finetune.epochs": 2}.

    Raises:
        ValueError: There is no such parameter, or it cannot have this value.
    """
    from dvc.utils.serialize import modify_yaml

    from grpo_rm.config import load_config

    if not values:
        return
    with modify_yaml(root / "params.yaml") as content:
        for name, value in values.items():
            *parents, key = name.split(".")
            block = content
            for parent in parents:
                block = block.setdefault(parent, {}) if isinstance(block, dict) else {}
            block[key] = value
    load_config(root / "params.yaml")


def uncommitted(root: Path) -> list[str]:
    """Return the tracked files that differ from the last commit, other than dvc.lock."""
    status = _git(root, "status", "--porcelain", "--untracked-files=no", "--no-renames")
    return sorted(line[3:] for line in status.splitlines() if line[3:] != "dvc.lock")


def commit(root: Path, message: str) -> str | None:
    """Commit params.yaml and dvc.lock alone; return the commit, or None where they did not change."""
    names = [name for name in CHANGED if (root / name).is_file()]
    _git(root, "add", "--", *names)
    if not _git(root, "status", "--porcelain", "--untracked-files=no", "--", *names):
        return None
    _git(root, "commit", "--quiet", "--message", message, "--", *names)
    return _git(root, "rev-parse", "HEAD")


def pull(root: Path) -> None:
    """Take the newest commits of the upstream branch, and the data that they name from the DVC remote.

    Raises:
        OSError: git or DVC could not; the message is theirs.
    """
    if has_upstream(root):
        try:
            _git(root, "pull", "--quiet", "--rebase")
        except OSError:
            with contextlib.suppress(OSError):
                _git(root, "rebase", "--abort")
            raise
    tracked = [str(path.relative_to(root)) for path in (root / "data").rglob("*.dvc")]
    if tracked and has_remote(root):
        _dvc(root, "pull", "--quiet", *tracked)


def push(root: Path) -> None:
    """Send data and outputs to the DVC remote, then the commits to the upstream branch; where there is one.

    Raises:
        OSError: git or DVC could not; the message is theirs.
    """
    if has_remote(root):
        _dvc(root, "push", "--quiet")
    if has_upstream(root):
        _git(root, "push", "--quiet")


def upstream_data(root: Path) -> list[str]:
    """Return what the upstream branch has under version control as data: a line per .dvc file with its hash.

    Raises:
        OSError: The upstream repository does not answer.
    """
    if not has_upstream(root):
        return []
    _git(root, "fetch", "--quiet")
    listed = _git(root, "ls-tree", "-r", "@{upstream}", "--", "data").splitlines()
    return [line for line in listed if line.endswith(".dvc")]


def has_remote(root: Path) -> bool:
    """Whether DVC has a default remote."""
    from dvc.repo import Repo

    with Repo(root) as repo:
        return bool(repo.config["core"].get("remote"))


def has_upstream(root: Path) -> bool:
    """Whether the branch follows one of a git remote."""
    try:
        return bool(_git(root, "rev-parse", "--abbrev-ref", "@{upstream}"))
    except OSError:
        return False


def _git(root: Path, *arguments: str) -> str:
    known = subprocess.run(["git", "config", "user.email"], cwd=root, capture_output=True, check=False)
    return _run(root, "git", *arguments, environment={} if known.returncode == 0 else AUTHOR)


def _dvc(root: Path, *arguments: str) -> str:
    return _run(root, sys.executable, "-m", "dvc", *arguments)


def _run(root: Path, *command: str, environment: Mapping[str, str] | None = None) -> str:
    surroundings = {**(environment or {}), **os.environ}
    done = subprocess.run(command, cwd=root, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise OSError(f"`{' '.join(command).removeprefix(f'{sys.executable} -m ')}` failed: {said}")
    return done.stdout.rstrip("\n")
