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

PARAMS, LOCK_FILE = "params.yaml", "dvc.lock"
CHANGED = (PARAMS, LOCK_FILE)  # what a run changes of the files that git tracks
WRITTEN = "written.yaml"  # the parameters as a run has set them
GIT_SECONDS, DVC_SECONDS = 600.0, 86_400.0  # a remote that hangs must not hold the clone for ever
LOCK, SNAPSHOT = ".dvc/tmp/run.lock", ".dvc/tmp/run"
AUTHOR = {  # where git knows none
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "grpo-rm"), ("EMAIL", "grpo-rm@localhost"))
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
        self._make_room()
        partial = self.directory.with_suffix(".partial")
        partial.mkdir(parents=True)
        (partial / "owner").write_text(owner, encoding="utf-8")
        for name in CHANGED:
            if (self.root / name).is_file():
                shutil.copy2(self.root / name, partial / name)
        partial.rename(self.directory)

    def override(self, values: Mapping[str, Any]) -> None:
        """Set parameters in params.yaml, and keep its comments.

        Args:
            values: By their dotted names, {"finetune.epochs": 2}, or nested, {"finetune": {"epochs": 2}}; what is not
                named stays. A list is replaced.

        Raises:
            ValueError: There is no such parameter, or it cannot have this value. The file is as it was.
        """
        from dvc.utils.serialize import modify_yaml

        from grpo_rm.config import load_config
        from pipelines.tracking.runs import flatten

        if not values:
            return
        written = self.directory / WRITTEN
        shutil.copy2(self.root / PARAMS, written)
        with modify_yaml(written) as content:
            for name, value in flatten(values).items():
                _set(content, name, value)
        try:
            load_config(written)
        except ValueError as error:  # a person knows nothing of the copy
            raise ValueError(str(error).replace(str(written), f"{PARAMS} with `params`", 1)) from None
        shutil.copy2(written, self.root / PARAMS)

    def restore(self) -> None:
        """Go back: parameters (unless a person has edited them since), dvc.lock, and outputs as far as they are cached.

        Raises:
            OSError: DVC could not; the snapshot stays.
        """
        present, written = self.root / PARAMS, self.directory / WRITTEN
        if written.is_file() and present.is_file() and present.read_bytes() == written.read_bytes():
            shutil.copy2(self.directory / PARAMS, present)
        if (self.directory / LOCK_FILE).is_file():
            shutil.copy2(self.directory / LOCK_FILE, self.root / LOCK_FILE)
        else:
            (self.root / LOCK_FILE).unlink(missing_ok=True)
        # of stages alone: data that a person put under version control may have changes that are in no cache
        _dvc(self.root, "--wait-for-lock", "checkout", "--quiet", "--force", "--allow-missing", "dvc.yaml")
        self.drop()

    def drop(self) -> None:
        """Forget it: the run went well."""
        if self.directory.exists():
            self._make_room()
            self.directory.rename(self.directory.with_suffix(".partial"))  # at once: half a snapshot would be worse
        self._make_room()

    def _make_room(self) -> None:
        shutil.rmtree(self.directory.with_suffix(".partial"), ignore_errors=True)


def _set(content: Any, name: str, value: Any) -> None:
    *parents, key = name.split(".")
    for index, parent in enumerate(parents):
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise ValueError(f"{name}: {'.'.join(parents[: index + 1])} is a value, expected a block; see params.yaml")
    content[key] = value


@contextlib.contextmanager
def all_or_nothing(root: Path, owner: str, *, on_failure: Callable[[], None]) -> Iterator[Snapshot]:
    """Go back to how the clone was when the block is left by an exception, after calling `on_failure`."""
    snapshot = Snapshot(root)
    snapshot.take(owner)
    try:
        yield snapshot
    except BaseException:
        try:
            on_failure()
            snapshot.restore()
        except Exception as error:  # the reason for the failure matters more
            print(f"warning: {error}. The next run goes back to how {root} was", file=sys.stderr, flush=True)
        raise
    snapshot.drop()


def uncommitted(root: Path) -> list[str]:
    """Return the tracked files that differ from the last commit, other than dvc.lock."""
    status = _git(root, "status", "--porcelain", "--untracked-files=no", "--no-renames")
    return sorted(line[3:] for line in status.splitlines() if line[3:] != LOCK_FILE)


