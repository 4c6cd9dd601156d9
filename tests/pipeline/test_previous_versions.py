"""The previous version of the data, in real repositories of git and DVC."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.previous_data import NoPreviousDataError, find_previous_data

PREPARED = Path("data/prepared")
STAGE = """
stages:
  prepare:
    cmd: "true"
    params: [data.source]
    outs:
      - data/prepared: {persist: true}
"""


def succeed(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(labels: list[int], **changes: Any) -> None:
    """Prepared data, an image for each label."""
    PREPARED.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"label": labels}), PREPARED / "manifest.parquet")
    dataset = {"source": "folder:a", "task": "classification", "classes": ["cat", "dog"]} | changes
    (PREPARED / "dataset.json").write_text(json.dumps(dataset))
    Path("params.yaml").write_text(json.dumps({"data": {"source": dataset["source"]}}))


def commit() -> str:
    """Have DVC keep the prepared data, and commit dvc.lock; returns the data's hash."""
    succeed("dvc", "commit", "--quiet", "--force", "prepare")
    succeed("git", "add", "--all")
    succeed("git", "commit", "--quiet", "--message", "data")
    entry = Path("dvc.lock").read_text().partition("outs:")[2]
    return entry.partition("md5: ")[2].split()[0]


def found() -> tuple[str, list[int]]:
    previous = find_previous_data(PREPARED, columns=["label"])
    return previous.digest, previous.manifest["label"].to_pylist()


def reason() -> str:
    with pytest.raises(NoPreviousDataError) as raised:
        find_previous_data(PREPARED, columns=["label"])
    text = str(raised.value)
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty repository, with a DVC remote beside it."""
    root = tmp_path_factory.mktemp("template")
    with contextlib.chdir(root):
        succeed("git", "init", "--quiet", "--initial-branch=main")
        succeed("git", "config", "user.name", "test")
        succeed("git", "config", "user.email", "test@example.com")
        succeed("dvc", "init", "--quiet")
        succeed("dvc", "remote", "add", "--quiet", "--default", "store", "../remote")
    (root / "dvc.yaml").write_text(STAGE)
    (root / ".gitignore").write_text("/data/prepared\n")
    return root


@pytest.fixture(autouse=True)
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    shutil.copytree(template, root)
    monkeypatch.chdir(root)
    return root


def test_the_version_before_is_the_same_before_and_after_this_one_is_committed() -> None:
    write([0, 1])
    first = commit()
    assert "it is the first one" in reason()

    write([0, 1, 1])
    assert found() == (first, [0, 1])
    second = commit()
    Path("README.md").write_text("of no meaning")
    Path("dvc.lock").write_text(Path("dvc.lock").read_text() + "# nor is this\n")
    succeed("git", "add", "--all")
    succeed("git", "commit", "--quiet", "--message", "dvc.lock, but not the data")
    assert found() == (first, [0, 1])

    write([1, 1])
    assert found() == (second, [0, 1, 1])
    commit()
    assert found() == (second, [0, 1, 1])


def test_another_source_or_task_is_not_the_same_data() -> None:
    write([0])
    first = commit()
    write([0, 0], source="folder:b")
    commit()
    write([-1], task="segmentation")
    commit()

    write([0, 1])

    assert found() == (first, [0])


def test_what_is_not_in_the_cache_comes_with_the_command_that_gets_it(repository: Path) -> None:
    write([0])
    first = commit()
    write([0, 1])
    commit()
    succeed("dvc", "push", "--quiet", "--all-commits")
    shutil.rmtree(repository / ".dvc/cache/files")

    command = reason().split("`")[1]

    assert first in reason()
    assert command.startswith("dvc fetch ")
    succeed(*command.split())
    assert found() == (first, [0])


def test_a_version_of_another_source_need_not_be_in_the_cache(repository: Path) -> None:
    write([0], source="digits")
    commit()
    shutil.rmtree(repository / ".dvc/cache/files")

    write([0, 1])

    assert "it is the first one" in reason()


def test_commits_without_a_good_lock_are_passed_over() -> None:
    write([0])
    first = commit()
    good = Path("dvc.lock").read_text()
    for bad in ("<<<<<<< HEAD\nstages: [", "stages: {}", "no mapping", None):
        Path("dvc.lock").unlink(missing_ok=True)
        if bad is not None:
            Path("dvc.lock").write_text(bad)
        succeed("git", "add", "--all")
        succeed("git", "commit", "--quiet", "--message", "bad")
    Path("dvc.lock").write_text(good)
    write([0, 1])

    assert found() == (first, [0])


def test_damaged_data_in_the_cache_is_a_reason_not_a_crash(repository: Path) -> None:
    write([0])
    commit()
    for cached in (repository / ".dvc/cache/files").rglob("*"):
        if cached.is_file() and not cached.name.endswith(".dir") and cached.read_bytes().startswith(b"PAR1"):
            cached.chmod(0o644)
            cached.write_text("damaged\nby chance")
    write([0, 1])

    assert "cannot be read" in reason()


def test_a_previous_manifest_with_other_columns_is_a_reason() -> None:
    write([0])
    commit()
    write([0, 1])

    with pytest.raises(NoPreviousDataError, match=r"cannot be read.*mask_counts"):
        find_previous_data(PREPARED, columns=["mask_counts"])


def test_without_git_or_dvc_there_is_a_reason(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write([0])
    commit()
    write([0, 1])
    shutil.rmtree(repository / ".dvc")
    assert "DVC has no cache here" in reason()
    shutil.rmtree(repository / ".git")
    assert "git has no history here" in reason()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "cannot be read" in reason()