def commit(root: Path, message: str) -> str | None:
    """Commit params.yaml and dvc.lock alone; return the commit, or None where they did not change.

    Raises:
        OSError: git could not, or a hook refused; nothing is left staged.
    """
    names = [name for name in CHANGED if (root / name).is_file()]
    _git(root, "add", "--intent-to-add", "--", *names)
    if not _git(root, "status", "--porcelain", "--untracked-files=no", "--", *names):
        return None
    _git(root, "commit", "--quiet", "--message", message, "--only", "--", *names, environment=_author(root))
    return _git(root, "rev-parse", "HEAD")


def pull(root: Path) -> None:
    """Take the newest commits of the upstream branch, and the data that they name from the DVC remote.

    Raises:
        ValueError: Both sides changed the same lines; the clone is as it was.
        OSError: git or DVC could not; the message is theirs.
    """
    if has_upstream(root):
        _rebase(root)
    tracked = [str(path.relative_to(root)) for path in (root / "data").rglob("*.dvc")]
    if tracked and has_remote(root):
        _dvc(root, "pull", "--quiet", *tracked)


def push(root: Path) -> None:
    """Send data and outputs to the DVC remote, then the commits to the upstream branch; where there is one.

    Raises:
        ValueError: Both sides changed the same lines; the clone is as it was.
        OSError: git or DVC could not; the message is theirs.
    """
    if has_remote(root):
        _dvc(root, "push", "--quiet")
    if has_upstream(root):
        _rebase(root)  # onto what others have pushed meanwhile
        _git(root, "push", "--quiet")


def _rebase(root: Path) -> None:
    """Put our commits, and what is not committed, on top of those of the upstream branch, or leave all as it was.

    Raises:
        ValueError: Both sides changed the same lines.
        OSError: git could not; the message is its own.
    """
    head, author = _git(root, "rev-parse", "HEAD"), _author(root)
    try:
        _git(root, "pull", "--quiet", "--rebase", "--autostash", environment=author)
    except OSError as error:
        conflict = _conflict(root, "git pull --rebase")
        with contextlib.suppress(OSError):
            _git(root, "rebase", "--abort", environment=author)
        raise (conflict or error) from None
    if conflict := _conflict(root, "git stash; git pull --rebase; git stash pop"):
        _git(root, "reset", "--quiet", "--hard", head)  # git reports success: what was not committed is on its stash
        _git(root, "stash", "pop", "--quiet", environment=author)
        raise conflict


def _conflict(root: Path, command: str) -> ValueError | None:
    names = ", ".join(_git(root, "diff", "--name-only", "--diff-filter=U").splitlines())
    advice = f"in {root}, `{command}`; of {LOCK_FILE} take either side, then `dvc repro`"
    error = ValueError(f"{names}: changed here and upstream; nothing is merged yet, a person has to: {advice}")
    return error if names else None


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


def _author(root: Path) -> Mapping[str, str]:
    """Return the environment in which git can commit: ours where the user has told it no name."""
    known = subprocess.run(["git", "config", "user.email"], cwd=root, capture_output=True, check=False)
    return {} if known.returncode == 0 else AUTHOR


def _git(root: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    return _run(root, "git", *arguments, seconds=GIT_SECONDS, environment=environment)


def _dvc(root: Path, *arguments: str) -> str:
    return _run(root, sys.executable, "-m", "dvc", *arguments, seconds=DVC_SECONDS)


def _run(root: Path, *command: str, seconds: float, environment: Mapping[str, str] | None = None) -> str:
    surroundings = {"GIT_TERMINAL_PROMPT": "0", **(environment or {}), **os.environ}
    shown = " ".join(command).removeprefix(f"{sys.executable} -m ")
    try:
        done = subprocess.run(
            command, cwd=root, env=surroundings, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"`{shown}` did not end within {seconds:g} seconds") from None
    if done.returncode:
        raise OSError(f"`{shown}` failed: {(done.stderr or done.stdout).strip() or f'exit code {done.returncode}'}")
    return done.stdout.rstrip("\n")
